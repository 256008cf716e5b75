"""Anchors as torchvision's detectors have them, for their weights."""

import torch
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor

__all__ = ["TorchvisionAnchorGenerator"]


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """detectron2's anchors with corners at whole pixels and the distances that torchvision gives them.

    The distance between anchors of a level is the image's padded size divided by the map's, rounded down: where a map
    was rounded up, as P6 most often is, it is less than the stride. Arguments and yaml keys are those of
    `DefaultAnchorGenerator`; ``features`` must begin with a map whose stride divides the padded image, as P2's does.
    """

    def generate_cell_anchors(self, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)) -> Tensor:
        return super().generate_cell_anchors(sizes, aspect_ratios).round()

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        height, width = (side * self.strides[0] for side in features[0].shape[-2:])
        anchors = []
        for feature, cells in zip(features, self.cell_anchors, strict=True):
            rows, columns = feature.shape[-2:]
            y = torch.arange(rows, device=cells.device, dtype=cells.dtype) + self.offset
            x = torch.arange(columns, device=cells.device, dtype=cells.dtype) + self.offset
            y, x = torch.meshgrid(y * (height // rows), x * (width // columns), indexing="ij")
            centers = torch.stack([x, y, x, y], dim=2)
            anchors.append(Boxes((centers[:, :, None] + cells).reshape(-1, 4)))
        return anchors
