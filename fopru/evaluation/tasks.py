"""What a benchmark consists of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Example:
    """One question about one picture."""

    id: str
    task: str
    image: Image.Image = field(repr=False)
    """RGB."""
    question: str
    answer: str
    """Right when the decoded answer, stripped and lower-cased, equals it."""
    choices: tuple[str, ...] | None = None
    evidence: tuple[tuple[int, int, int, int], ...] = ()
    """Boxes (x0, y0, x1, y1) in pixels that hold what the answer rests on; empty where there is
    nothing to see, as for a "no"."""
    scene: dict[str, Any] = field(default_factory=dict, repr=False)
    """Ground truth; `scene["image_id"]` is shared by questions on the same picture."""
