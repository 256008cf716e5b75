"""detectron2's ROI heads over `FusedROIPooler`, for boxes, masks and keypoints together.

By default they compute what detectron2's do. In a LazyConfig the pooler is an argument of its own: stock ROI heads
take a `FusedROIPooler` there too.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
    build_keypoint_head,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.roi_heads import select_proposals_with_visible_keypoints
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ...layers.boxes import scaled_boxes
from ..keypoint_head import KeypointHead
from ..poolers import FusedROIPooler
from .keypoint_rois import keypoints_in_boxes, sample_keypoint_rois

__all__ = ["FusedCascadeROIHeads", "FusedROIHeads", "FusedRes5ROIHeads"]

# argument of the ROI heads -> the section of cfg.MODEL that describes the pooler
_POOLERS = {
    "pooler": "ROI_BOX_HEAD",
    "box_pooler": "ROI_BOX_HEAD",
    "mask_pooler": "ROI_MASK_HEAD",
    "keypoint_pooler": "ROI_KEYPOINT_HEAD",
}


class _FusedHeads:
    """Mixin before a stock ROI heads class: its from_config with every pooler a FusedROIPooler and every loss
    weighted, and the choice of the keypoint head's RoIs.

    Args:
        keypoint_samples_per_image: train the keypoint head on so many RoIs of each image at most, sampled among
            all proposals that fit an object with keypoints. 0, detectron2's way, takes those of the box head's
            positives that have keypoints.
        keypoint_box_scale: sides of the keypoint head's RoI over those of the box. Above 1 it finds keypoints
            which the box cuts off, and sees their surroundings.
        kwargs: those of the stock class.

    Raises:
        ValueError: ``keypoint_samples_per_image`` below 0, or ``keypoint_box_scale`` not above 0.
    """

    @configurable
    def __init__(self, *, keypoint_samples_per_image: int = 0, keypoint_box_scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        if keypoint_samples_per_image < 0:
            raise ValueError(
                f"keypoint_samples_per_image must be 0 or more, got {keypoint_samples_per_image}"
            )
        if keypoint_box_scale <= 0:
            raise ValueError(f"keypoint_box_scale must be above 0, got {keypoint_box_scale}")
        self.keypoint_samples_per_image = keypoint_samples_per_image
        self.keypoint_box_scale = float(keypoint_box_scale)
        self._tell_scale(kwargs.get("keypoint_head"))

    def _tell_scale(self, keypoint_head):
        if isinstance(keypoint_head, KeypointHead):
            keypoint_head.roi_scale = self.keypoint_box_scale

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
        # Those below are not among detectron2's own keys: a config made without add_mrcnn_ext_config works too.
        for predictor in ret["box_predictors"] if "box_predictors" in ret else [ret["box_predictor"]]:
            predictor.loss_weight["loss_cls"] = cfg.MODEL.ROI_BOX_HEAD.get("CLS_LOSS_WEIGHT", 1.0)
        _weight_stock_mask_head(ret.get("mask_head"), cfg)
        keypoint = cfg.MODEL.ROI_KEYPOINT_HEAD
        ret["keypoint_samples_per_image"] = keypoint.get("SAMPLES_PER_IMAGE", 0)
        ret["keypoint_box_scale"] = keypoint.get("BOX_SCALE", 1.0)
        return ret

    def _sample_keypoint_rois(self, proposals, targets):
        """The keypoint head's own RoIs, or None where it shares those of the box head."""
        if not self.keypoint_on or self.keypoint_samples_per_image == 0:
            return None
        return sample_keypoint_rois(
            proposals,
            targets,
            self.proposal_matcher,
            self.keypoint_samples_per_image,
            self.proposal_append_gt,
        )

    def _with_scaled_boxes(self, proposals):
        """The proposals, their boxes as the keypoint head's RoIs."""
        if self.keypoint_box_scale == 1:
            return proposals
        scaled = [Instances(image.image_size, **image.get_fields()) for image in proposals]
        for image in scaled:
            image.proposal_boxes = Boxes(scaled_boxes(image.proposal_boxes.tensor, self.keypoint_box_scale))
        return scaled


