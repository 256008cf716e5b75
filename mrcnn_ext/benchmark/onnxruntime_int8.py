"""A detector's ONNX file in int8 as onnxruntime itself quantises it."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..export.runtime import METADATA

__all__ = ["quantized_by_onnxruntime"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantized_by_onnxruntime(file: bytes, pictures: Sequence[Tensor]) -> bytes:
    """Static quantisation: QuantizeLinear and DequantizeLinear around convolutions and linear layers, per-channel
    weights, the ranges of activations those of their values.

    Args:
        file: an ONNX file of `export_model` in float32.
        pictures: (C, H, W), what it is given to find ranges.

    Returns:
        The contents of the quantised file, with the metadata of the other, but "precision".
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._rest = iter(pictures)

        def get_next(self):
            picture = next(self._rest, None)
            if picture is None:
                return None
            size = [side + -side % 32 for side in picture.shape[1:]]
            padded = picture.new_zeros((len(picture), *size)).float()
            padded[:, : picture.shape[1], : picture.shape[2]] = picture
            return {"image": padded.numpy(), "size": Tensor([*picture.shape[1:]]).long().numpy()}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(file)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        quantized = onnx.load(target)
    about = {entry.key: entry.value for entry in onnx.load_from_string(file).metadata_props}
    about[METADATA] = json.dumps({**json.loads(about[METADATA]), "precision": "int8"})
    onnx.helper.set_model_props(quantized, about)
    return quantized.SerializeToString()
