"""Writing a detector to a file, in four formats."""

import copy
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from detectron2.data import DatasetMapper, Metadata
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import pairwise_iou
from torch import Tensor
from torch.nn import functional as F

from ..accel import Int8Calibration, fuse_poolers, restore
from ..files import naming_full_disk
from ..modeling import KeypointHead
from .describe import describe
from .detector import Detector
from .openvino_files import PRECISIONS, openvino_files
from .quantized import calibration_for, quantize_layers, store_int8_weights
from .runtime import METADATA, STANDALONE, SUFFIXES, ExportedModel, require
from .support import check_exportable

__all__ = ["WrongAnswersError", "export_model", "onnx_file"]

_PRECISIONS = {"onnx": ("float32", "int8"), "openvino": PRECISIONS}
_OPSET = 16  # the first whose RoiAlign has half-pixel centres
_PIXELS = 0.05  # by which boxes may differ: rounding in a deep network stays well below, a kept size does not
_SHARE = 0.01  # of the largest value or of 1, by which scores, masks and heatmaps may
_SURE, _OVERLAP, _MOST = 0.5, 0.75, 0.9  # scores, IoU, and share of detections, in lower precisions
_TIE = 1e-4  # of scores that may be ordered either way
_MAPS = ("scores", "pred_masks", "pred_keypoint_heatmaps", "mask_scores", "keypoint_scores")


class WrongAnswersError(RuntimeError):
    """A file was not written because it does not give its model's answers."""


