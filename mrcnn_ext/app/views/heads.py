"""What each head gave, beside the others."""

from dataclasses import replace

import numpy as np
import streamlit as st

from ..drawing import (
    Shown,
    annotated,
    colored,
    enlarged,
    heat_over,
    keypoint_heat,
    likely,
    mask_heat,
    shapes,
)
from ..inputs import Picture
from ..models import ShownModel
from ..overlay import show_overlay
from .images import show_image
from .session import Settings, choose, chosen_object, pick_object, pixels_of, predict

__all__ = ["show_heads"]

_ALL = "all keypoints"
_MARGIN = 0.15  # of a box, around it


def show_heads(model: ShownModel, picture: Picture, settings: Settings) -> None:
    """Draws this part of the page."""
    with st.spinner("predicting ..."):
        prediction = predict(model, picture)
    instances = settings.wanted(prediction, model.classes)
    if len(instances) == 0:
        st.info("No object is above the threshold: lower it in the sidebar, or take another picture.")
        return
    controls = st.columns(2)
    with controls[0]:
        place = pick_object(model, picture, instances, "heads")
    keypoint = None
    if instances.has("pred_keypoint_heatmaps"):
        count = instances.pred_keypoint_heatmaps.shape[1]
        names = [*model.names.keypoints, *(f"keypoint {k}" for k in range(count))][:count]
        name = controls[1].selectbox("Heatmap of", [_ALL, *names], format_func=lambda n: n.replace("_", " "))
        keypoint = None if name == _ALL else names.index(name)
    pixels = pixels_of(picture)
    _whole(model, picture, pixels, instances, keypoint)
    st.markdown("**The chosen object**")
    _one(model, pixels, instances[place : place + 1], keypoint)


def _whole(model, picture, pixels, instances, keypoint):
    size = pixels.shape[:2]
    columns = st.columns(3)
    with columns[0]:
        st.markdown("**Box head**: classes, scores, boxes")
        shown = Shown(masks=False, keypoints=False)
        drawn = shapes(pixels, instances, model.names, shown)
        clicked = show_overlay(drawn, "boxes", chosen_object(model, picture), "overlay-heads")
        if clicked is not None and clicked != chosen_object(model, picture):
            choose(model, picture, clicked)
            st.rerun()
    with columns[1]:
        st.markdown("**Mask head**: probability of each pixel")
        if instances.has("pred_masks"):
            show_image(heat_over(pixels, mask_heat(instances, size)))
        else:
            st.caption("This model has no mask head.")
    with columns[2]:
        st.markdown("**Keypoint head**: heatmaps")
        if instances.has("pred_keypoint_heatmaps"):
            heat = keypoint_heat(instances, size, model.keypoint_box_scale, keypoint)
            show_image(heat_over(pixels, heat))
        else:
            st.caption("This model has no keypoint head.")


def _one(model, pixels, instance, keypoint):
    columns = st.columns(3)
    with columns[0]:
        x0, y0, x1, y1 = _around(instance.pred_boxes.tensor[0].tolist(), pixels.shape)
        shown = replace(Shown(), labels=False)
        drawn = annotated(pixels, instance, model.names, shown)
        scale = drawn.shape[0] // pixels.shape[0]
        show_image(drawn[y0 * scale : y1 * scale, x0 * scale : x1 * scale])
        st.caption("As it is drawn")
    if instance.has("pred_masks"):
        soft = instance.pred_masks.masks[0, 0].float().numpy()
        with columns[1]:
            show_image(enlarged(colored(soft)), lossless=True)
            side = f"{soft.shape[0]} x {soft.shape[1]}"
            st.caption(f"The mask head's {side} probabilities over the box; the mask is where they reach 0.5")
    if instance.has("pred_keypoint_heatmaps"):
        logits = instance.pred_keypoint_heatmaps[0]
        maps = likely(logits if keypoint is None else logits[keypoint, None]).max(0).values.numpy()
        with columns[2]:
            show_image(enlarged(colored(np.sqrt(maps))), lossless=True)
            side = f"{maps.shape[0]} x {maps.shape[1]}"
            st.caption(f"The keypoint head's {side} heatmaps over the RoI, each over its highest value")


def _around(box, shape):
    """Whole pixels of a square around a box, as far as an image of this shape goes."""
    x0, y0, x1, y1 = box
    side = min((1 + 2 * _MARGIN) * max(x1 - x0, y1 - y0) + 4, *shape[:2])
    # As far into the image as it must be moved.
    left = min(max(0, (x0 + x1 - side) / 2), shape[1] - side)
    top = min(max(0, (y0 + y1 - side) / 2), shape[0] - side)
    x0, y0 = int(min(left, x0)), int(min(top, y0))
    return x0, y0, int(max(left + side, x1)), int(max(top + side, y1))
