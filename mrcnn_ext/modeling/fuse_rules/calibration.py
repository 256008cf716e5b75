"""Images of a registered dataset to calibrate int8 with."""

from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.transforms import ResizeShortestEdge
from torch import nn

__all__ = ["images_of_dataset"]

_IMAGES = 16
# INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST of detectron2's defaults.
_SIZE = 800, 1333


def images_of_dataset(model: nn.Module, name: str) -> list[list[dict]]:
    """16 images from all over a dataset, each a batch: their shorter side 800 pixels, the longer 1333 at most.

    Args:
        model: a GeneralizedRCNN, which has its input's format.
        name: of the dataset.

    Raises:
        ValueError: there is none of this name, or nothing in it.
    """
    if name not in DatasetCatalog.list():
        raise ValueError(f"int8: {name!r} is neither the file of a calibration nor a registered dataset")
    records = DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"int8: dataset {name!r} has no images to calibrate with")
    mapper = DatasetMapper(
        False, augmentations=[ResizeShortestEdge(*_SIZE)], image_format=model.input_format or "BGR"
    )
    count = min(_IMAGES, len(records))
    return [[mapper(records[k * len(records) // count])] for k in range(count)]
