"""What the mask heads share: targets, losses, metrics and inference."""

import torch
from detectron2.layers import cat
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, mask_rcnn_inference
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ...accel import KernelPolicy, replace_method
from ...accel.fused_module import defines
from ...config import with_defaults
from ...layers.loss_normalizers import share_of_mean
from ...layers.mask_losses import mask_log_odds, mask_sigmoid_loss, mask_softmax_loss
from ..fuse_rules.heads import PredictedClassMethod, fuse_layers, predicted_class_tail

__all__ = ["MaskHead", "MaskTargets", "SequentialMaskHead"]

_ACTIVATIONS = ("sigmoid", "softmax")


class MaskTargets:
    """The ground truth of the R RoIs that a mask head trains on.

    Args:
        instances: of each image, with ``proposal_boxes``, ``gt_boxes``, ``gt_classes`` and ``gt_masks``.
        size: side of the masks, m.
        device: of the attributes.

    Attributes:
        instances: those of the images that have any.
        classes: (R,) int64 in [0, K).
        masks: (R, m, m) float32, 0 or 1: the object within the RoI.
        share: factor of a mean over the RoIs; see `share_of_mean`.
    """

    def __init__(self, instances: list[Instances], size: int, device: torch.device):
        self.instances = [image for image in instances if len(image)]
        self.classes = torch.zeros(0, dtype=torch.int64, device=device)
        self.masks = torch.zeros(0, size, size, device=device)
        if self.instances:
            self.classes = cat([image.gt_classes for image in self.instances]).long()
            masks = [
                image.gt_masks.crop_and_resize(image.proposal_boxes.tensor, size).to(device)
                for image in self.instances
            ]
            self.masks = (cat(masks) > 0.5).float()
        self.share = share_of_mean(len(self), device)

    def __len__(self) -> int:
        return len(self.classes)

    def whole_areas(self) -> Tensor:
        """(R,) area of each whole object, within the RoI and outside, in pixels of ``masks``."""
        size, areas = self.masks.shape[-1], []
        for image in self.instances:
            whole = image.gt_masks.crop_and_resize(image.gt_boxes.tensor, size)
            ratio = image.gt_boxes.area() / image.proposal_boxes.area().clamp(min=1e-6)
            areas.append(whole.float().sum(dim=(1, 2)).to(ratio.device) * ratio)
        return cat(areas).to(self.masks.device)


class MaskHead(BaseMaskRCNNHead):
    """detectron2's mask head with a choice of what the logits stand for. A subclass defines ``layers``.

    Args:
        num_classes: masks per RoI, K; 1 for class-agnostic masks.
        activation: "sigmoid", each class has a mask of its own; or "softmax", each pixel is of one class or of
            the background (Mask R-CNN, table 2b). With class-agnostic masks the two can tell the same.
        loss_weight: factor of ``loss_mask``.
        vis_period: iterations between pictures of training masks in the event storage; 0 for none.

    Attributes:
        num_maps: logits per pixel that ``layers`` has to give: K, and for a softmax the background's, last.

    Raises:
        ValueError: an unknown ``activation``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        activation: str = "sigmoid",
        loss_weight: float = 1.0,
        vis_period: int = 0,
    ):
        super().__init__(loss_weight=loss_weight, vis_period=vis_period)
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation (MODEL.ROI_MASK_HEAD.ACTIVATION) must be one of {_ACTIVATIONS}, got {activation!r}"
            )
        self.softmax = activation == "softmax"
        self.num_maps = num_classes + int(self.softmax)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "activation": head.ACTIVATION,
            "loss_weight": head.LOSS_WEIGHT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, x, instances: list[Instances]):
        if self.training:
            x = self.layers(x)
            return self.losses(x, MaskTargets(instances, x.shape[-1], x.device))
        else:
            return self.predict(x, instances)

    def predict(self, x, instances: list[Instances]) -> list[Instances]:
        """Gives instances with ``pred_classes`` their ``pred_masks``, from the features of their RoIs."""
        self.inference(self.layers(x), instances)
        return instances

    @torch.jit.unused
    def fuse(self, policy: KernelPolicy) -> "MaskHead | None":
        """As a rule of `mrcnn_ext.accel` does: ``layers`` as `torch.fx` follows them; and where each class has masks of
        its own, only those of the predicted class are computed."""
        return fuse_layers(self, policy)

    def losses(self, logits: Tensor, targets: MaskTargets) -> dict[str, Tensor]:
        """The losses of what ``layers`` gave, (R, num_maps, m, m); metrics and pictures go to the event storage.

        Without RoIs they are zeros with a gradient.
        """
        if len(targets) == 0:
            return {"loss_mask": logits.sum() * 0}
        with torch.no_grad():
            _store(self.log_odds(logits, targets.classes), targets.masks, self.vis_period)
        loss = mask_softmax_loss if self.softmax else mask_sigmoid_loss
        return {"loss_mask": loss(logits, targets.classes, targets.masks) * targets.share * self.loss_weight}

    def log_odds(self, logits: Tensor, classes: Tensor) -> Tensor:
        """(R, m, m) log-odds of the given class of each RoI, from what ``layers`` gave; maps after the first
        num_maps are a subclass's own."""
        return mask_log_odds(logits[:, : self.num_maps], classes, self.softmax)

    def inference(self, logits: Tensor, instances: list[Instances]) -> None:
        """Gives each instance the probabilities of its class within its box, ``pred_masks`` (N, 1, m, m)."""
        if self.softmax:
            classes = cat([image.pred_classes for image in instances])
            # As a single map, which detectron2 takes for class-agnostic.
            logits = self.log_odds(logits, classes)[:, None]
        mask_rcnn_inference(logits, instances)


class SequentialMaskHead(MaskHead, nn.Sequential):
    """A mask head that takes over the layers of a network, whose parameters are then named as there."""

    @torch.jit.unused
    def fuse(self, policy: KernelPolicy) -> "SequentialMaskHead | None":
        fused = super().fuse(policy)
        unchanged = defines(self, SequentialMaskHead, "forward", "layers", "predict", "inference")
        if fused is not None and unchanged and not self.softmax:
            tail = predicted_class_tail(list(self), policy)
            if tail is not None:
                replace_method(PredictedClassMethod(self, "predict", list(self)[:-3], tail))
        return fused

    def take_layers(self, network: nn.Sequential) -> None:
        for name, layer in network.named_children():
            self.add_module(name, layer)

    def layers(self, x):
        for layer in self:
            x = layer(x)
        return x


def _store(log_odds: Tensor, masks: Tensor, vis_period: int) -> None:
    """detectron2's metrics and pictures of R masks (R, m, m) against their ground truth."""
    storage = get_event_storage()
    is_object = masks > 0.5
    wrong = (log_odds > 0) != is_object
    objects = is_object.sum().item()
    storage.put_scalar("mask_rcnn/accuracy", 1 - wrong.sum().item() / wrong.numel())
    storage.put_scalar(
        "mask_rcnn/false_positive", (wrong & ~is_object).sum().item() / max(wrong.numel() - objects, 1.0)
    )
    storage.put_scalar("mask_rcnn/false_negative", (wrong & is_object).sum().item() / max(objects, 1.0))
    if vis_period > 0 and storage.iter % vis_period == 0:
        pairs = torch.cat([log_odds.sigmoid(), masks], dim=2)
        for index, pair in enumerate(pairs):
            storage.put_image(
                f"Left: mask prediction;   Right: mask GT ({index})", pair.float().expand(3, -1, -1)
            )
