"""The one way in which a pruner acts on a model."""

from fopru.applying.before import Before
from fopru.applying.conversation import cache_name, select_rows
from fopru.applying.inside import Inside
from fopru.applying.session import Handle, Session, at_work, inferred_mask

__all__ = [
    "Before",
    "Handle",
    "Inside",
    "Session",
    "at_work",
    "cache_name",
    "inferred_mask",
    "select_rows",
]