def export_model(
    model: GeneralizedRCNN,
    path: str | os.PathLike,
    image: Tensor | None = None,
    *,
    write_anyway: bool = False,
    mapper: DatasetMapper | None = None,
    metadata: Metadata | None = None,
    precision: str = "float32",
    calibration: Sequence[Tensor] | Int8Calibration | str | os.PathLike = (),
) -> ExportedModel:
    """Writes the whole detector, with masks and keypoints, to one file for images of any size.

    The file holds the network, proposals and non-maximum suppression; what is left to `ExportedModel` is
    padding the image, decoding the keypoint heatmaps and bringing the results to output size. The file is
    written only after it gave the model's answers, boxes to 0.05 pixels, classes, scores, masks and heatmaps, for a
    random picture of another size than it was made with, and for ``image``. Detections are compared with those of the
    same class and, to rounding, the same score, wherever they stand.

    Args:
        model: a GeneralizedRCNN (Faster, Mask, Keypoint, Cascade R-CNN; FPN or C4), with its trained weights.
            Exported in float32, on its device; accelerated models as they were before.
        path: ends with ``.ts`` (TorchScript), ``.pt2`` (torch.export), ``.onnx``, or ``.xml`` (OpenVINO, with a
            ``.bin`` beside it). Files of the first two call the operators of this package, which
            ``import mrcnn_ext.layers`` loads; the others stand alone.
        image: (C, H, W), as in the model's inputs, which may be grey or have more than three channels: one in which
            it finds something. Trained models mostly find nothing in the random picture; a warning says so.
        write_anyway: write the file although its answers differ, and warn.
        mapper: how images are resized for the model; `standalone.Detector` and `mrcnn_ext.inference` read it from the
            file.
        metadata: names of the classes and keypoints, which these read, too.
        precision: "float32"; of an OpenVINO file "bfloat16", which the processor computes in where it can; of ONNX and
            OpenVINO files "int8". Of the last two the detections that the model is sure of, from a score of 0.5 on, are
            compared: 9 of 10 must be there, of the same class and at an IoU of 0.75. What they find differs a little.
        calibration: for "int8": (C, H, W) images, as in the model's inputs, 100 or more; or `mrcnn_ext.accelerate`'s
            calibration, or the path of its file. With images OpenVINO files are quantised by NNCF, 3x3 convolutions
            included; otherwise the layers of the calibration are, as QuantizeLinear and DequantizeLinear say.

    Returns:
        The file, loaded.

    Raises:
        ValueError: another suffix, no such folder, or an image of another shape.
        NotImplementedError: a part of the model has no export, or not to this format; nothing is written.
        ImportError: onnx, onnxruntime, openvino or nncf is not installed.
        WrongAnswersError: (a RuntimeError) the file's answers differ from the model's; nothing is written.
        mrcnn_ext.files.DiskFullError: there is no room for the file; nothing is left of it.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must end with one of {', '.join(SUFFIXES)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.absolute().parent} to write it to")
    format = SUFFIXES[path.suffix]
    if precision not in _PRECISIONS.get(format, ("float32",)):
        raise ValueError(
            "precision must be float32, for .onnx files float32 or int8, for .xml files one of "
            f"{', '.join(PRECISIONS)}; got {precision!r} for {path.name}"
        )
    by_nncf = format == "openvino" and not isinstance(calibration, (str, os.PathLike, Int8Calibration))
    none = isinstance(calibration, Sequence) and not len(calibration)
    if (precision == "int8") == none:
        raise ValueError(
            "precision int8 needs images or a calibration (calibration=, --calibrate), the others take none"
        )
    if format in ("onnx", "openvino"):
        require("onnx", f"to write {path.suffix} files")
        require(STANDALONE[path.suffix], f"to check {path.suffix} files")
    if precision == "int8" and by_nncf:
        require("nncf", "to quantise")
    if not isinstance(model, GeneralizedRCNN):
        check_exportable(model, format)
    if image is not None and (image.dim() != 3 or len(image) != len(model.pixel_mean)):
        raise ValueError(f"image must have shape ({len(model.pixel_mean)}, H, W), got {tuple(image.shape)}")
    detector = _detector(model, format)
    about = {**_metadata(detector), **describe(mapper, metadata), "precision": precision}
    written = detector
    if precision == "int8" and not by_nncf:
        written = _detector(model, format)
        quantize_layers(written.model, calibration_for(model, calibration))
    write = {"torchscript": _write_torchscript, "torch_export": _write_torch_export, "onnx": _write_onnx}
    if format == "openvino":
        write["openvino"] = partial(_write_openvino, calibration=calibration if by_nncf else ())
    folder = tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".export-")
    with naming_full_disk(path), folder as name:
        draft = Path(name) / path.name
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, about sizes that this file is checked for
            # In memory: PyTorch's writers end the process where the disk is full.
            contents = write[format](written, about)
        for suffix, content in contents.items():
            draft.with_suffix(suffix).write_bytes(content)
        exported = ExportedModel(draft)
        pictures = [_example(detector, about, 5, 3)[0], *([] if image is None else [image])]
        counts = [_check_answers(detector, exported, path, picture, write_anyway) for picture in pictures]
        for suffix in contents:  # the one that names the others last
            os.replace(draft.with_suffix(suffix), path.with_suffix(suffix))
    exported.path = path
    if not any(counts):
        logging.getLogger(__name__).warning(
            "%s gives nothing where the model finds nothing, which is all that was checked: give an image in which "
            "it finds something (image=, --image)",
            path,
        )
    return exported


def onnx_file(model: GeneralizedRCNN) -> tuple[bytes, dict]:
    """The contents of an ONNX file of `export_model`, whose answers nobody has checked, and its metadata.

    Raises:
        NotImplementedError, ImportError: as `export_model`.
    """
    detector = _detector(model, "onnx")
    about = {**_metadata(detector), "precision": "float32"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _write_onnx(detector, about)[".onnx"], about


def _detector(model: GeneralizedRCNN, format: str) -> Detector:
    """A copy of the model as it was before acceleration, with no more than the poolers replaced."""
    model = restore(copy.deepcopy(model)).eval().requires_grad_(False)
    fuse_poolers(model)
    check_exportable(model, format)
    return Detector(model).eval()


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
    picture = torch.rand(1, len(metadata["pixel_mean"]), 2 * height, 2 * width, generator=generator) * 255
    picture = F.interpolate(picture, (height * unit, width * unit), mode="bilinear")[0]
    device = detector.model.device
    return picture.to(device), torch.tensor(picture.shape[1:], device=device)


def _write_torchscript(detector, metadata) -> dict[str, bytes]:
    traced = torch.jit.trace(detector, _example(detector, metadata, 3, 4), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(metadata)})
    return {".ts": buffer.getvalue()}


def _write_torch_export(detector, metadata) -> dict[str, bytes]:
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
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return {".pt2": buffer.getvalue()}


def _write_onnx(detector, metadata) -> dict[str, bytes]:
    onnx = require("onnx", "to write ONNX files")
    outputs = {name: {0: "detections"} for name in metadata["outputs"]}
    buffer = io.BytesIO()
    torch.onnx.export(
        detector,
        _example(detector, metadata, 3, 4),
        buffer,  # type: ignore[arg-type]  # with dynamo=False, a file too
        input_names=["image", "size"],
        output_names=metadata["outputs"],
        dynamic_axes={"image": {1: "height", 2: "width"}, **outputs},
        opset_version=_OPSET,
        dynamo=False,  # what torch.onnx makes of torch.export's program runs too, but takes twenty times as long
    )
    file = onnx.load_from_string(buffer.getvalue())
    if metadata["precision"] == "int8":
        store_int8_weights(file)
    onnx.helper.set_model_props(file, {METADATA: json.dumps(metadata)})
    return {".onnx": file.SerializeToString()}


def _write_openvino(detector, metadata, calibration) -> dict[str, bytes]:
    return openvino_files(_write_onnx(detector, metadata)[".onnx"], metadata, calibration)


def _check_answers(
    detector: Detector, exported: ExportedModel, path: Path, picture: Tensor, write_anyway: bool
) -> int:
    """Returns how many detections were compared. A backbone may have kept sizes of what it was traced with."""
    try:
        found = exported.instances(picture)
    except Exception as error:  # onnxruntime has errors of its own
        raise WrongAnswersError(
            f"{path.name} was not written: it fails for an image of another size than it was made with ({error})"
        ) from error
    (expected,) = detector.model.inference([{"image": picture}], do_postprocess=False)
    expected = expected.to(exported.device)
    if exported.metadata["precision"] == "float32":
        wrong = _difference(found, expected)
    else:
        wrong = _missing(found, expected)
    if wrong and write_anyway:
        logging.getLogger(__name__).warning("%s is written although %s", path, wrong)
    elif wrong:
        raise WrongAnswersError(
            f"{path.name} was not written: {wrong}. A part of the model may not allow images of any size. To write the "
            "file all the same: write_anyway=True, --write-anyway"
        )
    return len(found)


def _missing(found, expected) -> str:
    """What is wrong in the answers of a lower precision, "" for nothing."""
    sure = expected[expected.scores >= _SURE]
    if not len(sure):
        return ""
    same = sure.pred_classes[:, None] == found.pred_classes
    overlap = torch.where(same, pairwise_iou(sure.pred_boxes, found.pred_boxes), 0)
    there = int((overlap >= _OVERLAP).any(dim=1).sum())
    if there >= _MOST * len(sure):
        return ""
    return f"it finds {there} of the {len(sure)} objects that the model finds with scores of {_SURE} and more"


def _difference(found, expected) -> str:
    """What is different, "" for nothing."""
    if len(found) != len(expected):
        return f"it gives {len(found)} boxes where the model gives {len(expected)}"
    if len(found) == 0:
        return ""
    rows, distances = _matches(found, expected)
    alone = [i for i, row in enumerate(rows) if row < 0]
    if alone:
        lowest = float(expected.scores.min())
        # A tie at the end of the list: either of two detections may be the one that is cut off.
        alone = [i for i in alone if float(expected.scores[i]) > lowest + _TIE]
    if alone:
        i = alone[0]
        box = ", ".join(f"{x:.1f}" for x in expected.pred_boxes.tensor[i].tolist())
        return (
            f"{len(alone)} of the model's {len(expected)} detections are not among its (the first: class "
            f"{int(expected.pred_classes[i])}, score {float(expected.scores[i]):.4f}, box {box})"
        )
    pairs = [(i, row) for i, row in enumerate(rows) if row >= 0]
    moved = max((distances[i] for i, _ in pairs), default=0.0)
    if not moved <= _PIXELS:
        return f"its boxes differ from the model's by up to {moved:.2g} pixels"
    ours, theirs = (torch.tensor(index, dtype=torch.long) for index in zip(*pairs, strict=True))
    for field in _MAPS:
        if expected.has(field):
            value, stock = found.get(field), expected.get(field)
            if value.shape != stock.shape:
                return f"its {field} have the shape {tuple(value.shape)}, the model's {tuple(stock.shape)}"
            off = float((value[theirs] - stock[ours]).abs().max())
            if not off <= _SHARE * max(1.0, float(stock.abs().max())):
                return f"its {field} differ from the model's by up to {off:.2g}"
    return ""


def _matches(found, expected) -> tuple[list[int], list[float]]:
    """For each expected detection the nearest one found, of its class and score, -1 for none, and how far it is."""
    free = torch.ones(len(found), dtype=torch.bool, device=found.scores.device)
    rows, distances = [], []
    for box, score, label in zip(
        expected.pred_boxes.tensor, expected.scores, expected.pred_classes, strict=True
    ):
        fits = free & (found.pred_classes == label) & ((found.scores - score).abs() <= _SHARE)
        distance = (found.pred_boxes.tensor - box).abs().amax(dim=1)
        distance = torch.where(fits, distance, torch.inf).nan_to_num(nan=torch.inf)
        row = int(distance.argmin())
        rows.append(row if bool(fits[row]) else -1)
        distances.append(float(distance[row]))
        free[row] &= rows[-1] < 0
    return rows, distances
