"""Images on the page."""

import numpy as np
import streamlit as st

from ..drawing import data_uri

__all__ = ["show_image"]


def show_image(pixels: np.ndarray, caption: str | None = None, lossless: bool = False) -> None:
    """Shows RGB pixels over the width that there is.

    The page holds the image itself: of Streamlit's image files, which have addresses, those of the run before are gone
    when the browser asks for them late, as while a slider is moved.

    Args:
        pixels: (H, W, 3) uint8.
        caption: below it.
        lossless: as a PNG, for what consists of squares.
    """
    st.image(data_uri(pixels, lossless), width="stretch", caption=caption)
