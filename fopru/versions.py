"""The versions of transformers that fopru stands on, checked when they are imported."""

from __future__ import annotations

import transformers
from packaging.version import Version

OLDEST = "5.21"
PROVEN = f"{OLDEST} to 5.24"
"""The versions of transformers on which the tests of fopru pass."""

if Version(transformers.__version__) < Version(OLDEST):
    raise ImportError(
        f"fopru needs transformers {OLDEST} or newer, and {transformers.__version__} is installed: "
        'pip install -U "transformers>=5.21,<6".'
    )


class UnsupportedModelError(ValueError):
    """The model, its vision tower, or a method on it is outside of what fopru supports."""


def moved(what: str) -> UnsupportedModelError:
    """The error for an installed transformers that has moved what fopru reads of it."""
    return UnsupportedModelError(
        f"{what}. The installed transformers is {transformers.__version__}, and fopru is proven on "
        f"{PROVEN}: install one of these."
    )
