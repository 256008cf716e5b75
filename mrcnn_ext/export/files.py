"""Writing a detector to a file, in three formats."""

import copy
import json
import logging
import os
import tempfile
import warnings
from pathlib import Path

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor
from torch.nn import functional as F

from ..accel import fuse_poolers, restore
from ..modeling import KeypointHead
from .detector import Detector
from .runtime import METADATA, SUFFIXES, ExportedModel, require
from .support import check_exportable

__all__ = ["WrongAnswersError", "export_model"]

_OPSET = 16  # the first whose RoiAlign has half-pixel centres
_PIXELS = 0.05  # by which boxes may differ: rounding in a deep network stays well below, a kept size does not
_SHARE = 0.01  # of the largest value or of 1, by which scores, masks and heatmaps may
_MAPS = ("scores", "pred_masks", "pred_keypoint_heatmaps", "mask_scores", "keypoint_scores")


class WrongAnswersError(RuntimeError):
    """A file was not written because it does not give its model's answers."""


def export_model(
    model: GeneralizedRCNN, path: str | os.PathLike, image: Tensor | None = None
) -> ExportedModel:
    """Writes the whole detector, with masks and keypoints, to one file for images of any size.

    The file holds the network, proposals and non-maximum suppression; what is left to `ExportedModel` is
    padding the image, decoding the keypoint heatmaps and bringing the results to output size. The file is
    written only after it gave the model's answers, boxes to 0.05 pixels, classes, scores, masks and heatmaps, for a
    random picture of another size than it was made with, and for ``image``.

    Args:
        model: a GeneralizedRCNN (Faster, Mask, Keypoint, Cascade R-CNN; FPN or C4), with its trained weights.
            Exported in float32, on its device; accelerated models as they were before.
        path: ends with ``.ts`` (TorchScript), ``.pt2`` (torch.export) or ``.onnx``. Files of the first two
            call the operators of this package, which ``import mrcnn_ext.layers`` loads; ONNX files stand alone.
        image: (3, H, W), as in the model's inputs: one in which it finds something. Trained models mostly find
            nothing in the random picture; a warning says so.

    Returns:
        The file, loaded.

    Raises:
        ValueError: another suffix, no such folder, or an image of another shape.
        NotImplementedError: a part of the model has no export, or not to this format; nothing is written.
        ImportError: onnx or onnxruntime is not installed.
        WrongAnswersError: (a RuntimeError) the file's answers differ from the model's; nothing is written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must end with one of {', '.join(SUFFIXES)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"path: there is no folder {path.absolute().parent}")
    if image is not None and (image.dim() != 3 or image.shape[0] != 3):
        raise ValueError(f"image must have shape (3, H, W), got {tuple(image.shape)}")
    format = SUFFIXES[path.suffix]
    if format == "onnx":
        require("onnx", "to write ONNX files")
        require("onnxruntime", "to check ONNX files")
    if not isinstance(model, GeneralizedRCNN):
        check_exportable(model, format)
    # As it was before acceleration, with no more than the poolers replaced.
    model = restore(copy.deepcopy(model)).eval().requires_grad_(False)
    fuse_poolers(model)
    check_exportable(model, format)
    detector = Detector(model).eval()
    metadata = _metadata(detector)
    write = {"torchscript": _write_torchscript, "torch_export": _write_torch_export, "onnx": _write_onnx}
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, about sizes that this file is checked for
            write[format](detector, draft, metadata)
        exported = ExportedModel(draft)
        pictures = [_example(detector, metadata, 5, 3)[0], *([] if image is None else [image])]
        counts = [_check_answers(detector, exported, path, picture) for picture in pictures]
        os.replace(draft, path)
    exported.path = path
    if not any(counts):
        logging.getLogger(__name__).warning(
            "%s gives nothing where the model finds nothing, which is all that was checked: give an image in which "
            "it finds something (image=, --image)",
            path,
        )
    return exported


def _metadata(detector: Detector) -> dict:
    model = detector.model
    constraints = model.backbone.padding_constraints or {}
    metadata = {
        "device": str(model.device),
        "input_format": model.input_format,
        "keypoints": None,
        "outputs": detector.output_names,
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "size_divisibility": constraints.get("size_divisibility", model.backbone.size_divisibility),
    }
    if detector.keypoint_on:
        metadata["keypoints"] = {
            "box_scale": detector.keypoint_box_scale,
            **_decoding(model.roi_heads.keypoint_head, detector.keypoint_box_scale),
        }
    return metadata


def _decoding(head, box_scale: float) -> dict:
    """What `layers.heatmaps_to_keypoints` takes besides heatmaps and RoIs, as numbers."""
    if not isinstance(head, KeypointHead) or head.decoding != "oks":
        return {"method": getattr(head, "decoding", "stock")}
    return {"method": "oks", "sigmas": head.oks_sigmas.tolist(), "covered": head.covered(box_scale)}


def _example(detector: Detector, metadata: dict, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A smooth random picture as the graph takes it, its sides in cells of the coarsest level."""
    unit = max(metadata["size_divisibility"], *detector.model.proposal_generator.anchor_generator.strides)
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 2 * height, 2 * width, generator=generator) * 255
    picture = F.interpolate(picture, (height * unit, width * unit), mode="bilinear")[0]
    device = detector.model.device
    return picture.to(device), torch.tensor(picture.shape[1:], device=device)