class _JointHeads(_FusedHeads):
    """Mixin for ROI heads with a pooler per head. The mask and the keypoint head pool once where their poolers
    are equal and their RoIs the same: all of them at inference; in training those with keypoints are among the
    foreground, unless sampled apart or scaled."""

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pools_once = (
            self.mask_on
            and self.keypoint_on
            and self.keypoint_box_scale == 1
            # A subclass may have a branch of its own.
            and type(self)._forward_mask is StandardROIHeads._forward_mask
            and type(self)._forward_keypoint is _JointHeads._forward_keypoint
            and list(self.mask_in_features) == list(self.keypoint_in_features)
            and _equal_poolers(self.mask_pooler, self.keypoint_pooler)
        )

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As detectron2's."""
        if self.training:
            assert targets, "'targets' argument is required during training"
            keypoint_rois = self._sample_keypoint_rois(proposals, targets)
            proposals = self.label_and_sample_proposals(proposals, targets)
            losses = self._box_losses(features, proposals, targets)
            if keypoint_rois is not None and self.train_on_pred_boxes:
                self._move_to_predictions(features, keypoint_rois)
            if self.pools_once and keypoint_rois is None:
                losses.update(self._mask_and_keypoint_losses(features, proposals))
            else:
                losses.update(self._forward_mask(features, proposals))
                losses.update(
                    self._forward_keypoint(features, proposals if keypoint_rois is None else keypoint_rois)
                )
            return proposals, losses
        instances = self._forward_box(features, proposals)
        return self.forward_with_given_boxes(features, instances), {}

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """As detectron2's: masks and keypoints for instances with ``pred_boxes`` and ``pred_classes``."""
        # Test-time augmentation switches heads off.
        if self.pools_once and self.mask_on and self.keypoint_on:
            maps = [features[f] for f in self.mask_in_features]
            pooled = self.mask_pooler(maps, [x.pred_boxes for x in instances])
            instances = self.mask_head(pooled, instances)
            return self.keypoint_head(pooled, instances)
        instances = self._forward_mask(features, instances)
        return self._forward_keypoint(features, instances)

    def _mask_and_keypoint_losses(self, features, proposals):
        foreground, _ = select_foreground_proposals(proposals, self.num_classes)
        maps = [features[f] for f in self.mask_in_features]
        pooled = self.mask_pooler(maps, [image.proposal_boxes for image in foreground])
        rows, rois = _with_keypoints(foreground)
        return {**self.mask_head(pooled, foreground), **self.keypoint_head(pooled[rows], rois)}

    def _forward_keypoint(self, features: dict[str, Tensor], instances: list[Instances]):
        """As detectron2's, on RoIs ``keypoint_box_scale`` times as large as the boxes."""
        if not self.keypoint_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(self._with_scaled_boxes(instances), self.num_classes)
            instances = select_proposals_with_visible_keypoints(instances)
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        rois = boxes
        if not self.training and self.keypoint_box_scale != 1.0:
            rois = [Boxes(scaled_boxes(b.tensor, self.keypoint_box_scale)) for b in boxes]
            for i, x in enumerate(instances):
                x.pred_boxes = rois[i]
        if self.keypoint_pooler is not None:
            result = self.keypoint_head(
                self.keypoint_pooler([features[f] for f in self.keypoint_in_features], rois), instances
            )
        else:
            result = self.keypoint_head({f: features[f] for f in self.keypoint_in_features}, instances)
        if not self.training:
            for i, x in enumerate(instances):
                x.pred_boxes = boxes[i]
        return result


