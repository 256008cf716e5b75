"""torchvision's Mask R-CNN and Keypoint R-CNN made of our backbone, pooler, mask and keypoint networks.

torchvision's own: the feature pyramid, the region proposal network, the box head, matching, sampling, losses
and post-processing. A model takes and gives what torchvision's do; class 0 is the background.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ...layers import FCNMaskNetwork, HeatmapKeypointNetwork
from .poolers import FusedMultiScaleRoIAlign

__all__ = ["FPNBackbone", "keypoint_rcnn", "mask_keypoint_rcnn", "mask_rcnn"]

_FEATMAP_NAMES = ("0", "1", "2", "3")


class FPNBackbone(nn.Module):
    """A network of several feature maps under torchvision's feature pyramid.

    Args:
        body: images (N, 3, H, W) -> {name: (N, C_l, H_l, W_l)}, finest first, with their widths in
            ``body.channels`` {name: C_l}, as :class:`mrcnn_ext.layers.TimmFeatures`.
        out_channels: channels of every level of the pyramid.
        norm_layer: makes the normalisation of the pyramid's convolutions from a channel count; None for none.
    """

    def __init__(
        self,
        body: nn.Module,
        out_channels: int = 256,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            list(body.channels.values()), out_channels, LastLevelMaxPool(), norm_layer
        )
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"0": finest, "1": ..., "pool": the coarsest, halved}, as torchvision's."""
        maps = self.body(x).values()
        return self.fpn(OrderedDict((str(level), feature) for level, feature in enumerate(maps)))


class _PrependBackground(nn.Module):
    """(R, K, H, W) logits of K classes -> (R, K + 1, H, W): the background is torchvision's class 0."""

    def forward(self, logits: Tensor) -> Tensor:
        return F.pad(logits, (0, 0, 0, 0, 1, 0))


def _pooler(featmap_names: Sequence[str], output_size: int) -> FusedMultiScaleRoIAlign:
    return FusedMultiScaleRoIAlign(list(featmap_names), output_size, sampling_ratio=0, aligned=True)


def _box_parts(backbone: nn.Module, num_classes: int, featmap_names: Sequence[str]) -> dict[str, nn.Module]:
    return {
        "box_roi_pool": _pooler(featmap_names, 7),
        "box_head": TwoMLPHead(backbone.out_channels * 7 * 7, 1024),
        "box_predictor": FastRCNNPredictor(1024, num_classes),
    }


def _mask_parts(backbone: nn.Module, num_classes: int, featmap_names: Sequence[str]) -> dict[str, nn.Module]:
    return {
        "mask_roi_pool": _pooler(featmap_names, 14),
        "mask_head": FCNMaskNetwork(backbone.out_channels, num_classes - 1),
        "mask_predictor": _PrependBackground(),
    }


def _keypoint_parts(
    backbone: nn.Module, num_keypoints: int, featmap_names: Sequence[str]
) -> dict[str, nn.Module]:
    return {
        "keypoint_roi_pool": _pooler(featmap_names, 14),
        "keypoint_head": HeatmapKeypointNetwork(backbone.out_channels, num_keypoints),
        "keypoint_predictor": nn.Identity(),
    }


def mask_rcnn(
    backbone: nn.Module, num_classes: int, *, featmap_names: Sequence[str] = _FEATMAP_NAMES, **kwargs
) -> MaskRCNN:
    """Mask R-CNN with our pooler and mask network; the RoIs are aligned and sampled as in detectron2.

    Args:
        backbone: :class:`FPNBackbone` or any backbone of torchvision's detectors.
        num_classes: classes, the background among them.
        featmap_names: the backbone's maps that RoIs are pooled from, finest first.
        kwargs: other arguments of :class:`torchvision.models.detection.MaskRCNN`; components given here (box_head,
            mask_head, box_roi_pool, ...) take the place of ours.
    """
    parts = {
        **_box_parts(backbone, num_classes, featmap_names),
        **_mask_parts(backbone, num_classes, featmap_names),
    }
    return MaskRCNN(backbone, **{**parts, **kwargs})


def keypoint_rcnn(
    backbone: nn.Module,
    num_classes: int = 2,
    num_keypoints: int = 17,
    *,
    featmap_names: Sequence[str] = _FEATMAP_NAMES,
    **kwargs,
) -> KeypointRCNN:
    """Keypoint R-CNN with our pooler and keypoint network; arguments as of :func:`mask_rcnn`.

    Args:
        num_keypoints: keypoints of an object.
    """
    parts = {
        **_box_parts(backbone, num_classes, featmap_names),
        **_keypoint_parts(backbone, num_keypoints, featmap_names),
    }
    return KeypointRCNN(backbone, **{**parts, **kwargs})


def mask_keypoint_rcnn(
    backbone: nn.Module,
    num_classes: int,
    num_keypoints: int = 17,
    *,
    featmap_names: Sequence[str] = _FEATMAP_NAMES,
    **kwargs,
) -> MaskRCNN:
    """Boxes, masks and keypoints from one model; arguments as of :func:`mask_rcnn` and :func:`keypoint_rcnn`.

    Targets have both "masks" and "keypoints". An object of a class without keypoints has them all invisible
    and takes no part in the keypoint loss.
    """
    keypoint_parts = _keypoint_parts(backbone, num_keypoints, featmap_names)
    keypoint_parts = {name: kwargs.pop(name, part) for name, part in keypoint_parts.items()}
    model = mask_rcnn(backbone, num_classes, featmap_names=featmap_names, **kwargs)
    for name, part in keypoint_parts.items():
        setattr(model.roi_heads, name, part)
    return model