def _write_torchscript(detector, path, metadata) -> None:
    traced = torch.jit.trace(detector, _example(detector, metadata, 3, 4), check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={METADATA: json.dumps(metadata)})


def _write_torch_export(detector, path, metadata) -> None:
    multiple = max(metadata["size_divisibility"], 1)
    if multiple > 1:
        sides = [multiple * torch.export.Dim(name, max=2**16 // multiple) for name in ("height", "width")]
    else:
        sides = [torch.export.Dim.AUTO] * 2
    program = torch.export.export(
        detector,
        _example(detector, metadata, 3, 4),
        dynamic_shapes={"image": {1: sides[0], 2: sides[1]}, "size": None},
    )
    torch.export.save(program, str(path), extra_files={METADATA: json.dumps(metadata)})


def _write_onnx(detector, path, metadata) -> None:
    onnx = require("onnx", "to write ONNX files")
    outputs = {name: {0: "detections"} for name in metadata["outputs"]}
    torch.onnx.export(
        detector,
        _example(detector, metadata, 3, 4),
        str(path),
        input_names=["image", "size"],
        output_names=metadata["outputs"],
        dynamic_axes={"image": {1: "height", 2: "width"}, **outputs},
        opset_version=_OPSET,
        dynamo=False,  # what torch.onnx makes of torch.export's program runs too, but takes twenty times as long
    )
    file = onnx.load(str(path))
    onnx.helper.set_model_props(file, {METADATA: json.dumps(metadata)})
    onnx.save(file, str(path))


def _check_answers(detector: Detector, exported: ExportedModel, path: Path, picture: Tensor) -> int:
    """Returns how many detections were compared. A backbone may have kept sizes of what it was traced with."""
    try:
        found = exported.instances(picture)
    except Exception as error:  # onnxruntime has errors of its own
        raise WrongAnswersError(
            f"{path.name} was not written: it fails for an image of another size than it was made with ({error})"
        ) from error
    (expected,) = detector.model.inference([{"image": picture}], do_postprocess=False)
    wrong = _difference(found, expected.to(exported.device))
    if wrong:
        raise WrongAnswersError(
            f"{path.name} was not written: {wrong}. A part of the model may not allow images of any size"
        )
    return len(found)


def _difference(found, expected) -> str:
    """What is different, "" for nothing."""
    if len(found) != len(expected):
        return f"it gives {len(found)} boxes where the model gives {len(expected)}"
    if len(found) == 0:
        return ""
    moved = float((found.pred_boxes.tensor - expected.pred_boxes.tensor).abs().max())
    if not moved <= _PIXELS:
        return f"its boxes differ from the model's by up to {moved:.2g} pixels"
    if not torch.equal(found.pred_classes, expected.pred_classes):
        return "its classes are not the model's"
    for field in _MAPS:
        if expected.has(field):
            value, stock = found.get(field), expected.get(field)
            off = float((value - stock).abs().max()) if value.shape == stock.shape else float("inf")
            if not off <= _SHARE * max(1.0, float(stock.abs().max())):
                return f"its {field} differ from the model's by up to {off:.2g}"
    return ""
