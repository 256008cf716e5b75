"""OpenVINO's format, from ONNX: float32, bfloat16 and int8."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .runtime import METADATA, require
from .standalone import padded

__all__ = ["PRECISIONS", "openvino_files"]

PRECISIONS = ("float32", "bfloat16", "int8")


def openvino_files(onnx_file: bytes, about: dict, calibration: Sequence[Tensor] = ()) -> dict[str, bytes]:
    """
    Args:
        onnx_file: an ONNX file of `export_model`.
        about: its metadata, with ``precision``. "bfloat16" files hold float32 weights: it is OpenVINO that computes in
            bfloat16 where the processor does.
        calibration: (C, H, W) images for NNCF to quantise with; none of a file that is in int8, or is not to be.

    Returns:
        The contents by suffix: .bin, and .xml, which is to be written last.
    """
    openvino = require("openvino", "to write OpenVINO files")
    with tempfile.TemporaryDirectory(prefix="mrcnn_ext-") as folder:
        source = Path(folder, "model.onnx")
        source.write_bytes(onnx_file)
        model = openvino.convert_model(str(source))
        if len(calibration):
            model = _quantized(model, about, calibration)
        model.set_rt_info(json.dumps(about), [METADATA])
        target = Path(folder, "model.xml")
        openvino.save_model(model, str(target), compress_to_fp16=False)
        return {suffix: target.with_suffix(suffix).read_bytes() for suffix in (".bin", ".xml")}


def _quantized(model, about, calibration):
    """By NNCF's post-training quantisation: convolutions and matrix products in int8."""
    nncf = require("nncf", "to quantise")

    def inputs(image: Tensor) -> dict[str, np.ndarray]:
        pixels = image.permute(1, 2, 0).numpy()
        return {"image": padded(pixels, about), "size": np.array(pixels.shape[:2], np.int64)}

    images = [image.cpu() for image in calibration]
    return nncf.quantize(model, nncf.Dataset(images, inputs), subset_size=len(images))
