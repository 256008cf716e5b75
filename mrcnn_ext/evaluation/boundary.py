"""Boundary AP: mask AP that asks for the outline too."""

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["BoundaryCOCOeval", "boundary_of"]


class BoundaryCOCOeval(COCOeval):
    """COCO's mask AP with the smaller of mask IoU and boundary IoU in place of mask IoU (Cheng et al., Boundary
    IoU, CVPR 2021, section 5).

    The boundary IoU of two masks is the IoU of their boundaries. It alone would be perfect for a ring, and small
    objects are all boundary, whence the minimum. A prediction in a crowd region is matched by mask IoU.

    Args:
        ground_truth: with segmentations.
        results: the predictions, from ``ground_truth.loadRes``.
        iouType: "segm".
        dilation_ratio: width of the boundary, relative to the diagonal of the image; the paper's is 0.02.
    """

    def __init__(
        self, ground_truth: COCO, results: COCO, iouType: str = "segm", dilation_ratio: float = 0.02
    ):
        super().__init__(ground_truth, results, iouType)
        self._dilation_ratio = dilation_ratio

    def _prepare(self):
        super()._prepare()
        # Of this evaluation: the annotations themselves are other evaluators' too.
        self._boundaries = {
            id(annotation): _boundary_rle(annotation["segmentation"], self._dilation_ratio)
            for group in (*self._gts.values(), *self._dts.values())
            for annotation in group
        }

    def computeIoU(self, imgId, catId):
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truth = self._gts[imgId, catId]
        # In the order of the rows: best first, as pycocotools sorts them.
        found = sorted(self._dts[imgId, catId], key=lambda result: -result["score"])
        is_crowd = np.array([bool(annotation["iscrowd"]) for annotation in truth])
        boundary_ious = mask_utils.iou(
            [self._boundaries[id(result)] for result in found[: self.params.maxDets[-1]]],
            [self._boundaries[id(annotation)] for annotation in truth],
            is_crowd.tolist(),
        )
        return np.where(is_crowd, ious, np.minimum(ious, boundary_ious))


def boundary_of(mask: np.ndarray, dilation_ratio: float = 0.02) -> np.ndarray:
    """The pixels of a mask that are near its outline; the image's edge counts as outline.

    Args:
        mask: (H, W) array of uint8, 0 or 1.
        dilation_ratio: the distance, the greater one of both axes, relative to the diagonal of the image; at
            least a pixel.

    Returns:
        np.ndarray: (H, W) array of uint8, 0 or 1.
    """
    width = max(1, round(dilation_ratio * float(np.hypot(*mask.shape))))
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    interior = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - interior


def _boundary_rle(rle: dict, dilation_ratio: float) -> dict:
    return mask_utils.encode(np.asfortranarray(boundary_of(mask_utils.decode(rle), dilation_ratio)))
