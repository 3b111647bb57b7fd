"""Towers that take single patches with their places: some can be left out before the first block.

Such a tower works out from the sizes of its pictures where each patch sits, by functions of
`transformers.vision_utils`, and takes what these return from its caller instead, where it is given
by name. Here it is worked out for whole pictures, and what is left of it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from fopru.versions import UnsupportedModelError, moved


def taken_whole(family: Any) -> UnsupportedModelError:
    """Return the error for a family and a kind of prompt in which no patch can be left out."""
    what = "frames of a video" if family.modality == "video" else "pictures"
    there = sorted({kind.title for kind in family.registry.values() if kind.patchwise})
    return UnsupportedModelError(
        f"this method leaves patches out before the vision tower, and {what} go through that of "
        f"{family.title} whole; it is there for pictures of: {'; '.join(there)}."
    )


def check_takes(tower: nn.Module, functions: tuple[Callable[..., Any], ...]) -> None:
    """Check that a tower takes from its caller what these functions of transformers work out.

    Raises:
        UnsupportedModelError: the installed transformers has another way.
    """
    called = inspect.unwrap(type(tower).forward).__code__.co_names
    for function in functions:
        if function.__name__ not in called:
            raise moved(
                f"{type(tower).__name__} does not place its patches by {function.__name__}, so "
                "that none can be left out before it"
            )


def bounds(ends: Tensor, keep: Tensor) -> Tensor:
    """Return where runs of patches begin and end when some are left out, (runs + 1,) int32.

    Args:
        ends: (runs + 1,) where they do among all patches.
        keep: (patches,) bool: False for those that are left out. A run of which none is left goes.
    """
    before = F.pad(keep.cumsum(0, dtype=torch.int32), (1, 0))  # (patches + 1,) that are left
    return before[ends].unique_consecutive()


def interpolated(tower: nn.Module, sizes: Tensor, keep: Tensor) -> dict[str, Tensor]:
    """Return from where in its table of learned positions a tower mixes those of its patches.

    Args:
        tower: That of Qwen3-VL, or one like it.
        sizes: (pictures, 3) patches in time, height and width.
        keep: (patches,) bool: False for those that are left out.

    Raises:
        UnsupportedModelError: the installed transformers has other names.
    """
    try:
        indices, weights = get_vision_interpolation_indices_and_weights(
            sizes,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.spatial_merge_size,
        )
    except AttributeError as error:
        raise moved(str(error)) from None
    return {"interp_indices": indices[keep], "interp_weights": weights[keep]}  # (patches, 4)
