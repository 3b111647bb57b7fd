"""Draw book/_static/card.jpg, which stands for the book where a link to it is shared."""

from pathlib import Path

from matplotlib import pyplot as plt

import fopru
from fopru import plots

OUT = Path(__file__).parents[1] / "_static" / "card.jpg"


def main() -> None:
    model, processor = fopru.load("pocket")
    sign = fopru.pocket.sample("reading", n=1, seed=11)[0]
    inputs = fopru.prepare(processor, sign.image, sign.question)
    (kept,) = fopru.FoPru(0.25).prune(model, inputs).images
    plots.theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.3), layout="none")
    figure.subplots_adjust(left=0.03, right=0.97, top=0.84, bottom=0.12, wspace=0.04)
    left.imshow(sign.image)
    left.set_axis_off()
    plots.overlay(sign.image, kept, processor, ax=right)
    right.set(title="", xlabel="")
    right.set_axis_off()
    style = {"ha": "center", "color": "#182028"}
    figure.text(0.5, 0.9, "What does a vision-language model see?", size=30, weight="bold", **style)
    below = f"{kept.n_full} visual tokens, and the {kept.n_kept} that FoPru keeps"
    figure.text(0.5, 0.035, below, size=22, **style)
    small = {"quality": 80, "optimize": True}
    figure.savefig(OUT, dpi=100, facecolor="white", pil_kwargs=small)


if __name__ == "__main__":
    main()
