"""What training compares with, made faster on the CPU: the same targets and samples as stock's."""

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torchvision.ops import roi_align

from ...accel import MethodStep, replace_method
from ...accel.fused_module import defines
from ...ops.box_matching import match_boxes
from ...ops.mask_cropping import can_crop_masks, crop_masks
from .detections import FastProposals

__all__ = ["IndexedBitMasks", "make_targets_fast"]


def make_targets_fast(model: GeneralizedRCNN) -> list[str]:
    """Lets a model match anchors without the matrix of all overlaps, find its proposals by one operator, and keep one
    copy of the bitmaps of its instances, however many proposals they are targets of. Returns what was done."""
    done = []
    generator = model.proposal_generator
    if defines(generator, RPN, "predict_proposals", "_decode_proposals"):
        replace_method(FastProposals(generator, "predict_proposals"))
        done.append("proposals")
    if defines(generator, RPN, "label_and_sample_anchors") and type(generator.anchor_matcher) is Matcher:
        replace_method(_AnchorTargets(generator, "label_and_sample_anchors"))
        done.append("anchors matched in blocks")
    if isinstance(model.roi_heads, ROIHeads):
        replace_method(_ProposalTargets(model.roi_heads, "label_and_sample_proposals"))
        done.append("bitmaps kept once")
    return done


class _AnchorTargets(MethodStep):
    """Of RPN."""

    @torch.no_grad()
    def __call__(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        rpn, anchors = self.module, Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for image in gt_instances:
            targets, labels = self._match(anchors.tensor, image.gt_boxes.tensor)
            if rpn.anchor_boundary_thresh >= 0:
                labels[~anchors.inside_box(image.image_size, rpn.anchor_boundary_thresh)] = -1
            all_labels.append(rpn._subsample_labels(labels))
            boxes = image.gt_boxes.tensor
            all_boxes.append(boxes[targets] if len(boxes) else torch.zeros_like(anchors.tensor))
        return all_labels, all_boxes

    def _match(self, anchors, boxes):
        """`Matcher`'s results, the (R,) int64 box of each anchor and its (R,) int8 label."""
        matcher = self.module.anchor_matcher
        if len(boxes) == 0:
            labels = torch.full((len(anchors),), matcher.labels[0], dtype=torch.int8, device=anchors.device)
            return torch.zeros_like(labels, dtype=torch.int64), labels
        matches = match_boxes(anchors, boxes)
        labels = torch.ones_like(matches.targets, dtype=torch.int8)
        for label, low, high in zip(
            matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True
        ):
            labels[(matches.overlaps >= low) & (matches.overlaps < high)] = label
        if matcher.allow_low_quality_matches:
            labels[matches.best] = 1
        return matches.targets, labels


class _ProposalTargets(MethodStep):
    """Of ROIHeads."""

    def __call__(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        return self.stock(proposals, [_with_indexed_masks(image) for image in targets])


def _with_indexed_masks(image):
    if not image.has("gt_masks") or type(image.gt_masks) is not BitMasks:
        return image
    fields = {**image.get_fields(), "gt_masks": IndexedBitMasks(image.gt_masks.tensor)}
    return Instances(image.image_size, **fields)


class IndexedBitMasks(BitMasks):
    """BitMasks of which one may be there many times, but is stored once.

    Args:
        masks: (G, H, W) bool.
        index: (R,) int64, which of them there are; None for all.
    """

    def __init__(self, masks: Tensor, index: Tensor | None = None):
        self._masks = masks
        self._index = torch.arange(len(masks), device=masks.device) if index is None else index
        self.image_size = tuple(masks.shape[1:])

    @property
    def tensor(self) -> Tensor:
        """(R, H, W) bool, made at every call."""
        return self._masks[self._index]

    @property
    def device(self) -> torch.device:
        return self._masks.device

    def to(self, *args, **kwargs) -> "IndexedBitMasks":
        masks = self._masks.to(*args, **kwargs)
        return IndexedBitMasks(masks, self._index.to(masks.device))

    def __getitem__(self, item: int | slice | Tensor) -> "IndexedBitMasks":
        index = self._index[item.to(self._index.device) if isinstance(item, Tensor) else item]
        return IndexedBitMasks(self._masks, index[None] if isinstance(item, int) else index)

    def __len__(self) -> int:
        return len(self._index)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Stock's result, bit for bit, of which each mask is taken to float32 within its box only."""
        if len(boxes) != len(self):
            raise ValueError(f"there must be a box for each of {len(self)} masks, got {len(boxes)}")
        height, width = self.image_size
        boxes = boxes.detach().to(self.device, torch.float32)
        if can_crop_masks(self._masks, boxes):
            return crop_masks(self._masks, self._index, boxes, mask_size)
        # The pixels that may be read, and one more on each side.
        limit = boxes.new_tensor([width, height])
        low = (torch.minimum(boxes[:, :2], boxes[:, 2:]).floor() - 2).clamp(min=0).minimum(limit)
        high = (torch.maximum(boxes[:, :2], boxes[:, 2:]).ceil() + 2).clamp(min=0).minimum(limit)
        regions = torch.cat([low, high], 1).int().tolist()
        image = torch.zeros(1, 1, height, width, device=self.device)
        crops = torch.zeros(len(boxes), mask_size, mask_size, device=self.device)
        for crop, index, box, (x0, y0, x1, y1) in zip(
            crops, self._index.tolist(), boxes, regions, strict=True
        ):
            image[0, 0, y0:y1, x0:x1] = self._masks[index, y0:y1, x0:x1]
            crop.copy_(roi_align(image, [box[None]], mask_size, 1.0, 0, aligned=True)[0, 0])
        return crops >= 0.5
