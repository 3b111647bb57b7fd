"""Draw book/_static/card.png, which stands for the book where a link to it is shared."""

import io
from pathlib import Path

import fopru
from fopru import plots
from matplotlib import pyplot as plt
from PIL import Image

OUT = Path(__file__).parents[1] / "_static" / "card.png"


def main() -> None:
    model, processor = fopru.load("pocket")
    sign = fopru.pocket.sample("reading", n=1, seed=11)[0]
    inputs = fopru.prepare(processor, sign.image, sign.question)
    (kept,) = fopru.FoPru(0.25).prune(model, inputs).images
    plots.theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.3), layout="none")
    figure.set_facecolor("#101820")
    figure.subplots_adjust(left=0.03, right=0.97, top=0.84, bottom=0.12, wspace=0.04)
    left.imshow(sign.image)
    left.set_axis_off()
    plots.overlay(sign.image, kept, processor, ax=right)
    right.set(title="", xlabel="")
    right.set_axis_off()
    style = {"ha": "center", "color": "white"}
    figure.text(0.5, 0.9, "What does a vision-language model see?", size=30, weight="bold", **style)
    below = f"{kept.n_full} visual tokens, and the {kept.n_kept} that FoPru keeps"
    figure.text(0.5, 0.035, below, size=22, **style)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    Image.open(data).convert("RGB").quantize(24, dither=Image.Dither.NONE).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
