"""What the pooler is worth in Mask R-CNN R-50-FPN: one model with detectron2's ROIPooler and with ours."""

import time
from contextlib import contextmanager

import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.utils.events import EventStorage

from .. import model_zoo
from ..modeling import FusedROIPooler
from .model import calibrate, limit_detections, random_objects, random_picture, score_for
from .roi_align import CANONICAL, IMAGE, SCALES
from .timing import race

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.yaml"
OBJECTS = 8  # of the training step
POOLERS = ("box_pooler", "mask_pooler")


def _model(cfg, picture: dict):
    """Random weights, normalised for the image; it gets all the detections that the configuration allows, 100."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    calibrate(model, [picture])
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    limit_detections(model, limit, score_for(model, [picture], limit))
    return model


def _set_poolers(model, make) -> None:
    for name in POOLERS:
        old = getattr(model.roi_heads, name)
        setattr(model.roi_heads, name, make(old.output_size, SCALES, 0, "ROIAlignV2", *CANONICAL))


@contextmanager
def _pooler_seconds(model, spent: list[float]):
    """Appends the time within the poolers' forward to `spent`."""
    hooks, began = [], []
    for name in POOLERS:
        pooler = getattr(model.roi_heads, name)
        hooks.append(pooler.register_forward_pre_hook(lambda *_: began.append(time.perf_counter())))
        hooks.append(pooler.register_forward_hook(lambda *_: spent.append(time.perf_counter() - began.pop())))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def report(device: str, threads: int, budget: float, image: tuple[int, int] = IMAGE) -> str:
    """Times of inference and of a training step (one image) as a table.

    Raises:
        AssertionError: the two poolers lead to different detections.
    """
    torch.set_num_threads(threads)
    cfg = model_zoo.get_config(CONFIG)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    cfg.INPUT.MASK_FORMAT = "bitmask"
    picture = {"image": random_picture(image, 0), "height": image[0], "width": image[1]}
    picture["instances"] = random_objects(cfg, image, OBJECTS, 0)
    model = _model(cfg, picture)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)

    def infer():
        model.eval()
        with torch.no_grad():
            return model([picture])[0]["instances"]

    def train():
        model.train()
        with EventStorage():
            losses = sum(model([picture]).values())
        optimiser.zero_grad()
        losses.backward()
        optimiser.step()
        return losses

    makers = {"stock": ROIPooler, "ours": FusedROIPooler}
    boxes = {}
    for name, make in makers.items():
        _set_poolers(model, make)
        boxes[name] = infer().pred_boxes.tensor.cpu()
    if boxes["stock"].shape != boxes["ours"].shape or not torch.allclose(*boxes.values(), atol=0.1):
        raise AssertionError("the two poolers lead to different detections: there is nothing to compare")
    if not len(boxes["ours"]):
        raise AssertionError("the model detects nothing: its poolers have nothing to do")

    lines = [f"{'Mask R-CNN R-50-FPN, ' + device:34}{'stock ms':>10}{'ours ms':>10}{'ratio':>8}   in poolers"]
    for what, step in (("inference", infer), (f"training step, {OBJECTS} objects", train)):
        before = {name: (lambda make=make: _set_poolers(model, make)) for name, make in makers.items()}
        seconds = race({name: step for name in makers}, torch.device(device), 8 * budget, (2, 20), before)
        shares = []
        for name, make in makers.items():
            _set_poolers(model, make)
            spent = []
            with _pooler_seconds(model, spent):
                step()
            shares.append(f"{sum(spent) / seconds[name]:.0%}")
        lines.append(
            f"{what:34}{1000 * seconds['stock']:10.0f}{1000 * seconds['ours']:10.0f}"
            f"{seconds['stock'] / seconds['ours']:8.2f}   stock {shares[0]}, ours {shares[1]}"
        )
    return "\n".join(lines)
