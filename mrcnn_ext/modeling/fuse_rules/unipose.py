"""UniPose, as `mrcnn_ext.accelerate` takes it."""

from collections.abc import Iterator

import torch
from torch import nn

from ...accel import Framework, register_framework, replace_method
from ...accel.mixed_precision import AutocastMethod, AutocastNetwork
from ..meta_arch import UniPose

__all__ = ["SinglePerson"]


class SinglePerson(Framework):
    """`UniPose`: a backbone and a head, nothing of detections."""

    model_class = UniPose
    name = "UniPose"

    def networks(self, model: UniPose) -> Iterator[tuple[str, nn.Module, bool]]:
        yield "backbone", model.backbone, False
        yield "keypoint_head", model.keypoint_head, True

    def networks_of_fixed_shapes(self, model: UniPose, padded: bool) -> Iterator[tuple[str, nn.Module]]:
        yield "backbone", model.backbone

    def fuse_poolers(self, model: UniPose) -> str:
        return "no RoIs"

    def autocast(self, network: nn.Module, is_head: bool, dtype: torch.dtype) -> nn.Module:
        if is_head:
            replace_method(AutocastMethod(network, "layers", dtype))
            return network
        return AutocastNetwork(network, dtype=dtype)

    def detections(self, model: UniPose) -> str:
        return "no detections"

    def keypoints(self, model: UniPose) -> str:
        return f"decoded at once by {type(model.keypoint_head).__name__} itself"

    def masks(self, model: UniPose, lazy: bool) -> str:
        return "no masks"

    def why_not_padded(self, model: UniPose) -> str | None:
        return "UniPose has one person an image, always"

    def targets(self, model: UniPose) -> str:
        return "nothing known here"


register_framework(SinglePerson())
