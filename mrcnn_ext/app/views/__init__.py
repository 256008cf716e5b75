"""What the page shows: thin over the modules beside this package, one file per part of the page."""

from .page import show_page

__all__ = ["show_page"]
