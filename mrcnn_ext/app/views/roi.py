"""The RoI layers beside each other: where each reads, what it makes of it, and what changes when the box moves."""

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
import torch
from torch import Tensor

from ...engine.errors import UserError
from ...layers.boxes import scaled_boxes
from ..drawing import colored, enlarged, roi_picture
from ..inputs import Picture
from ..models import ShownModel
from ..roi_view import LAYERS, Projection, Pyramid, change_by_shift, moved, pooled, relative_change, samples
from .images import show_image
from .session import Settings, escaped, pick_object, pixels_of, predict

__all__ = ["LAYERS_KEY", "show_roi_layers"]

LAYERS_KEY = "roi-layers"  # the page's style makes two columns of its four in a narrow window

_COLORS = {
    "RoIPool": (255, 99, 99),
    "RoIWarp": (255, 190, 70),
    "RoIAlign": (70, 220, 130),
    "PrRoIPool": (90, 170, 255),
}
_NOTES = {
    "RoIPool": "Rounded to whole cells; each bin's maximum",
    "RoIWarp": "Corners rounded to cells; mean of samples",
    "RoIAlign": "Nothing rounded; mean of samples",
    "PrRoIPool": "Nothing rounded; exact mean (tinted)",
}
# Of one height, so that the pictures below stand beside each other.
_HEADING = """<div style="min-height: 4.4rem; line-height: 1.3">
<b style="color: rgb{color}; font-size: 1.15rem">{layer}</b><br>
<span style="color: #666; font-size: 0.875rem">{note}</span></div>"""
_SHIFTS = np.linspace(-1, 1, 81)
_MARGIN = 2.5  # cells around the box
_NARROWEST = 0.75  # shorter side of a picture over the longer one
_HELP = """
- **First row.** The image as the model sees it, under the cells of the feature map that the box is pooled from (thin
  grey). White is the box, coloured lines are the bins that the layer divides it into, dots are the places where it
  reads. RoIPool and RoIWarp round the box to whole cells first: what they read is beside what was asked for. RoIWarp
  also counts from the corners of cells and not from their centres, and so reads half a cell further down and right.
- **Second row.** The pooled features, which is all that the head gets to see. The four layers share one colour scale.
- **Third row.** How much each bin changed when the box moved, brighter is more. Move the box by less than half a cell:
  RoIPool and RoIWarp do not notice, or jump to other cells at once; RoIAlign and PrRoIPool follow. A head behind them
  can tell where in its cell the box lies, and so where an object's edge or joint is.
- **The curve** shows that for all moves from one cell to the left to one to the right, or from up to down.
"""


def show_roi_layers(model: ShownModel, picture: Picture, settings: Settings) -> None:
    """Draws this part of the page."""
    if not model.heads:
        st.info("This model pools its RoIs by a layer that is not among those shown here.")
        return
    with st.spinner("predicting ..."):
        prediction = predict(model, picture)
    instances = settings.wanted(prediction, model.classes)
    if len(instances) == 0:
        st.info("No object is above the threshold: lower it in the sidebar, or take another picture.")
        return
    controls = st.columns([2, 1, 1])
    with controls[0]:
        place = pick_object(model, picture, instances, "roi")
    heads = list(model.heads)
    head = controls[1].selectbox("RoI of the", heads, index=0)
    box = _model_box(model, instances, place, prediction.size, head)
    try:
        with st.spinner("computing features ..."):
            pyramid = model.pyramid(picture, head)
        kind = _kind(controls[2], pyramid)
        level = samples(pyramid, box, "RoIAlign").level
        _show(picture, prediction.size, pyramid, box, level, kind)
    except UserError as error:
        st.error(escaped(str(error)))


def _model_box(model, instances, place, size, head) -> Tensor:
    """The RoI of a head in pixels of the model's image."""
    height, width = instances.image_size
    box = instances.pred_boxes.tensor[place : place + 1]
    if head == "keypoint head":
        box = scaled_boxes(box, model.keypoint_box_scale)
    return box[0] * torch.tensor([size[1] / width, size[0] / height] * 2)


def _kind(column, pyramid: Pyramid) -> str | int:
    channels = pyramid.maps[0].shape[1]
    names = {"PCA": "three main components", "mean": "mean of the channels"}
    names |= {k: f"channel {k}" for k in range(channels)}
    return column.selectbox("Features as", list(names), format_func=names.get)


