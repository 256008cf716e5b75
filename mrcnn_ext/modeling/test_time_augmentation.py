"""Test-time augmentation of boxes, masks and keypoints."""

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.modeling import GeneralizedRCNNWithTTA as _GeneralizedRCNNWithTTA
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.keypoint_head import keypoint_rcnn_inference
from fvcore.transforms import HFlipTransform
from torch import Tensor

from .keypoint_head import KeypointHead
from .roi_heads.keypoint_rois import enlarge_boxes, put_back_boxes

__all__ = ["GeneralizedRCNNWithTTA"]


class GeneralizedRCNNWithTTA(_GeneralizedRCNNWithTTA):
    """detectron2's test-time augmentation, with keypoints, which that refuses.

    Boxes and masks are merged as there. The heatmaps of a box in all copies of the image, those of mirrored
    copies mirrored back and left and right keypoints exchanged, are merged by the mean of their softmax, and
    its logarithm is decoded once, as the model's keypoint head decodes, in the merged box of the original image.
    ``mask_scores`` of a mask, where the mask head gives some, are their mean over the copies.

    Args:
        cfg: ``TEST.AUG``; ``DATASETS.TEST``, or else ``DATASETS.TRAIN``, whose metadata say which
            keypoints change places in a mirror.
        model, tta_mapper, batch_size: see detectron2's.
        keypoint_flip_indices: (K,) for each keypoint its index in a mirrored image, instead of the metadata's.

    Raises:
        ValueError: copies are mirrored, and nothing says which keypoints change places, or for another number
            of keypoints.
    """

    def __init__(self, cfg: CfgNode, model, tta_mapper=None, batch_size: int = 3, keypoint_flip_indices=None):
        without_keypoints = cfg.clone()
        without_keypoints.defrost()
        without_keypoints.MODEL.KEYPOINT_ON = False
        super().__init__(without_keypoints, model, tta_mapper, batch_size)
        self.cfg = cfg.clone()
        self.flip_indices = None
        if cfg.MODEL.KEYPOINT_ON and getattr(self.tta_mapper, "flip", True):
            self.flip_indices = _flip_indices(cfg, keypoint_flip_indices)

    def _inference_one_image(self, input):
        if not (self.cfg.MODEL.MASK_ON or self.cfg.MODEL.KEYPOINT_ON):
            return super()._inference_one_image(input)
        size = (input["height"], input["width"])
        copies, transforms = self._get_augmented_inputs(input)
        with self._turn_off_roi_heads(["mask_on", "keypoint_on"]):
            found = self._get_augmented_boxes(copies, transforms)
        merged = self._merge_detections(*found, size)
        instances = self._rescale_detected_boxes(copies, merged, transforms)
        outputs = self._batch_inference(copies, instances)
        if self.cfg.MODEL.MASK_ON:
            merged.pred_masks = self._reduce_pred_masks(outputs, transforms)
            if all(output.has("mask_scores") for output in outputs):
                merged.mask_scores = torch.stack([output.mask_scores for output in outputs]).mean(dim=0)
        if self.cfg.MODEL.KEYPOINT_ON:
            self._decode_keypoints(self._merge_heatmaps(outputs, transforms), merged)
        return {"instances": detector_postprocess(merged, *size)}

    def _merge_heatmaps(self, outputs, transforms) -> Tensor:
        """The logarithm (N, K, S_h, S_w) of the mean probability over the copies."""
        log_probabilities = []
        for output, transform in zip(outputs, transforms, strict=True):
            heatmaps = output.pred_keypoint_heatmaps.float()
            if any(isinstance(t, HFlipTransform) for t in transform.transforms):
                heatmaps = heatmaps.flip(dims=[3])[:, self.flip_indices]
            log_probabilities.append(heatmaps.flatten(2).log_softmax(dim=2).view_as(heatmaps))
        # The mean but for a constant, of which decoding does not depend.
        return torch.stack(log_probabilities).logsumexp(dim=0)

    def _decode_keypoints(self, heatmaps: Tensor, instances) -> None:
        roi_heads = self.model.roi_heads
        scale = getattr(roi_heads, "keypoint_box_scale", 1.0)
        boxes = enlarge_boxes([instances], scale)
        if isinstance(roi_heads.keypoint_head, KeypointHead):
            roi_heads.keypoint_head.decode(heatmaps, [instances], scale)
        else:
            keypoint_rcnn_inference(heatmaps, [instances])
        put_back_boxes([instances], boxes)


def _flip_indices(cfg, given) -> list[int]:
    num_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if given is None:
        names = [
            name
            for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
            # Asking for the metadata of a dataset that is not registered would make some.
            if name in MetadataCatalog.list()
            and MetadataCatalog.get(name).get("keypoint_flip_map") is not None
        ]
        if not names:
            raise ValueError(
                "test-time augmentation mirrors images, and no dataset of DATASETS.TEST or TRAIN has a "
                "keypoint_flip_map in its metadata: set it with keypoint_names, give keypoint_flip_indices, or "
                "set TEST.AUG.FLIP to False"
            )
        given = create_keypoint_hflip_indices(names[:1])
    if sorted(given) != list(range(num_keypoints)):
        raise ValueError(
            f"keypoint_flip_indices must be a permutation of the {num_keypoints} keypoints of "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, got {list(given)}"
        )
    return [int(index) for index in given]
