"""The image with its objects, drawn by the browser: see ``overlay.js``."""

from pathlib import Path

import streamlit as st

__all__ = ["show_overlay"]

_HERE = Path(__file__).parent
_overlay = st.components.v2.component(
    "mrcnn_ext_overlay",
    html='<div class="overlay"></div>',
    css=(_HERE / "overlay.css").read_text(encoding="utf-8"),
    js=(_HERE / "overlay.js").read_text(encoding="utf-8"),
)


def show_overlay(shapes: dict, title: str, chosen: int | None, key: str) -> int | None:
    """
    Args:
        shapes: of `drawing.shapes`.
        title: what the image is, for those who do not see it.
        chosen: id of the object that is marked.
        key: of the element on the page.

    Returns:
        The id of an object that was clicked since the last run of the page.
    """
    data = {**shapes, "title": title, "chosen": chosen}
    return _overlay(data=data, key=key, on_chosen_change=lambda: None).chosen
