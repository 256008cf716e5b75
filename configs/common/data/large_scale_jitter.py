"""Large-scale jitter (Ghiasi et al., CVPR 2021)."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L


def jitter_scale(dataloader, size=1024):
    """Training images as of ``INPUT.LSJ.ENABLED: True``: resized by 0.1 to 2, cropped or padded to a square.

    Args:
        dataloader: of the LazyConfig.
        size: side of the square, pixels.
    """
    mapper = dataloader.train.mapper
    mapper.augmentations = [
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=size, target_width=size),
        L(T.FixedSizeCrop)(crop_size=(size, size)),
        L(T.RandomFlip)(horizontal=True),
    ]
    mapper.recompute_boxes = True  # of what a crop leaves of an object
