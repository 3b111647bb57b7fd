"""The versions of transformers that fopru stands on, checked when they are imported."""

from __future__ import annotations

import transformers
from packaging.version import Version

OLDEST = "5.19"
PROVEN = f"{OLDEST} to 5.24"
"""The versions of transformers on which the tests of fopru pass."""

INSTALLED = Version(transformers.__version__)
LISTS = Version("5.21")
"""The first version of transformers whose Idefics models give and take a list, the tokens of each
prompt's pictures, and not one tensor of all tiles."""
CHUNKS = Version("5.23")
"""The first version of transformers that prefills pictures in chunks rightly."""


def check(installed: Version) -> None:
    """Raise ImportError if this version of transformers is too old for fopru."""
    if installed < Version(OLDEST):
        raise ImportError(
            f"fopru needs transformers {OLDEST} or newer, and {installed} is installed: "
            f'pip install -U "transformers>={OLDEST},<6".'
        )


check(INSTALLED)


class UnsupportedModelError(ValueError):
    """The model, its vision tower, or a method on it is outside of what fopru supports."""


def moved(what: str) -> UnsupportedModelError:
    """Return the error for an installed transformers that has moved what fopru reads of it."""
    return UnsupportedModelError(
        f"{what}. The installed transformers is {transformers.__version__}, and fopru is proven on "
        f"{PROVEN}: install one of these."
    )
