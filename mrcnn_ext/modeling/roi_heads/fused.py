"""detectron2's ROI heads over `FusedROIPooler`.

Only what a config builds differs. In a LazyConfig the pooler is an argument of its own: give the stock ROI
heads a `FusedROIPooler` there.
"""

import torch
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, Res5ROIHeads, StandardROIHeads

from ..poolers import FusedROIPooler

__all__ = ["FusedCascadeROIHeads", "FusedROIHeads", "FusedRes5ROIHeads"]

# argument of the ROI heads -> the section of cfg.MODEL that describes the pooler
_POOLERS = {
    "pooler": "ROI_BOX_HEAD",
    "box_pooler": "ROI_BOX_HEAD",
    "mask_pooler": "ROI_MASK_HEAD",
    "keypoint_pooler": "ROI_KEYPOINT_HEAD",
}


class _FusedPoolers:
    """Mixin before a stock ROI heads class: its from_config, with every pooler a FusedROIPooler."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        # The stock from_config builds poolers of its own, and knows fewer types than ours.
        stock_cfg = cfg.clone()
        stock_cfg.defrost()
        for section in set(_POOLERS.values()):
            if stock_cfg.MODEL[section].POOLER_TYPE:  # "" means no pooler for the mask and keypoint heads
                stock_cfg.MODEL[section].POOLER_TYPE = "ROIAlignV2"
        ret = super().from_config(stock_cfg, input_shape)
        scales = [1.0 / input_shape[name].stride for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
        for argument, section in _POOLERS.items():
            if ret.get(argument) is not None:
                head = cfg.MODEL[section]
                ret[argument] = FusedROIPooler(
                    head.POOLER_RESOLUTION, scales, head.POOLER_SAMPLING_RATIO, head.POOLER_TYPE
                )
        return ret


@ROI_HEADS_REGISTRY.register()
class FusedROIHeads(_FusedPoolers, StandardROIHeads):
    """StandardROIHeads (boxes, masks and keypoints, each with its pooler and head) over `FusedROIPooler`."""

    # detectron2 annotates StandardROIHeads so when it scripts a model, and TorchScript reads one class alone.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]


@ROI_HEADS_REGISTRY.register()
class FusedCascadeROIHeads(_FusedPoolers, CascadeROIHeads):
    """CascadeROIHeads (Cascade R-CNN's box stages, then masks and keypoints) over `FusedROIPooler`."""


@ROI_HEADS_REGISTRY.register()
class FusedRes5ROIHeads(_FusedPoolers, Res5ROIHeads):
    """Res5ROIHeads (the C4 model: a ResNet's last stage on every RoI) over `FusedROIPooler`.

    The stage is built from MODEL.RESNETS, for features of 4 x RES2_OUT_CHANNELS channels; set
    RES2_OUT_CHANNELS to a quarter of the channels of another backbone.
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        res2_channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
        if channels != 4 * res2_channels:
            raise ValueError(
                f"MODEL.RESNETS.RES2_OUT_CHANNELS is {res2_channels}, so the RoI stage takes "
                f"{4 * res2_channels} channels, and the backbone gives {channels}: set it to {channels // 4}"
            )
        return super().from_config(cfg, input_shape)
