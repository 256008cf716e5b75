"""Datasets of people in video in their publishers' layouts. Reading runs without detectron2."""

from .bbc_pose import read_bbc_pose
from .jhmdb import read_jhmdb
from .penn_action import read_penn_action
from .posetrack import read_posetrack18

__all__ = ["VIDEO_READERS", "read_bbc_pose", "read_jhmdb", "read_penn_action", "read_posetrack18"]

# By the name of the format: reads (root, split) to the content of a COCO annotation file with videos and tracks.
VIDEO_READERS = {
    "penn_action": read_penn_action,
    "bbc_pose": read_bbc_pose,
    "jhmdb": read_jhmdb,
    "posetrack18": read_posetrack18,
}