@ROI_HEADS_REGISTRY.register()
class FusedROIHeads(_JointHeads, StandardROIHeads):
    """StandardROIHeads (boxes, masks and keypoints, each with its pooler and head) over `FusedROIPooler`."""

    # detectron2 annotates StandardROIHeads so when it scripts a model, and TorchScript reads one class alone.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]
    pools_once: torch.jit.Final[bool]

    def _box_losses(self, features, proposals, targets):
        return self._forward_box(features, proposals)  # it moves the proposals for train_on_pred_boxes

    @torch.no_grad()
    def _move_to_predictions(self, features, proposals):
        """Puts the box head's predictions in the place of ``proposal_boxes``."""
        maps = [features[f] for f in self.box_in_features]
        pooled = self.box_pooler(maps, [image.proposal_boxes for image in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
        for image, predicted in zip(proposals, boxes, strict=True):
            image.proposal_boxes = Boxes(predicted)


@ROI_HEADS_REGISTRY.register()
class FusedCascadeROIHeads(_JointHeads, CascadeROIHeads):
    """CascadeROIHeads (Cascade R-CNN's box stages, then masks and keypoints) over `FusedROIPooler`.

    ``train_on_pred_boxes``, which detectron2's ignores, trains masks and keypoints on the last stage's boxes.
    """

    def _box_losses(self, features, proposals, targets):
        losses = self._forward_box(features, proposals, targets)
        if self.train_on_pred_boxes:
            self._move_to_predictions(features, proposals)
        return losses

    @torch.no_grad()
    def _move_to_predictions(self, features, proposals):
        """Puts the last stage's predictions in the place of ``proposal_boxes``."""
        maps = [features[f] for f in self.box_in_features]
        for stage in range(self.num_cascade_stages):
            predictions = self._run_stage(maps, proposals, stage)
            boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
            for image, predicted in zip(proposals, boxes, strict=True):
                image.proposal_boxes = Boxes(predicted)
                image.proposal_boxes.clip(image.image_size)


@ROI_HEADS_REGISTRY.register()
class FusedRes5ROIHeads(_FusedHeads, Res5ROIHeads):
    """Res5ROIHeads (the C4 model: a ResNet's last stage on every RoI) over `FusedROIPooler`, with keypoints.

    Masks and keypoints of an image are predicted from the same RoI features, pooled once and taken through the
    stage once, unless ``keypoint_box_scale`` or, in training, ``keypoint_samples_per_image`` asks for others.

    The stage is built from MODEL.RESNETS, for features of 4 x RES2_OUT_CHANNELS channels; set
    RES2_OUT_CHANNELS to a quarter of the channels of another backbone.

    Args:
        keypoint_head: from the stage's features to keypoints; None for none.
        kwargs: those of Res5ROIHeads, and those above.
    """

    @configurable
    def __init__(self, *, keypoint_head=None, **kwargs):
        super().__init__(**kwargs)
        self.keypoint_on = keypoint_head is not None
        if self.keypoint_on:
            self.keypoint_head = keypoint_head
            self._tell_scale(keypoint_head)

    @classmethod
    def from_config(cls, cfg, input_shape):
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        res2_channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
        if channels != 4 * res2_channels:
            raise ValueError(
                f"MODEL.RESNETS.RES2_OUT_CHANNELS is {res2_channels}, so the RoI stage takes "
                f"{4 * res2_channels} channels, and the backbone gives {channels}: set it to {channels // 4}"
            )
        # The stock from_config refuses keypoints, and says twice their size of the features for the masks.
        boxes_only = cfg.clone()
        boxes_only.defrost()
        boxes_only.MODEL.MASK_ON = boxes_only.MODEL.KEYPOINT_ON = False
        ret = super().from_config(boxes_only, input_shape)
        side = (cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION + 1) // 2  # the stage has stride 2
        shape = ShapeSpec(channels=8 * res2_channels, height=side, width=side)
        if cfg.MODEL.MASK_ON:
            ret["mask_head"] = build_mask_head(cfg, shape)
            _weight_stock_mask_head(ret["mask_head"], cfg)
        if cfg.MODEL.KEYPOINT_ON:
            ret["keypoint_head"] = build_keypoint_head(cfg, shape)
        return ret

    def forward(self, images, features, proposals, targets=None):
        """As detectron2's."""
        if not (self.training and self.keypoint_on):
            return super().forward(images, features, proposals, targets)
        maps = [features[f] for f in self.in_features]
        rois = self._sample_keypoint_rois(proposals, targets)
        proposals = self.label_and_sample_proposals(proposals, targets)
        x = self._shared_roi_transform(maps, [image.proposal_boxes for image in proposals])
        losses = self.box_predictor.losses(self.box_predictor(x.mean(dim=[2, 3])), proposals)
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        x = x[torch.cat(masks)]
        if self.mask_on:
            losses.update(self.mask_head(x, foreground))
        if rois is None and self.keypoint_box_scale == 1:
            rows, rois = _with_keypoints(foreground)
            x = x[rows]
        else:
            rois = self._with_scaled_boxes(foreground if rois is None else rois)
            _, rois = _with_keypoints(rois)
            x = self._shared_roi_transform(maps, [image.proposal_boxes for image in rois])
        losses.update(self.keypoint_head(x, rois))
        return [], losses

    def forward_with_given_boxes(self, features, instances):
        """As detectron2's: masks and keypoints for instances with ``pred_boxes`` and ``pred_classes``."""
        maps = [features[f] for f in self.in_features]
        boxes = [image.pred_boxes for image in instances]
        pools_once = self.keypoint_box_scale == 1
        if self.mask_on or (self.keypoint_on and pools_once):
            x = self._shared_roi_transform(maps, boxes)
        if self.mask_on:
            instances = self.mask_head(x, instances)
        if self.keypoint_on:
            if not pools_once:
                for image in instances:
                    image.pred_boxes = Boxes(scaled_boxes(image.pred_boxes.tensor, self.keypoint_box_scale))
                x = self._shared_roi_transform(maps, [image.pred_boxes for image in instances])
            instances = self.keypoint_head(x, instances)
            for image, original in zip(instances, boxes, strict=True):
                image.pred_boxes = original
        return instances


def _with_keypoints(foreground: list[Instances]) -> tuple[Tensor, list[Instances]]:
    """Foreground RoIs with a labelled keypoint in their box: rows among those of all images, and per image."""
    masks = [
        keypoints_in_boxes(image.gt_keypoints.tensor, image.proposal_boxes.tensor)
        if len(image) > 0  # images without objects have no gt_keypoints
        else torch.zeros(0, dtype=torch.bool, device=image.proposal_boxes.device)
        for image in foreground
    ]
    rows = torch.cat(masks).nonzero()[:, 0]
    get_event_storage().put_scalar("keypoint_head/num_fg_samples", len(rows) / len(masks))
    return rows, [image[mask] for image, mask in zip(foreground, masks, strict=True)]


def _weight_stock_mask_head(head, cfg) -> None:
    if type(head) is MaskRCNNConvUpsampleHead:  # it does not read the key; ours do
        head.loss_weight = cfg.MODEL.ROI_MASK_HEAD.get("LOSS_WEIGHT", 1.0)


def _equal_poolers(a, b) -> bool:
    if not (isinstance(a, FusedROIPooler) and isinstance(b, FusedROIPooler)):
        return False
    names = (
        *("output_size", "scales", "sampling_ratio", "pooler_type"),
        *("canonical_box_size", "canonical_level"),
    )
    return all(getattr(a, name) == getattr(b, name) for name in names)
