"""Two checkpoints side by side."""

import streamlit as st

from ..agreement import agreement
from ..inputs import Picture
from ..models import ShownModel
from .detections import show_picture
from .session import Settings, escaped

__all__ = ["show_comparison"]


def show_comparison(models: list[ShownModel], picture: Picture, settings: Settings) -> None:
    """Draws this part of the page."""
    found = []
    for number, (model, column) in enumerate(zip(models, st.columns(len(models)), strict=True)):
        with column:
            st.markdown(f"**`{model.name}`**")
            instances, prediction = show_picture(model, picture, settings, f"compare-{number}")
            found.append(instances)
            st.caption(f"{len(instances)} objects in {1000 * prediction.seconds:.0f} ms")
    first, second = models
    if first.classes != second.classes:
        st.info("The two have other classes: their objects are not matched.")
        return
    same = agreement(*found)
    overlap = sum(pair[2] for pair in same.both) / max(1, len(same.both))
    columns = st.columns(4)
    columns[0].metric("Found by both", len(same.both))
    columns[1].metric("Mean overlap of their boxes", f"{overlap:.2f}" if same.both else "-")
    columns[2].metric("By the left one alone", len(same.only_first))
    columns[3].metric("By the right one alone", len(same.only_second))
    for instances, alone, side in (
        (found[0], same.only_first, "left"),
        (found[1], same.only_second, "right"),
    ):
        if alone:
            names = [
                f"{first.classes[int(instances.pred_classes[i])]} {float(instances.scores[i]):.2f}"
                for i in alone
            ]
            st.caption(f"By the {side} one alone: {escaped(', '.join(names))}")
