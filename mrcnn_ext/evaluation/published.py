"""Published results that a reproduction is laid beside. Runs without detectron2."""

from __future__ import annotations

__all__ = ["CITYSCAPES_COLUMNS", "CITYSCAPES_ROWS"]

# The table of He et al., Mask R-CNN (arXiv 1703.06870) on Cityscapes. AP in points; None where there is none.
# AP50 and the classes are of the test set.
CITYSCAPES_COLUMNS = (
    "AP val", "AP test", "AP50", "person", "rider", "car", "truck", "bus", "train", "mcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_ROWS = (
    ("InstanceCut", "fine + coarse", (15.8, 13.0, 27.9, 10.0, 8.0, 23.7, 14.0, 19.5, 15.2, 9.3, 4.7)),
    ("DWT", "fine", (19.8, 15.6, 30.0, 15.1, 11.7, 32.9, 17.1, 20.4, 15.0, 7.9, 4.9)),
    ("SAIS", "fine", (None, 17.4, 36.7, 14.6, 12.9, 35.7, 16.0, 23.2, 19.0, 10.3, 7.8)),
    ("DIN", "fine + coarse", (None, 20.0, 38.8, 16.5, 16.7, 25.7, 20.6, 30.0, 23.4, 17.1, 10.1)),
    ("SGN", "fine + coarse", (29.2, 25.0, 44.9, 21.8, 20.1, 39.4, 24.8, 33.2, 30.8, 17.7, 12.4)),
    ("Mask R-CNN", "fine", (31.5, 26.2, 49.9, 30.5, 23.7, 46.9, 22.8, 32.2, 18.6, 19.1, 16.0)),
    ("Mask R-CNN", "fine + COCO", (36.4, 32.0, 58.1, 34.8, 27.0, 49.1, 30.1, 40.9, 30.9, 24.1, 18.7)),
)
