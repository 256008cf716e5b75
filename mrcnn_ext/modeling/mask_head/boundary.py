"""A mask head that looks for the mask's boundary too, for detectron2."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from torch import Tensor

from ...accel import KernelPolicy, fuse_traced, replace_method
from ...accel.fused_module import defines
from ...config import with_defaults
from ...layers.mask_losses import boundary_loss, mask_boundaries
from ...layers.mask_networks import BoundaryMaskNetwork
from ..fuse_rules.heads import PredictedClassMethod, predicted_class_tail
from ..norms import norm_maker
from ..shapes import pooled_size
from .base import MaskHead, MaskTargets

__all__ = ["BoundaryMaskHead"]


@ROI_MASK_HEAD_REGISTRY.register()
class BoundaryMaskHead(MaskHead):
    """`BoundaryMaskNetwork` with detectron2's mask loss and inference, and ``loss_mask_boundary`` beside
    ``loss_mask`` (Cheng et al., Boundary-preserving Mask R-CNN, ECCV 2020).

    Takes features of twice the resolution of an FCN head's: pooled to 28 for masks of 28 by one transposed
    convolution.

    Args:
        input_shape: of the pooled features.
        num_classes: masks per RoI; 1 for class-agnostic masks.
        conv_dims: output channels of each 3x3 convolution of the mask branch and, last, of the transposed
            convolutions.
        conv_norm: normalisation of the 3x3 convolutions: a name of detectron2's get_norm ("" for none, "BN",
            "GN", "SyncBN", ...) or a callable that makes the layer from a channel count.
        num_boundary_conv: 3x3 convolutions of the boundary branch.
        num_deconv: transposed convolutions; each doubles the side of the masks.
        boundary_loss_weight: factor of ``loss_mask_boundary``.
        kwargs: ``activation``, ``loss_weight`` and ``vis_period`` of `MaskHead`.

    Raises:
        ValueError: pooled features of odd height or width, or ``input_shape`` has none.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims,
        conv_norm="",
        num_boundary_conv: int = 2,
        num_deconv: int = 1,
        boundary_loss_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(num_classes=num_classes, **kwargs)
        height, width = pooled_size(type(self).__name__, input_shape)
        if height % 2 or width % 2:
            raise ValueError(
                "BoundaryMaskHead takes pooled features of even height and width, got "
                f"{height} x {width}: set POOLER_RESOLUTION to 28, in "
                "MODEL.ROI_MASK_HEAD or, for a C4 model, in MODEL.ROI_BOX_HEAD"
            )
        norm = norm_maker(conv_norm)
        self.network = BoundaryMaskNetwork(
            input_shape.channels, self.num_maps, list(conv_dims), norm, num_boundary_conv, num_deconv
        )
        self.boundary_loss_weight = boundary_loss_weight

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
            "num_boundary_conv": head.NUM_BOUNDARY_CONV,
            "num_deconv": head.NUM_DECONV,
            "boundary_loss_weight": head.BOUNDARY_LOSS_WEIGHT,
        }

    def layers(self, x):
        """Logits of the masks and, in training, of the boundaries, the last map."""
        if self.training:
            masks, boundaries = self.network(x)
            return torch.cat([masks, boundaries], dim=1)
        else:
            mask, _ = self.network.features(x)
            return self.network.predictor(self.network.mask_up(mask))

    @torch.jit.unused
    def fuse(self, policy: KernelPolicy) -> "BoundaryMaskHead | None":
        fused = super().fuse(policy)
        unchanged = defines(self, BoundaryMaskHead, "forward", "layers", "predict", "inference")
        if fused is None or not unchanged or self.softmax:
            return fused
        tail = predicted_class_tail([*self.network.mask_up, self.network.predictor], policy)
        if tail is not None and len(self.network.mask_up) == 2:
            fuse_traced(self.network, policy, "features")
            replace_method(PredictedClassMethod(self, "predict", [_MaskFeatures(self.network)], tail))
        return fused

    def losses(self, logits: Tensor, targets: MaskTargets) -> dict[str, Tensor]:
        losses = super().losses(logits[:, :-1], targets)
        boundaries = logits[:, -1]
        if len(targets) == 0:
            losses["loss_mask_boundary"] = boundaries.sum() * 0
        else:
            loss = boundary_loss(boundaries, mask_boundaries(targets.masks))
            losses["loss_mask_boundary"] = loss * targets.share * self.boundary_loss_weight
        return losses


class _MaskFeatures:
    """From RoI features to those that the masks are made from."""

    def __init__(self, network: BoundaryMaskNetwork):
        self.network = network

    def __call__(self, x: Tensor) -> Tensor:
        return self.network.features(x)[0]
