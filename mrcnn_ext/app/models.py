"""Models as the app uses them: predictions, feature maps and latency, one caller at a time."""

import functools
import os
import statistics
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from ..accel import accelerate
from ..benchmark.stages import STAGES, breakdown
from ..engine.description import read_description
from ..engine.errors import UserError
from ..engine.int8 import int8_from_config
from ..inference import load_predictor
from ..inference.models import categories, resized
from ..inference.outputs import limbs_of
from ..layers.lazy_masks import LazyMasks
from ..modeling import FusedROIPooler
from ..ops.roi_options import RoIOptions
from .drawing import Names
from .inputs import Picture
from .roi_view import Pyramid

__all__ = ["Prediction", "ShownModel", "holds_config", "serve_models", "served_models"]

_POOLERS = {
    "box head": ("box_pooler", "box_in_features"),
    "mask head": ("mask_pooler", "mask_in_features"),
    "keypoint head": ("keypoint_pooler", "keypoint_in_features"),
    "all heads": ("pooler", "in_features"),  # the C4 model's
}
_KEPT_FEATURES = 3  # pictures whose feature maps are kept
_RUNS, _BUDGET = 7, 12.0  # of a measurement: at most, and seconds
# PyTorch's threads are shared by all: two models at once would only disturb each other, measurements above all.
_computing = threading.RLock()
_served: list["ShownModel"] = []


def serve_models(models: list["ShownModel"]) -> None:
    """Sets the models that the pages of this process show: one, or two side by side."""
    _served[:] = models


def served_models() -> list["ShownModel"]:
    """What `serve_models` set."""
    return list(_served)


@dataclass(frozen=True)
class Prediction:
    """
    Attributes:
        instances: on the CPU, in pixels of the image; ``pred_masks`` are `LazyMasks`, whose ``masks`` are what the
            mask head gave, ``pred_keypoint_heatmaps`` (N, K, S, S) float16 logits, ``number`` their places.
        size: height and width of the image as the model saw it.
        seconds: from the pixels to the instances.
    """

    instances: Instances
    size: tuple[int, int]
    seconds: float


def holds_config(path: str | os.PathLike) -> bool:
    """Whether a checkpoint holds its config; False too for what is none."""
    try:
        read_description(os.fspath(path))
    except UserError:
        return False
    return True


