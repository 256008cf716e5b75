"""From the heads' outputs to instances of the image."""

import torch
from detectron2.layers import cat
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances, ROIMasks
from torch import Tensor

from ...accel import MethodStep
from ...accel.cuda_graphs import GraphedCalls
from ...accel.padding import padded_results, run_padded, run_part_as_graph
from ...layers import heatmaps_to_keypoints, paste_masks
from ...layers.lazy_masks import LazyMasks
from ...layers.padded_detections import is_padding
from ...ops.keypoint_decoding import without_logits

__all__ = ["FastKeypoints", "FastOutputs"]


class FastKeypoints(MethodStep):
    """``forward`` of a keypoint head: all heatmaps are decoded at once, none is resized to its box."""

    def __call__(self, x, instances):
        if self.module.training:
            return self.stock(x, instances)
        heatmaps = self.module.layers(x).detach()
        boxes = cat([image.pred_boxes.tensor for image in instances])
        keypoints = without_logits(heatmaps_to_keypoints(heatmaps, boxes))
        counts = [len(image) for image in instances]
        for image, points, maps in zip(
            instances, keypoints.split(counts), heatmaps.split(counts), strict=True
        ):
            image.pred_keypoints = points
            image.pred_keypoint_heatmaps = maps
        return instances


class FastOutputs(MethodStep):
    """``inference`` of GeneralizedRCNN: no gradients, masks pasted within their boxes or not at all, and where it may
    be the device asked once how many instances there are.

    Args:
        module: the model.
        masks: "stock" leaves masks to detectron2, "paste" pastes them within their boxes, with "lazy" ``pred_masks``
            is a `LazyMasks`.

    Attributes:
        padded: whether proposals and detections may be padded between the steps of the model.
        graphs: launches all steps between the batch of images and the padded instances at once; None to call each.
    """

    def __init__(self, module: GeneralizedRCNN, masks: str):
        super().__init__(module, "inference")
        self.masks, self.padded = masks, False
        self.graphs: GraphedCalls | None = None

    def __call__(self, batched_inputs, detected_instances=None, do_postprocess=True):
        def run():
            if self.graphs is not None and padded_results() is not None:
                results = self._at_once(batched_inputs)
            else:
                results = self.stock(batched_inputs, detected_instances, do_postprocess=False)
            sizes = [
                (inputs.get("height", image.image_size[0]), inputs.get("width", image.image_size[1]))
                for inputs, image in zip(batched_inputs, results, strict=True)
            ]
            padded = padded_results()
            if padded is not None:
                return self._without_padding(padded, results, sizes if do_postprocess else None)
            if do_postprocess:
                results = [self._to_output_size(*each) for each in zip(results, sizes, strict=True)]
            return results

        with torch.no_grad():
            results = run_padded(run) if self.padded and detected_instances is None else run()
        return [{"instances": instances} for instances in results] if do_postprocess else results

    def _at_once(self, batched_inputs):
        """GeneralizedRCNN's ``inference`` without post-processing."""
        model = self.module
        images = model.preprocess_image(batched_inputs)
        sizes = [tuple(size) for size in images.image_sizes]

        def detect(batch):
            images = ImageList(batch, sizes)
            features = model.backbone(batch)
            proposals, _ = model.proposal_generator(images, features, None)
            results, _ = model.roi_heads(images, features, proposals, None)
            return [_tensors_of(instances) for instances in results]

        results = run_part_as_graph(self.graphs, detect, images.tensor, tuple(sizes))
        return [
            Instances(size, **{name: Boxes(boxes) for name, boxes in of["boxes"].items()}, **of["others"])
            for size, of in zip(sizes, results, strict=True)
        ]

    def _to_output_size(self, instances, size):
        self._make_masks(instances)
        return detector_postprocess(instances, *size)

    def _make_masks(self, instances):
        if instances.has("pred_masks") and self.masks != "stock":
            kind = _PastedLater if self.masks == "lazy" else _PastedFast
            instances.pred_masks = kind(instances.pred_masks[:, 0])

    def _without_padding(self, padded, results, sizes):
        """The instances there are, as `detector_postprocess` gives them if ``sizes`` of output images are given."""
        if sizes is None:
            present = padded.found_by_scores([image.scores for image in results])
            return [image[places] for image, places in zip(results, present, strict=True)]
        scales = []
        for image, (height, width) in zip(results, sizes, strict=True):
            scales.append((width / image.image_size[1], height / image.image_size[0]))
            image.pred_boxes.scale(*scales[-1])
            box = image.pred_boxes.tensor
            box[:, 0::2].clamp_(min=0, max=width)
            box[:, 1::2].clamp_(min=0, max=height)
        present = padded.found([~is_padding(image.scores) & image.pred_boxes.nonempty() for image in results])
        return [
            self._finished(image[places], size, scale)
            for image, places, size, scale in zip(results, present, sizes, scales, strict=True)
        ]

    def _finished(self, instances, size, scale):
        instances = Instances(size, **instances.get_fields())
        self._make_masks(instances)
        if instances.has("pred_masks"):
            masks = instances.pred_masks
            masks = masks if isinstance(masks, ROIMasks) else ROIMasks(masks[:, 0])
            instances.pred_masks = masks.to_bitmasks(instances.pred_boxes, *size, 0.5).tensor
        if instances.has("pred_keypoints"):
            instances.pred_keypoints[:, :, 0] *= scale[0]
            instances.pred_keypoints[:, :, 1] *= scale[1]
        return instances


def _tensors_of(instances):
    """The fields of instances: the tensors of those that are boxes, and all others."""
    fields = instances.get_fields()
    boxes = {name: value.tensor for name, value in fields.items() if type(value) is Boxes}
    return {"boxes": boxes, "others": {name: fields[name] for name in fields if name not in boxes}}


class _PastedFast(ROIMasks):
    """What detectron2's post-processing takes for its own masks. It reads the ``tensor`` of what they become."""

    def __getitem__(self, item):
        return type(self)(self.tensor[item])

    def to_bitmasks(self, boxes, height, width, threshold=0.5):
        return _Result(paste_masks(self.tensor, boxes.tensor, (height, width), threshold))


class _PastedLater(_PastedFast):
    def to_bitmasks(self, boxes, height, width, threshold=0.5):
        return _Result(LazyMasks(self.tensor[:, None], boxes.tensor.clone(), (height, width), threshold))


class _Result:
    def __init__(self, tensor: Tensor | LazyMasks):
        self.tensor = tensor
