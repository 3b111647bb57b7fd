"""Widgets for notebooks and static pages; they need anywidget (`pip install "fopru[widgets]"`)."""

from fopru.widgets.explorer import Explorer

__all__ = ["Explorer"]
