"""Small models of torchvision's detectors and targets to train them on."""

import sys
from pathlib import Path

import pytest
import torch

from mrcnn_ext.integrations.torchvision import FPNBackbone
from mrcnn_ext.layers import TimmFeatures

sys.path.insert(0, str(Path(__file__).parent))  # for small_detectors


@pytest.fixture
def make_backbone():
    def make(out_channels=16):
        body = TimmFeatures(model_name="resnet18", model_args={"channels": [8, 16, 16, 16]})
        return FPNBackbone(body, out_channels)

    return make


@pytest.fixture
def make_targets():
    """64 x 96 images and targets of the given boxes: masks that fill them, 17 keypoints on the first."""

    def make(*boxes_per_image):
        generator = torch.Generator().manual_seed(0)
        images, targets = [], []
        for boxes in boxes_per_image:
            boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            masks = torch.zeros(len(boxes), 64, 96, dtype=torch.uint8)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
                mask[y0:y1, x0:x1] = 1
            keypoints = torch.zeros(len(boxes), 17, 3)
            keypoints[:1, :, :2] = boxes[:1, None, :2] + 4
            keypoints[:1, :, 2] = 2
            images.append(torch.rand(3, 64, 96, generator=generator))
            labels = torch.arange(len(boxes)) % 2 + 1
            targets.append({"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints})
        return images, targets

    return make