class ShownModel:
    """A checkpoint, accelerated, in int8 too where its config says so (``MODEL.ACCELERATE_INT8``).

    Args:
        path: of the checkpoint.
        device: "" for the config's, or the CPU where that has none.
        config: its config, a file or the name of one of ours, if it does not hold it; "" if it does.

    Attributes:
        name: of the checkpoint, short.
        classes: names of the classes, by the model's numbers.
        kinds: COCO categories of the classes.

    Raises:
        UserError: it cannot be read, does not hold its config, or is no R-CNN of detectron2.
    """

    def __init__(self, path: str | os.PathLike, device: str = "", config: str = ""):
        self.path = os.fspath(path)
        predictor = load_predictor(config or None, self.path, device)
        if not isinstance(predictor.model, GeneralizedRCNN):
            raise UserError(
                f"{self.path} is a {type(predictor.model).__name__}: the app shows models of detectron2's "
                "GeneralizedRCNN (Faster, Mask, Keypoint and Cascade R-CNN)"
            )
        self.original = predictor.model.eval()
        int8 = int8_from_config(predictor.int8, predictor.int8_loader) if predictor.int8 else None
        self.accelerated = accelerate(predictor.model, training=False, masks="auto", int8=int8).eval()
        self.metadata = predictor.metadata
        self._mapper = predictor.mapper
        self._features: OrderedDict[str, dict] = OrderedDict()
        parts = os.path.abspath(self.path).split(os.sep)
        self.name = "/".join(parts[-2:])
        self.kinds = categories(self.metadata)
        count = self.original.roi_heads.num_classes
        self.classes = [self.kinds.get(label, {}).get("name", f"class {label}") for label in range(count)]

    @functools.cached_property
    def device(self) -> torch.device:
        return next(self.original.parameters()).device

    @property
    def has_masks(self) -> bool:
        return getattr(self.original.roi_heads, "mask_head", None) is not None

    @property
    def has_keypoints(self) -> bool:
        return getattr(self.original.roi_heads, "keypoint_head", None) is not None

    @functools.cached_property
    def names(self) -> Names:
        keypoints = list(self.metadata.get("keypoint_names") or [])
        return Names(self.classes, keypoints, limbs_of(self.metadata))

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.original.parameters())

    @property
    def min_score(self) -> float:
        """Below it the model itself drops its detections."""
        scores = [m.test_score_thresh for m in self.original.modules() if hasattr(m, "test_score_thresh")]
        return float(min(scores, default=0.0))

    @functools.cached_property
    def heads(self) -> dict[str, FusedROIPooler]:
        """Poolers by what they pool for, of axis-aligned boxes."""
        found = {}
        for head, (name, _) in _POOLERS.items():
            pooler = getattr(self.accelerated.roi_heads, name, None)
            if isinstance(pooler, FusedROIPooler) and pooler.mode:
                found[head] = pooler
        return found

    @property
    def keypoint_box_scale(self) -> float:
        """Sides of the keypoint head's RoIs over those of the boxes."""
        return float(getattr(self.original.roi_heads, "keypoint_box_scale", 1.0))

    def predict(self, picture: Picture) -> Prediction:
        """The model's detections, all above its own score threshold."""
        pixels = picture.read()
        height, width = pixels.shape[:2]
        with _computing, torch.no_grad():
            start = time.perf_counter()
            raw = self.accelerated.inference([self._inputs(pixels)], do_postprocess=False)[0]
            size = raw.image_size
            masks = raw.get("pred_masks") if raw.has("pred_masks") else None
            if masks is not None:
                raw.remove("pred_masks")  # pasted when they are looked at
                raw.soft_masks = masks
            instances = detector_postprocess(raw, height, width).to(torch.device("cpu"))
            seconds = time.perf_counter() - start
        if masks is not None:
            soft = instances.soft_masks.float()
            instances.remove("soft_masks")
            boxes = instances.pred_boxes.tensor.clone()
            instances.pred_masks = LazyMasks(soft, boxes, (height, width))
        if instances.has("pred_keypoint_heatmaps"):
            instances.pred_keypoint_heatmaps = instances.pred_keypoint_heatmaps.half()
        instances.number = torch.arange(len(instances))
        return Prediction(instances, tuple(size), seconds)

    def pyramid(self, picture: Picture, head: str) -> Pyramid:
        """The feature maps of an image that a head pools from, and how it does.

        Args:
            head: a key of `heads`.
        """
        pooler = self.heads[head]
        names = getattr(self.accelerated.roi_heads, _POOLERS[head][1])
        features = self._feature_maps(picture)
        options = RoIOptions(
            pooler.scales,
            *pooler.output_size,
            pooler.sampling_ratio,
            pooler.aligned,
            pooler.mode,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        return Pyramid([features[name] for name in names], options, tuple(names))

    def latency(self, picture: Picture, accelerated: bool) -> dict[str, float]:
        """Median seconds that each of `STAGES` takes, and ``runs``, how often it was measured.

        Args:
            accelerated: or else the model as detectron2 runs it.
        """
        model = self.accelerated if accelerated else self.original
        pixels = picture.read()
        runs = []
        with _computing, torch.no_grad():
            inputs = [self._inputs(pixels)]
            model(inputs)  # prepares weights, buffers and threads
            end = time.monotonic() + _BUDGET
            while not runs or (len(runs) < _RUNS and time.monotonic() < end):
                runs.append(breakdown(model, lambda: model(inputs), self.device))
        medians = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
        return {**medians, "runs": len(runs)}

    def _inputs(self, pixels: np.ndarray) -> dict:
        height, width = pixels.shape[:2]
        image = utils.convert_PIL_to_numpy(Image.fromarray(pixels), self._mapper.image_format)
        try:
            return {"image": resized(image, self._mapper), "height": height, "width": width}
        except ValueError as error:
            raise UserError(
                f"nothing of the image's {height} x {width} pixels (height x width) is left at the model's size"
            ) from error

    def _feature_maps(self, picture: Picture) -> dict[str, torch.Tensor]:
        with _computing, torch.no_grad():
            if picture.key not in self._features:
                model: nn.Module = self.accelerated
                images = model.preprocess_image([self._inputs(picture.read())])
                features = model.backbone(images.tensor)
                self._features[picture.key] = {name: f.float().cpu() for name, f in features.items()}
                while len(self._features) > _KEPT_FEATURES:
                    self._features.popitem(last=False)
            self._features.move_to_end(picture.key)
            return self._features[picture.key]
