"""Pictures of predictions."""

import os
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.data import detection_utils as utils
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

__all__ = ["draw"]


def draw(
    image: np.ndarray, image_format: str, instances: Instances, metadata: Metadata, path: str | os.PathLike
) -> None:
    """Writes a picture of an image with its instances, by detectron2's visualizer.

    Args:
        image: (H, W, C) in ``image_format``, as detectron2's ``read_image`` gives it.
        instances: on the CPU.
        metadata: names of the classes and keypoints.
        path: of the picture, in the format that its name ends with; its folders are made.
    """
    drawn = Visualizer(utils.convert_image_to_rgb(image, image_format), metadata)
    drawn = drawn.draw_instance_predictions(instances)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(Path(path).suffix, drawn.get_image()[:, :, ::-1])
    data.tofile(path)
