"""One look for all figures: colours, markers, and drawings that fit light and dark pages."""

from __future__ import annotations

import base64
import html
import io
import re
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

BLUE, RED, GREEN, PINK, ORANGE, SKY, GREY = PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C"),
)
"""Okabe and Ito's colours, which the colour-blind can tell apart. Grey, which is seen on a dark
page too, stands for their black."""

INK = "#010203"
"""The colour of all that is neither data nor picture; `show` replaces it by the colour of the
page's text."""

LOOKS = {
    "fopru": (BLUE, "o"),
    "fopru-row": (ORANGE, "P"),
    "mosaic": (PINK, "h"),
    "hiprune": (BLUE, "^"),
    "cls": (RED, "o"),
    "vispruner": (RED, "s"),
    "visionzip": (RED, "D"),
    "prumerge": (RED, "^"),
    "prumerge+": (RED, "v"),
    "holov": (RED, "P"),
    "vscan": (RED, "X"),
    "divprune": (GREEN, "o"),
    "dpp": (GREEN, "s"),
    "cdpruner": (GREEN, "D"),
    "dart": (GREEN, "^"),
    "scope": (GREEN, "v"),
    "prunesid": (GREEN, "P"),
    "mmtok": (GREEN, "X"),
    "evs": (GREEN, "d"),
    "pixelprune": (GREEN, "*"),
    "tome": (PINK, "o"),
    "pool": (PINK, "s"),
    "cluster-mean": (PINK, "D"),
    "fastv": (ORANGE, "o"),
    "pyramiddrop": (ORANGE, "s"),
    "sparsevlm": (ORANGE, "D"),
    "random": (SKY, "o"),
    "uniform": (SKY, "s"),
    "oracle": (GREY, "^"),
    "smaller": (GREY, "v"),
}
"""The colour and the marker of each method in every figure; the colour says of what kind the method
is. Only fopru-row and the book's mosaic leave their kind: they are drawn beside fopru."""


def look(label: str) -> tuple[str, str]:
    """Return the colour and marker of a method and of any of its variants ("fopru-mass", "fopru,
    layer=2"). A label that begins with no known method gets a colour of its own."""
    known = [n for n in LOOKS if label == n or label.startswith((f"{n}-", f"{n},", f"{n} "))]
    if known:
        return LOOKS[max(known, key=len)]
    number = sum(label.encode())
    return PALETTE[number % len(PALETTE)], "Pdx*"[number % 4]


def seaborn() -> Any:
    """Return the library seaborn.

    Raises:
        ModuleNotFoundError: The library is not installed.
    """
    try:
        import seaborn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'this figure is drawn with seaborn, which is not installed: pip install "fopru[book]".'
        ) from error
    return seaborn


def theme() -> None:
    """Draw in one look from here on: seaborn's "ticks", no background, the palette above."""
    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    clear = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none")
    rc = {
        **dict.fromkeys(colors, INK),
        **clear,
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "grid.alpha": 0.25,
        "grid.color": GREY,
        "legend.frameon": False,
        "lines.markersize": 5,
        "svg.hashsalt": "fopru",
    }
    seaborn().set_theme("notebook", "ticks", PALETTE, font_scale=0.85, rc=rc)


def show(figure: Figure, caption: str) -> None:
    """Show a figure with its caption in a notebook, and close it. It becomes a drawing that takes
    the colour of the text around it, so that it can be read on light and on dark pages.

    Args:
        caption: Says what is drawn, of how many questions or pictures, and what a band is; it is
            the figure's text for those who cannot see it.
    """
    from IPython.display import HTML, display

    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=80, bbox_inches="tight", transparent=True)
    plt.close(figure)
    drawn = text.getvalue()[text.getvalue().index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawn)
    drawn = re.sub(r"data:image/png;base64,([^\"]*)", _webp, drawn)
    name = html.escape(caption, quote=True)
    width = re.search(r'width="([0-9.]+pt)"', drawn)[1]
    style = f"max-width:100%;min-width:min({width},30rem);height:auto"  # a narrow page scrolls
    drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{name}" style="{style}"', 1)
    caption = re.sub(r"^(Figure [0-9A-Z.]+)", r"<strong>\1</strong>", html.escape(caption))
    display(HTML(f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"))


def _webp(png: re.Match[str]) -> str:
    """Return the same picture, pixel by pixel, in fewer bytes."""
    image, file = Image.open(io.BytesIO(base64.b64decode(png[1]))), io.BytesIO()
    image.save(file, "webp", lossless=True, exact=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
