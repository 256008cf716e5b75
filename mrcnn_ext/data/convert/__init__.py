"""Datasets in the formats that labelling tools write, to COCO's. Runs without detectron2."""

from .convert import FORMATS, Converted, convert_dataset

__all__ = ["FORMATS", "Converted", "convert_dataset"]
