"""The page as a whole."""

import logging

import numpy as np
import streamlit as st
from PIL import Image

from ...engine.errors import UserError
from ..inputs import Picture
from ..models import served_models
from .compare import show_comparison
from .detections import show_detections
from .heads import show_heads
from .roi import LAYERS_KEY, show_roi_layers
from .session import escaped
from .sidebar import show_sidebar
from .speed import show_speed

__all__ = ["show_page"]

_STYLE = """<style>
.block-container { padding: 2.6rem 2.5rem 2rem; }
[data-testid="stSidebarHeader"] { height: 2.5rem; margin-bottom: 0; }
@media (max-width: 640px) {
  .block-container { padding: 3rem 1rem 1rem; }
  .st-key-{LAYERS_KEY} [data-testid="stColumn"] { min-width: calc(50% - 0.5rem); flex: 1 1 calc(50% - 0.5rem); }
}
</style>""".replace("{LAYERS_KEY}", LAYERS_KEY)


def show_page() -> None:
    """Draws the page of one session; Streamlit calls it whenever something on it changes."""
    st.set_page_config(page_title="mrcnn_ext", page_icon=_icon(), layout="wide")
    st.html(_STYLE)
    models = served_models()
    if not models:
        st.error("No model is served: start the app by `mrcnn-ext app CHECKPOINT`.")
        return
    settings = show_sidebar(models)
    if not settings.pictures:
        st.info("Drop images or a short video on the field in the sidebar.", icon=":material/upload_file:")
        return
    picture = _choose(settings.pictures)
    names = ["Detections", "Heads", "RoI layers", *(["Compare"] if len(models) == 2 else []), "Speed"]
    tabs = dict(zip(names, st.tabs(names, key="view", on_change="rerun"), strict=True))
    views = {
        "Detections": lambda: show_detections(settings.model, picture, settings),
        "Heads": lambda: show_heads(settings.model, picture, settings),
        "RoI layers": lambda: show_roi_layers(settings.model, picture, settings),
        "Compare": lambda: show_comparison(models, picture, settings),
        "Speed": lambda: show_speed(models, picture),
    }
    for name, tab in tabs.items():
        if tab.open:  # the others are not computed
            with tab:
                _guarded(views[name])


def _icon() -> Image.Image:
    """A box with an object in it; the names that Streamlit takes for icons are fetched from elsewhere."""
    icon = np.full((32, 32, 3), 255, np.uint8)
    icon[2:30, 2:30] = (31, 111, 235)
    icon[5:27, 5:27] = 255
    rows, columns = np.mgrid[:32, :32]
    icon[(rows - 16) ** 2 + (columns - 16) ** 2 < 60] = (255, 138, 60)
    return Image.fromarray(icon)


def _choose(pictures: list[Picture]) -> Picture:
    if len(pictures) == 1:
        st.markdown(f"#### {escaped(pictures[0].title)}")
        return pictures[0]
    place = st.select_slider(
        "Picture",
        range(len(pictures)),
        format_func=lambda i: pictures[i].title,
        key=f"picture-{pictures[0].key}-{len(pictures)}",
    )
    return pictures[place]


def _guarded(view) -> None:
    try:
        view()
    except UserError as error:
        st.error(escaped(str(error)))
    except (RuntimeError, MemoryError) as error:
        logging.getLogger(__name__).exception("a view failed")
        st.error(f"This failed; the server's terminal has the details. {escaped(str(error)[:300])}")
