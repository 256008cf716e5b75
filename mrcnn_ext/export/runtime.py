"""Running an exported detector. Needs neither the config nor, for tensors, detectron2."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import verify_archive
from ..layers import heatmaps_to_keypoints  # importing it also loads the operators that the files call
from ..layers.boxes import scaled_boxes
from .archive_check import check_export_archive
from .standalone import Detector

__all__ = ["METADATA", "SUFFIXES", "ExportedModel", "require"]

STANDALONE = {".onnx": "onnxruntime", ".xml": "openvino"}  # suffix -> package that runs it without PyTorch
METADATA = "mrcnn_ext.json"  # name of what `ExportedModel` has to know, within the file
# What `detect` may give besides boxes, scores and classes -> the field of Instances
_FIELDS = {
    "masks": "pred_masks",
    "mask_scores": "mask_scores",
    "keypoints": "pred_keypoints",
    "heatmaps": "pred_keypoint_heatmaps",
    "keypoint_scores": "keypoint_scores",
}
SUFFIXES = {".ts": "torchscript", ".pt2": "torch_export", ".onnx": "onnx", ".xml": "openvino"}


class ExportedModel:
    """A detector from a file of `export_model`; takes and gives what the detectron2 model did.

    Args:
        path: ``.ts`` (TorchScript), ``.pt2`` (torch.export), ``.onnx``, which runs in onnxruntime, or ``.xml`` with its
            ``.bin``, which runs in OpenVINO on the CPU.
        providers: of onnxruntime; None for its CPUExecutionProvider.
        trust: open a ``.pt2`` file although it holds pickled objects, whose code then runs, and any file although it
            does not match its checksums. A TorchScript file is a program of PyTorch's operators in any case.
        threads: of onnxruntime or OpenVINO; 0 for the runtime's choice.
        streams: images that OpenVINO computes at once, by as many threads that call it, for throughput.

    Attributes:
        path: of the file.
        metadata: what the file says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, a file that is damaged, holds code, or was not written by `export_model`.
        ImportError: onnxruntime or OpenVINO is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        providers: list[str] | None = None,
        *,
        trust: bool = False,
        threads: int = 0,
        streams: int = 1,
    ):
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise FileNotFoundError(f"there is no exported model {path}")
        if not trust:
            check = check_export_archive if path.suffix == ".pt2" else verify_archive
            check(path)
        if path.suffix in STANDALONE:
            require(STANDALONE[path.suffix], f"to run {path.suffix} files")
            self._run, metadata = _load_standalone(path, providers, threads, streams)
        else:
            self._run, metadata = (_load_torchscript if path.suffix == ".ts" else _load_torch_export)(path)
        if not metadata:
            raise ValueError(f"{path} lacks {METADATA}: it was not written by mrcnn_ext.export.export_model")
        self.metadata = json.loads(metadata)
        self.device = torch.device("cpu" if path.suffix in STANDALONE else self.metadata["device"])
        self.path = path

    @torch.no_grad()
    def detect(self, image: Tensor) -> dict[str, Tensor]:
        """Tensors of the detections in one image.

        Args:
            image: (C, H, W), a tensor or array of any dtype and of the channel order ``metadata["input_format"]``, 0
                to 255.

        Returns:
            ``boxes`` (R, 4), x0, y0, x1, y1 in pixels of the image; ``scores`` (R,), falling; ``classes`` (R,)
            int64; from a model with masks, ``masks`` (R, 1, m, m), probabilities within the boxes; from one with
            keypoints, ``keypoints`` (R, K, 3), x, y and score, and the ``heatmaps`` (R, K, S_h, S_w) behind them.
            ``mask_scores`` and ``keypoint_scores`` (R,) from heads that have them.

        Raises:
            ValueError: the image has another shape.
        """
        image = torch.as_tensor(image)
        channels = len(self.metadata["pixel_mean"])
        if image.dim() != 3 or len(image) != channels:
            raise ValueError(f"image must have shape ({channels}, H, W), got {tuple(image.shape)}")
        size = tuple(image.shape[1:])
        image = _padded(image.to(self.device, torch.float32), self.metadata)
        outputs = self._run(image, torch.tensor(size, device=self.device))
        found = dict(zip(self.metadata["outputs"], outputs, strict=True))
        if "heatmaps" in found:
            options = dict(self.metadata["keypoints"])
            rois = scaled_boxes(found["boxes"], options.pop("box_scale"))
            if "sigmas" in options:
                options["sigmas"] = torch.tensor(options["sigmas"], device=self.device)
            decoded = heatmaps_to_keypoints(found["heatmaps"], rois, **options)
            found["keypoints"] = decoded[:, :, [0, 1, 3]]
            if options["method"] == "oks":
                found["keypoint_scores"] = found["scores"] * decoded[:, :, 3].mean(dim=1)
        return found

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        """detectron2's interface: dicts with ``image`` and maybe ``height`` and ``width`` of the output.

        Returns:
            A dict for each, with ``instances`` at output size: boxes, scores, classes, masks pasted, keypoints.
        """
        from detectron2.modeling.postprocessing import detector_postprocess

        results = []
        for inputs in batched_inputs:
            height, width = inputs["image"].shape[1:]
            instances = self.instances(inputs["image"])
            instances = detector_postprocess(
                instances, inputs.get("height", height), inputs.get("width", width)
            )
            results.append({"instances": instances})
        return results

    def instances(self, image: Tensor):
        """detectron2's Instances for (C, H, W), as ``model.inference(..., do_postprocess=False)`` gives them."""
        from detectron2.structures import Boxes, Instances

        found = self.detect(image)
        instances = Instances(tuple(image.shape[1:]))
        instances.pred_boxes = Boxes(found["boxes"])
        instances.scores = found["scores"]
        instances.pred_classes = found["classes"]
        for name, field in _FIELDS.items():
            if name in found:
                instances.set(field, found[name])
        return instances


def _padded(image: Tensor, metadata: dict) -> Tensor:
    """Fills up to the sides that the backbone takes, with what normalisation makes zero."""
    multiple = max(metadata["size_divisibility"], 1)
    below, right = (-side % multiple for side in image.shape[1:])
    mean = torch.tensor(metadata["pixel_mean"], device=image.device)[:, None, None]
    return F.pad(image - mean, (0, right, 0, below)) + mean if below or right else image


def _load_torchscript(path):
    extra = {METADATA: ""}
    module = torch.jit.load(str(path), _extra_files=extra)
    return module, extra[METADATA]


def _load_torch_export(path):
    extra = {METADATA: ""}
    program = torch.export.load(str(path), extra_files=extra)
    # Guards hold a level of one cell for a special case, and torch 2.11's one of an odd number; the graph does not.
    return program.module(check_guards=False), extra[METADATA]


def _load_standalone(path, providers, threads, streams):
    """As the file that stands alone runs it."""
    detector = Detector(path, providers, threads, streams)

    def run(image: Tensor, size: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in detector.run(image.numpy(), size.numpy())]

    return run, json.dumps(detector.metadata)


def require(name: str, what_for: str):
    """A package that few need, or what to install."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"{name} is needed {what_for}: pip install {name}") from error
