"""detectron2's ROI heads over `FusedROIPooler`, for boxes, masks and keypoints together.

By default they compute what detectron2's do. In a LazyConfig the pooler is an argument of its own: stock ROI heads
take a `FusedROIPooler` there too.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
    build_box_head,
    build_keypoint_head,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.roi_heads import select_proposals_with_visible_keypoints
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ...config import with_defaults
from ...layers.boxes import scaled_boxes
from ..box_head import HingeOutputLayers
from ..keypoint_head import KeypointHead
from ..poolers import FusedROIPooler
from .keypoint_rois import enlarge_boxes, keypoints_in_boxes, put_back_boxes, sample_keypoint_rois

__all__ = ["FusedCascadeROIHeads", "FusedRes5ROIHeads", "FusedROIHeads", "build_box_predictor"]

_CLASSIFIERS = {"softmax": FastRCNNOutputLayers, "hinge": HingeOutputLayers}


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

    @classmethod
    def from_config(cls, cfg, input_shape):
        keypoint = with_defaults(cfg).MODEL.ROI_KEYPOINT_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "keypoint_samples_per_image": keypoint.SAMPLES_PER_IMAGE,
            "keypoint_box_scale": keypoint.BOX_SCALE,
        }

    def _find_keypoints(self, x: Tensor, instances: list[Instances]):
        """What the keypoint head gives for the features of its RoIs."""
        if self.tells_box_scale:
            return self.keypoint_head(x, instances, self.keypoint_box_scale)
        else:
            return self.keypoint_head(x, instances)

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
        self.tells_box_scale = self.keypoint_on and isinstance(self.keypoint_head, KeypointHead)
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

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        if not cfg.MODEL.MASK_ON:
            return {}
        pooler, shape = _pooler_and_shape(cfg, "ROI_MASK_HEAD", input_shape)
        return {
            "mask_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "mask_pooler": pooler,
            "mask_head": _build_mask_head(cfg, shape),
        }

    @classmethod
    def _init_keypoint_head(cls, cfg, input_shape):
        if not cfg.MODEL.KEYPOINT_ON:
            return {}
        pooler, shape = _pooler_and_shape(cfg, "ROI_KEYPOINT_HEAD", input_shape)
        return {
            "keypoint_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "keypoint_pooler": pooler,
            "keypoint_head": build_keypoint_head(cfg, shape),
        }

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
            return self._find_keypoints(pooled, instances)
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
        if not self.training:
            boxes = enlarge_boxes(instances, self.keypoint_box_scale)
            rois = [x.pred_boxes for x in instances]
        if self.keypoint_pooler is not None:
            maps = [features[f] for f in self.keypoint_in_features]
            result = self._find_keypoints(self.keypoint_pooler(maps, rois), instances)
        else:
            result = self._find_keypoints({f: features[f] for f in self.keypoint_in_features}, instances)
        if not self.training:
            put_back_boxes(instances, boxes)
        return result


@ROI_HEADS_REGISTRY.register()
class FusedROIHeads(_JointHeads, StandardROIHeads):
    """StandardROIHeads (boxes, masks and keypoints, each with its pooler and head) over `FusedROIPooler`."""

    # detectron2 annotates StandardROIHeads so when it scripts a model, and TorchScript reads one class alone.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]
    pools_once: torch.jit.Final[bool]
    tells_box_scale: torch.jit.Final[bool]
    takes_padding = True  # see `mrcnn_ext.accel.padding`

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        pooler, shape = _pooler_and_shape(cfg, "ROI_BOX_HEAD", input_shape)
        box_head = build_box_head(cfg, shape)
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": build_box_predictor(cfg, box_head.output_shape),
        }

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

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        overlaps = cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        if len(weights) != len(overlaps):
            raise ValueError(
                "MODEL.ROI_BOX_CASCADE_HEAD needs one of BBOX_REG_WEIGHTS for each of IOUS, got "
                f"{len(weights)} for {len(overlaps)}"
            )
        if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                "a cascade regresses one box for all classes: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
            )
        if overlaps[0] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]:
            raise ValueError(
                "the first of MODEL.ROI_BOX_CASCADE_HEAD.IOUS must be that of MODEL.ROI_HEADS.IOU_THRESHOLDS, got "
                f"{overlaps[0]} and {cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]}"
            )
        pooler, shape = _pooler_and_shape(cfg, "ROI_BOX_HEAD", input_shape)
        heads, predictors = [], []
        for weight in weights:  # in turns: a seed gives the weights that it gives detectron2's
            heads.append(build_box_head(cfg, shape))
            transform = Box2BoxTransform(weights=weight)
            predictors.append(build_box_predictor(cfg, heads[-1].output_shape, transform))
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_heads": heads,
            "box_predictors": predictors,
            "proposal_matchers": [
                Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in overlaps
            ],
        }

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
        self.tells_box_scale = isinstance(keypoint_head, KeypointHead)
        if self.keypoint_on:
            self.keypoint_head = keypoint_head

    @classmethod
    def from_config(cls, cfg, input_shape):
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(in_features) != 1:
            raise ValueError(
                "FusedRes5ROIHeads is for one feature map, as C4 models have (COCO-InstanceSegmentation/"
                f"mask_rcnn_R_50_C4.yaml), and MODEL.ROI_HEADS.IN_FEATURES are {', '.join(in_features)}: with an FPN "
                "set MODEL.ROI_HEADS.NAME FusedROIHeads"
            )
        channels = input_shape[in_features[0]].channels
        res2_channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
        if channels != 4 * res2_channels:
            raise ValueError(
                f"MODEL.RESNETS.RES2_OUT_CHANNELS is {res2_channels}, so the RoI stage takes "
                f"{4 * res2_channels} channels, and the backbone gives {channels}: set it to {channels // 4}"
            )
        res5, out_channels = cls._build_res5_block(cfg)
        # The stage has stride 2; the stock ROI heads say twice this size for the masks.
        side = (cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION + 1) // 2
        shape = ShapeSpec(channels=out_channels, height=side, width=side)
        keypoint = with_defaults(cfg).MODEL.ROI_KEYPOINT_HEAD
        pooler, _ = _pooler_and_shape(cfg, "ROI_BOX_HEAD", input_shape)
        return {
            **super(Res5ROIHeads, cls).from_config(
                cfg
            ),  # of ROIHeads: Res5ROIHeads' own builds what this does
            "in_features": in_features,
            "pooler": pooler,
            "res5": res5,
            "box_predictor": build_box_predictor(cfg, ShapeSpec(channels=out_channels, height=1, width=1)),
            "mask_head": _build_mask_head(cfg, shape) if cfg.MODEL.MASK_ON else None,
            "keypoint_head": build_keypoint_head(cfg, shape) if cfg.MODEL.KEYPOINT_ON else None,
            "keypoint_samples_per_image": keypoint.SAMPLES_PER_IMAGE,
            "keypoint_box_scale": keypoint.BOX_SCALE,
        }

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
        pools_once = self.keypoint_box_scale == 1
        if self.mask_on or (self.keypoint_on and pools_once):
            x = self._shared_roi_transform(maps, [image.pred_boxes for image in instances])
        if self.mask_on:
            instances = self.mask_head(x, instances)
        if self.keypoint_on:
            boxes = enlarge_boxes(instances, self.keypoint_box_scale)
            if not pools_once:
                x = self._shared_roi_transform(maps, [image.pred_boxes for image in instances])
            instances = self._find_keypoints(x, instances)
            put_back_boxes(instances, boxes)
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


def _pooler_and_shape(cfg, section: str, input_shape) -> tuple[FusedROIPooler | None, ShapeSpec | dict]:
    """The pooler that a section of cfg.MODEL describes, and the shape of what it gives; without a POOLER_TYPE none,
    and the shapes of the features."""
    head, in_features = cfg.MODEL[section], cfg.MODEL.ROI_HEADS.IN_FEATURES
    channels = {input_shape[name].channels for name in in_features}
    if len(channels) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES {list(in_features)} must have one number of channels, got {sorted(channels)}"
        )
    if not head.POOLER_TYPE:
        return None, {name: input_shape[name] for name in in_features}
    side = head.POOLER_RESOLUTION
    scales = [1.0 / input_shape[name].stride for name in in_features]
    pooler = FusedROIPooler(side, scales, head.POOLER_SAMPLING_RATIO, head.POOLER_TYPE)
    return pooler, ShapeSpec(channels=channels.pop(), height=side, width=side)


def build_box_predictor(cfg, input_shape: ShapeSpec, box2box_transform=None) -> FastRCNNOutputLayers:
    """The predictor of MODEL.ROI_BOX_HEAD.CLASSIFIER, with CLS_LOSS_WEIGHT."""
    head = with_defaults(cfg).MODEL.ROI_BOX_HEAD
    if head.CLASSIFIER not in _CLASSIFIERS:
        known = " or ".join(map(repr, _CLASSIFIERS))
        raise ValueError(f"MODEL.ROI_BOX_HEAD.CLASSIFIER must be {known}, got {head.CLASSIFIER!r}")
    arguments = FastRCNNOutputLayers.from_config(cfg, input_shape)
    arguments["loss_weight"]["loss_cls"] = head.CLS_LOSS_WEIGHT
    if box2box_transform is not None:
        arguments["box2box_transform"] = box2box_transform
    return _CLASSIFIERS[head.CLASSIFIER](**arguments)


def _build_mask_head(cfg, input_shape):
    """As build_mask_head; detectron2's own head gets MODEL.ROI_MASK_HEAD.LOSS_WEIGHT too, which it does not read."""
    head = with_defaults(cfg).MODEL.ROI_MASK_HEAD
    if ROI_MASK_HEAD_REGISTRY.get(head.NAME) is not MaskRCNNConvUpsampleHead:
        return build_mask_head(cfg, input_shape)
    arguments = MaskRCNNConvUpsampleHead.from_config(cfg, input_shape)
    return MaskRCNNConvUpsampleHead(**arguments, loss_weight=head.LOSS_WEIGHT)


def _equal_poolers(a, b) -> bool:
    if not (isinstance(a, FusedROIPooler) and isinstance(b, FusedROIPooler)):
        return False
    names = (
        *("output_size", "scales", "sampling_ratio", "pooler_type"),
        *("canonical_box_size", "canonical_level"),
    )
    return all(getattr(a, name) == getattr(b, name) for name in names)
