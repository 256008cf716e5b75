"""detectron2's mapper from dataset dicts to a model's input, for every image that a dataset may have."""

from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

__all__ = ["DatasetMapper"]


class DatasetMapper(_DatasetMapper):
    """detectron2's, which fails on an image without objects where ``INPUT.CROP`` is enabled and there are masks.

    Takes ``INPUT.LSJ`` and ``INPUT.COLOR_JITTER`` of the config too. Gives bitmaps for ``INPUT.COPY_PASTE``, which
    `CopyPasteMapper` does.
    """

    @classmethod
    def from_config(cls, cfg, is_train=True):
        if not is_train:
            # detectron2 asks the training datasets how keypoints are flipped: here nothing is, and they may be unknown.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        arguments = super().from_config(cfg, is_train)
        if not is_train:
            return arguments
        # Not among detectron2's own keys: a config made without add_mrcnn_ext_config works too.
        jitter, lsj = cfg.INPUT.get("COLOR_JITTER", 0.0), cfg.INPUT.get("LSJ")
        if not 0 <= jitter < 1:
            raise ValueError(f"INPUT.COLOR_JITTER must be at least 0 and below 1, got {jitter}")
        if lsj is not None and lsj.ENABLED:
            flips = [a for a in arguments["augmentations"] if isinstance(a, T.RandomFlip)]
            arguments["augmentations"] = [
                T.ResizeScale(lsj.MIN_SCALE, lsj.MAX_SCALE, lsj.SIZE, lsj.SIZE),
                T.FixedSizeCrop((lsj.SIZE, lsj.SIZE)),
                *flips,
            ]
            # The boxes of what a crop leaves of objects are those of their masks.
            arguments["recompute_boxes"] = cfg.MODEL.MASK_ON
        copy_paste = cfg.INPUT.get("COPY_PASTE")
        if copy_paste is not None and copy_paste.ENABLED:
            arguments["use_instance_mask"], arguments["instance_mask_format"] = True, "bitmask"
        if jitter:
            colors = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
            arguments["augmentations"] += [color(1 - jitter, 1 + jitter) for color in colors]
        return arguments

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        if all(annotation.get("iscrowd", 0) for annotation in dataset_dict["annotations"]):
            # There are no masks to take the boxes from.
            del dataset_dict["annotations"]
            dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)
            return
        super()._transform_annotations(dataset_dict, transforms, image_shape)
