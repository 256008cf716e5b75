"""Published datasets from their archives to what training reads. Runs without detectron2."""

from .cityscapes import CITYSCAPES, prepare_cityscapes
from .coco import COCO_2014, COCO_2017, prepare_coco
from .lvis import LVIS_V1, prepare_lvis
from .parts import AnnotationFile, Archive, Images

__all__ = [
    "CITYSCAPES",
    "COCO_2014",
    "COCO_2017",
    "LVIS_V1",
    "AnnotationFile",
    "Archive",
    "Images",
    "prepare_cityscapes",
    "prepare_coco",
    "prepare_lvis",
]
