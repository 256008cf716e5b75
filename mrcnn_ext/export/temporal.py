"""A keypoint head that carries a state as an ONNX file: state in, state out."""

import copy
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..accel import restore
from ..files import replacing
from ..modeling import TemporalKeypointHead
from .files import WrongAnswersError
from .runtime import METADATA, require

__all__ = ["export_temporal_head"]

_OPSET = 16
_ERROR = 1e-4  # of heatmaps and states, relative to 1 or their largest value
_COUNTS = (2, 3, 1)  # of RoIs: what the file is made with, and what it is tried with


def export_temporal_head(
    head: TemporalKeypointHead, path: str | os.PathLike, channels: int, size: tuple[int, int] = (14, 14)
) -> None:
    """Writes one step of a head as an ONNX file of standard operators.

    Inputs: ``features``, the pooled features of R tracks in a frame (R, C, H, W), ``boxes``, their RoIs (R, 4), and the
    state: ``hidden`` and ``cell``, for `UniPoseLSTMKeypointHead` ``last_heatmaps``, each (R, ..., H, W), and
    ``last_boxes`` (R, 4). It is what the frame before gave, and zeros for tracks that begin. Outputs: ``heatmaps``
    (R, K, S_h, S_w), logits, and the next state, ``next_hidden``, ... All float32, R at least 1. Without
    ``align_state`` there are no boxes. The file's metadata ``mrcnn_ext.json`` has ``state``, the shape of each part of
    the state without R.

    The file is written after it gave the head's answers over two frames, to 1e-4, for other R than it was made with.

    Args:
        head: with its trained weights; accelerated or not. Exported in float32 on the CPU.
        path: ends with ``.onnx``.
        channels, size: of the pooled features, C and (H, W).

    Raises:
        ValueError: another suffix, or no such head.
        ImportError: onnx or onnxruntime is not installed.
        WrongAnswersError: the file's answers differ; nothing is written.
        mrcnn_ext.files.DiskFullError: there is no room for the file.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path must end with .onnx, got {path}")
    if not isinstance(head, TemporalKeypointHead):
        raise ValueError(
            f"{type(head).__name__} carries no state: it is exported with its model, by export_model"
        )
    onnx = require("onnx", "to write ONNX files")
    runtime = require("onnxruntime", "to check ONNX files")
    step = _Step(restore(copy.deepcopy(head))).eval().float().cpu().requires_grad_(False)
    example = step.example(_COUNTS[0], channels, size)
    names, inputs = step.state_names, step.input_names
    axes = {name: {0: "tracks"} for name in [*inputs, "heatmaps", *_next(names)]}
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, about sizes that this file is checked for
        torch.onnx.export(
            step,
            example,
            buffer,  # type: ignore[arg-type]  # with dynamo=False, a file too
            input_names=inputs,
            output_names=["heatmaps", *_next(names)],
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    file = onnx.load_from_string(buffer.getvalue())
    state = {name: list(part.shape[1:]) for name, part in zip(names, example[-len(names) :], strict=True)}
    onnx.helper.set_model_props(file, {METADATA: json.dumps({"state": state})})
    content = file.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in _COUNTS[1:]:
        _check(step, session, step.example(count, channels, size), path)
    with replacing(path) as out:
        out.write(content)


class _Step(nn.Module):
    """A frame of a head with the state as arguments and results of their own."""

    def __init__(self, head: Any):  # a TemporalKeypointHead
        super().__init__()
        self.head = head
        boxes = ["boxes"] if head.align_state else []
        self.state_names = [*self.head.network.state_names, *(f"last_{name}" for name in boxes)]
        self.input_names = ["features", *boxes, *self.state_names]

    def forward(self, features: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        features = self.head.network.features(features)
        if self.head.align_state:
            heatmaps, state = self.head.next_step(features, others[0], list(others[1:]))
        else:
            heatmaps, state = self.head.network.step(features, list(others))
        return (heatmaps, *state)

    @torch.no_grad()
    def example(self, count: int, channels: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """A frame, and the state after another."""
        generator = torch.Generator().manual_seed(count)
        before, features = torch.randn(2, count, channels, *size, generator=generator)
        boxes = torch.tensor([[5.0, 5.0, 90.0, 120.0]]) + 10 * torch.randn(2, count, 4, generator=generator)
        state = self.head.network(before)[1]
        return (features, boxes[1], *state, boxes[0]) if self.head.align_state else (features, *state)


def _next(names: list[str]) -> list[str]:
    return [f"next_{name}" for name in names]


@torch.no_grad()
def _check(step, session, arguments, path):
    expected = step(*arguments)
    names = [argument.name for argument in session.get_inputs()]
    given = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
    names = [output.name for output in session.get_outputs()]
    for name, found, wanted in zip(names, session.run(None, given), expected, strict=True):
        found = torch.from_numpy(found)
        off = float((found - wanted).abs().max()) if found.shape == wanted.shape else torch.inf
        if not off <= _ERROR * max(1.0, float(wanted.abs().max())):
            raise WrongAnswersError(
                f"{path.name} was not written: its {name} differ from the head's by up to {off:.2g}"
            )
