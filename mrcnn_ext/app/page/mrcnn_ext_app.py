"""The page: run by Streamlit, from the top, whenever something on it changes."""

from mrcnn_ext.app.views import show_page

show_page()
