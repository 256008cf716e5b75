"""detectron2's mapper from dataset dicts to a model's input, for every image that a dataset may have."""

from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data import detection_utils as utils

__all__ = ["DatasetMapper"]


class DatasetMapper(_DatasetMapper):
    """detectron2's, which fails on an image without objects where ``INPUT.CROP`` is enabled and there are masks."""

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        if all(annotation.get("iscrowd", 0) for annotation in dataset_dict["annotations"]):
            # There are no masks to take the boxes from.
            del dataset_dict["annotations"]
            dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)
            return
        super()._transform_annotations(dataset_dict, transforms, image_shape)