def _show(picture, size, pyramid: Pyramid, box: Tensor, level: int, kind) -> None:
    stride = pyramid.stride(level)
    sliders = st.columns(2)
    right = sliders[0].slider("Move the box to the right, in cells", -1.0, 1.0, 0.0, 0.05, key="shift-right")
    down = sliders[1].slider("Move the box down, in cells", -1.0, 1.0, 0.0, 0.05, key="shift-down")
    there = moved(box, right, down, stride)
    _facts(pyramid, box, level, stride)
    with st.expander("How to read this"):
        st.markdown(_HELP)
    outputs = {layer: pooled(pyramid, torch.stack([box, there]), layer) for layer in LAYERS}
    colors = Projection([output[0] for output in outputs.values()], kind)
    changes = {layer: (output[1] - output[0]).norm(dim=0) for layer, output in outputs.items()}
    most = max(float(change.max()) for change in changes.values()) or 1.0
    window = _window(box, stride)
    pixels = pixels_of(picture)
    with st.container(key=LAYERS_KEY):
        columns = st.columns(len(LAYERS))
    for column, layer in zip(columns, LAYERS, strict=True):
        with column:
            color = tuple(round(0.72 * part) for part in _COLORS[layer])
            st.html(_HEADING.format(color=color, layer=layer, note=_NOTES[layer]))
            seen = samples(pyramid, there, layer)
            drawn = roi_picture(
                *(pixels, size, there.tolist(), seen, stride, _COLORS[layer], window),
            )
            show_image(drawn)
            show_image(enlarged(colored(colors(outputs[layer][1]))), "pooled features", lossless=True)
            if right or down:
                change = relative_change(outputs[layer][1], outputs[layer][0])
                change_of_bins = colored((changes[layer] / most).numpy())
                show_image(enlarged(change_of_bins), f"changed by {change:.1%}", lossless=True)
    if not (right or down):
        st.info("Move the box by part of a cell to see which layers notice.", icon=":material/open_with:")
    vertical = down != 0 and right == 0
    _curve(pyramid, box, down if vertical else right, vertical)


def _facts(pyramid, box, level, stride):
    seen = samples(pyramid, box, "RoIAlign")
    bins = f"{len(seen.y.points)} x {len(seen.x.points)} bins"
    reads = f"{seen.y.points.shape[1]} x {seen.x.points.shape[1]} samples each"
    width, height = ((box[i + 2] - box[i]).item() for i in (0, 1))
    st.caption(
        f"A RoI of {width:.1f} x {height:.1f} pixels of the model's image goes to level {pyramid.names[level]}, whose "
        f"cells are {stride:g} pixels wide: it covers {width / stride:.1f} x {height / stride:.1f} cells, divided into "
        f"{bins}; RoIAlign takes {reads}."
    )


def _window(box: Tensor, stride: float) -> list[float]:
    """The box and some cells around it, not too narrow."""
    centre = (box[:2] + box[2:]) / 2
    half = (box[2:] - box[:2]) / 2 + _MARGIN * stride
    half = half.maximum(_NARROWEST * half.flip(0))
    return torch.cat([centre - half, centre + half]).tolist()


def _curve(pyramid, box, here, vertical):
    curves = change_by_shift(pyramid, box, _SHIFTS.tolist(), vertical)
    rows = pd.DataFrame(
        [
            {"layer": layer, "shift": shift, "change": change}
            for layer, values in curves.items()
            for shift, change in zip(_SHIFTS, values, strict=True)
        ]
    )
    colors = [f"rgb{tuple(round(0.85 * part) for part in _COLORS[layer])}" for layer in LAYERS]
    lines = (
        alt.Chart(rows)
        .mark_line(interpolate="linear")
        .encode(
            x=alt.X("shift:Q", title=f"box moved {'down' if vertical else 'to the right'}, in cells"),
            y=alt.Y("change:Q", title="change of the pooled features", axis=alt.Axis(format="%")),
            color=alt.Color(
                "layer:N", scale=alt.Scale(domain=list(LAYERS), range=colors), legend=alt.Legend(title=None)
            ),
            tooltip=["layer:N", alt.Tooltip("shift:Q", format=".2f"), alt.Tooltip("change:Q", format=".1%")],
        )
    )
    rule = (
        alt.Chart(pd.DataFrame({"shift": [here]}))
        .mark_rule(strokeDash=[4, 4], color="grey")
        .encode(x="shift:Q")
    )
    st.altair_chart((lines + rule).properties(height=260), width="stretch")
