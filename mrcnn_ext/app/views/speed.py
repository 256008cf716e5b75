"""Where the time goes, stage by stage, as detectron2 runs the model and accelerated."""

import altair as alt
import pandas as pd
import streamlit as st

from ...benchmark.stages import STAGES
from ..inputs import Picture
from ..models import ShownModel

__all__ = ["show_speed"]

_MEANING = {
    "preprocess": "normalising and padding the image",
    "backbone": "feature maps",
    "RPN": "proposals",
    "pool": "RoI layers",
    "heads": "layers of the box, mask and keypoint heads",
    "decode": "from their outputs to boxes, masks and keypoints; non-maximum suppression",
    "postprocess": "back to the image's size; pasting of masks",
}


def show_speed(models: list[ShownModel], picture: Picture) -> None:
    """Draws this part of the page."""
    st.markdown(
        "Milliseconds that each stage takes for this picture: as detectron2 runs the model, and after "
        "`mrcnn_ext.accelerate`."
    )
    kept = st.session_state.setdefault("latencies", {})
    key = (picture.key, tuple(model.path for model in models))
    if st.button("Measure", type="primary", icon=":material/timer:"):
        with st.spinner("measuring; the server predicts for nobody else meanwhile ..."):
            kept.clear()
            kept[key] = [_row(model, picture, fast) for model in models for fast in (False, True)]
    if key not in kept:
        return
    rows = kept[key]
    _chart(rows)
    table = pd.DataFrame(
        [{"": row["name"], **{s: row[s] for s in STAGES}, "all": row["all"]} for row in rows]
    ).set_index("")
    st.dataframe(table.style.format("{:.1f}"))
    for plain, fast in zip(rows[::2], rows[1::2], strict=True):
        st.caption(
            f"{fast['name']}: {plain['all'] / fast['all']:.1f} times as fast; medians of {plain['runs']} and "
            f"{fast['runs']} runs"
        )
    with st.expander("What the stages are"):
        st.markdown("\n".join(f"- **{stage}**: {meaning}" for stage, meaning in _MEANING.items()))


def _row(model, picture, fast) -> dict:
    times = model.latency(picture, accelerated=fast)
    row = {stage: 1000 * times[stage] for stage in STAGES}
    how = "accelerated" if fast else "detectron2"
    return {**row, "name": f"{model.name}, {how}", "all": sum(row.values()), "runs": times["runs"]}


def _chart(rows):
    data = pd.DataFrame(
        [
            {"model": row["name"], "stage": stage, "ms": row[stage], "order": order}
            for row in rows
            for order, stage in enumerate(STAGES)
        ]
    )
    names = [row["name"] for row in rows]
    chart = (
        alt.Chart(data)
        .mark_bar()
        .encode(
            y=alt.Y("model:N", sort=names, title=None, axis=alt.Axis(labelLimit=320)),
            x=alt.X("sum(ms):Q", title="milliseconds", stack="zero"),
            color=alt.Color("stage:N", sort=list(STAGES), legend=alt.Legend(title=None, orient="bottom")),
            order="order:Q",
            tooltip=["model:N", "stage:N", alt.Tooltip("ms:Q", format=".1f")],
        )
        .properties(height=60 + 55 * len(rows))
    )
    st.altair_chart(chart, width="stretch")
