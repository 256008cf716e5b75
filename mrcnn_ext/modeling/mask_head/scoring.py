"""A mask head that tells how good its masks are, for detectron2."""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from ...accel import KernelPolicy, fuse, replace_child
from ...config import with_defaults
from ...layers.mask_iou_network import MaskIoUNetwork
from ...layers.mask_losses import mask_iou_targets
from ..shapes import pooled_size
from .base import MaskHead, MaskTargets

__all__ = ["MaskScoringHead"]


@ROI_MASK_HEAD_REGISTRY.register()
class MaskScoringHead(BaseMaskRCNNHead):
    """A mask head with a `MaskIoUNetwork` that predicts the IoU of its masks (Huang et al., Mask Scoring R-CNN,
    CVPR 2019).

    Trains with ``loss_mask_iou`` beside the mask head's losses. At inference instances have ``mask_scores``
    beside ``pred_masks``: the score of the box times the predicted IoU. `mrcnn_ext.evaluation.COCOEvaluator` ranks
    masks by them, and boxes and keypoints by ``scores`` as ever. detectron2's own evaluator does not know them and
    ranks masks by ``scores`` too.

    Weights of a model with the mask head alone load into it.

    Args:
        mask_head: predicts the masks; any of this package.
        mask_iou: of the pooled features' size and the number of classes.
        loss_weight: factor of ``loss_mask_iou``.

    Raises:
        TypeError: ``mask_head`` is not one of this package.
    """

    @configurable
    def __init__(self, *, mask_head: MaskHead, mask_iou: MaskIoUNetwork, loss_weight: float = 1.0):
        super().__init__(loss_weight=loss_weight)
        if not isinstance(mask_head, MaskHead):
            raise TypeError(
                "mask_head (MODEL.ROI_MASK_HEAD.MASK_IOU.MASK_HEAD) must be a mask head of mrcnn_ext, such as "
                f"FCNMaskHead, got {type(mask_head).__name__}"
            )
        self.mask_head = mask_head
        self.mask_iou = mask_iou
        self.register_load_state_dict_pre_hook(_move_into_mask_head)

    @classmethod
    def from_config(cls, cfg, input_shape):
        options = with_defaults(cfg).MODEL.ROI_MASK_HEAD.MASK_IOU
        mask_head = ROI_MASK_HEAD_REGISTRY.get(options.MASK_HEAD)
        return {
            # Not itself, which would never end.
            "mask_head": None if issubclass(mask_head, cls) else mask_head(cfg, input_shape),
            "mask_iou": MaskIoUNetwork(
                (input_shape.channels, *pooled_size(cls.__name__, input_shape)),
                cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                [options.CONV_DIM] * options.NUM_CONV,
                [options.FC_DIM] * options.NUM_FC,
            ),
            "loss_weight": options.LOSS_WEIGHT,
        }

    def layers(self, x):
        return self.mask_head.layers(x)

    def forward(self, x, instances: list[Instances]):
        if self.training:
            logits = self.layers(x)
            targets = MaskTargets(instances, logits.shape[-1], logits.device)
            losses = self.mask_head.losses(logits, targets)
            losses["loss_mask_iou"] = self._iou_loss(x, logits, targets) * targets.share * self.loss_weight
            return losses
        else:
            self.mask_head.predict(x, instances)
            masks = cat([image.pred_masks for image in instances])
            classes = cat([image.pred_classes for image in instances])
            ious = self.mask_iou(x, masks).gather(1, classes[:, None])[:, 0].clamp(0, 1)
            for index, iou in enumerate(ious.split([len(image) for image in instances])):
                image = instances[index]
                # Boxes that a user gives have no scores.
                image.mask_scores = iou * image.scores if image.has("scores") else iou
            return instances

    @torch.jit.unused
    def fuse(self, policy: KernelPolicy) -> "MaskScoringHead":
        """As a rule of `mrcnn_ext.accel` does: the head within and the network that judges its masks."""
        for name in ("mask_head", "mask_iou"):
            fused = fuse(getattr(self, name), policy)
            if fused is not None:
                replace_child(self, name, fused)
        self.mask_iou.float32 = True
        return self

    def _iou_loss(self, x: Tensor, logits: Tensor, targets: MaskTargets) -> Tensor:
        """Mean squared error of the IoU of each RoI's own class."""
        # The masks are judged, not improved: no gradient reaches them from here.
        log_odds = self.mask_head.log_odds(logits.detach(), targets.classes)
        ious = self.mask_iou(x, log_odds.sigmoid()[:, None])
        if len(targets) == 0:
            return ious.sum() * 0
        truth = mask_iou_targets(log_odds > 0, targets.masks, targets.whole_areas())
        return F.mse_loss(ious.gather(1, targets.classes[:, None])[:, 0].to(truth.dtype), truth)


def _move_into_mask_head(module, state_dict, prefix, *_):
    """Weights of the mask head alone become those of the mask head within."""
    own = (f"{prefix}mask_head.", f"{prefix}mask_iou.")
    for key in [key for key in state_dict if key.startswith(prefix) and not key.startswith(own)]:
        state_dict[f"{prefix}mask_head.{key.removeprefix(prefix)}"] = state_dict.pop(key)
