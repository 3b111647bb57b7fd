"""Widgets for notebooks and static pages; they need anywidget (`pip install "fopru[widgets]"`)."""

try:
    from fopru.widgets.explorer import Explorer
    from fopru.widgets.live import (
        Live,
        break_even,
        known_and_said,
        order_and_position,
        rank_and_row,
        sink,
        two_duplicates,
    )
except ModuleNotFoundError as error:
    if error.name not in ("anywidget", "traitlets"):
        raise
    raise ModuleNotFoundError(
        'fopru.widgets needs anywidget, which is not installed: pip install "fopru[widgets]".',
        name=error.name,
    ) from None

__all__ = [
    "Explorer",
    "Live",
    "break_even",
    "known_and_said",
    "order_and_position",
    "rank_and_row",
    "sink",
    "two_duplicates",
]
