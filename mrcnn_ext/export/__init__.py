"""Detectors as files: TorchScript, torch.export and ONNX, and what runs them.

`ExportedModel.detect` works without detectron2; `export_model` and Instances need it.
"""

from importlib.util import find_spec

from .runtime import ExportedModel

__all__ = ["ExportedModel"]

if find_spec("detectron2") is not None:
    from .files import WrongAnswersError, export_model  # noqa: F401
    from .temporal import export_temporal_head  # noqa: F401

    __all__ += ["WrongAnswersError", "export_model", "export_temporal_head"]
