"""From the heads' outputs to instances of the image."""

import torch
from detectron2.layers import cat
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ROIMasks
from torch import Tensor

from ...accel import MethodStep
from ...layers import heatmaps_to_keypoints, paste_masks
from ...layers.lazy_masks import LazyMasks

__all__ = ["FastKeypoints", "FastOutputs"]


class FastKeypoints(MethodStep):
    """``forward`` of a keypoint head: all heatmaps are decoded at once, none is resized to its box."""

    def __call__(self, x, instances):
        if self.module.training:
            return self.stock(x, instances)
        heatmaps = self.module.layers(x).detach()
        boxes = cat([image.pred_boxes.tensor for image in instances])
        keypoints = heatmaps_to_keypoints(heatmaps, boxes)[:, :, [0, 1, 3]]
        counts = [len(image) for image in instances]
        for image, points, maps in zip(
            instances, keypoints.split(counts), heatmaps.split(counts), strict=True
        ):
            image.pred_keypoints = points
            image.pred_keypoint_heatmaps = maps
        return instances


class FastOutputs(MethodStep):
    """``inference`` of GeneralizedRCNN: no gradients, and masks pasted within their boxes or not at all.

    Args:
        module: the model.
        lazy: whether ``pred_masks`` is a `LazyMasks`.
    """

    def __init__(self, module: GeneralizedRCNN, lazy: bool):
        super().__init__(module, "inference")
        self.lazy = lazy

    def __call__(self, batched_inputs, detected_instances=None, do_postprocess=True):
        with torch.no_grad():
            results = self.stock(batched_inputs, detected_instances, do_postprocess=False)
            if not do_postprocess:
                return results
            return [
                {"instances": self._to_output_size(instances, inputs)}
                for instances, inputs in zip(results, batched_inputs, strict=True)
            ]

    def _to_output_size(self, instances, inputs):
        height, width = instances.image_size
        if instances.has("pred_masks"):
            kind = _PastedLater if self.lazy else _PastedFast
            instances.pred_masks = kind(instances.pred_masks[:, 0])
        return detector_postprocess(instances, inputs.get("height", height), inputs.get("width", width))


class _PastedFast(ROIMasks):
    """What detectron2's post-processing takes for its own masks. It reads the ``tensor`` of what they become."""

    def __getitem__(self, item):
        return type(self)(self.tensor[item])

    def to_bitmasks(self, boxes, height, width, threshold=0.5):
        if self.device.type != "cpu":  # there detectron2 pastes many at once
            return super().to_bitmasks(boxes, height, width, threshold)
        return _Result(paste_masks(self.tensor, boxes.tensor, (height, width), threshold))


class _PastedLater(_PastedFast):
    def to_bitmasks(self, boxes, height, width, threshold=0.5):
        return _Result(LazyMasks(self.tensor[:, None], boxes.tensor.clone(), (height, width), threshold))


class _Result:
    def __init__(self, tensor: Tensor | LazyMasks):
        self.tensor = tensor
