"""Kept tokens with and without weights: `data/results/weights/`.

python benchmarks/weights.py tune       # on the validation split: which selection
python benchmarks/weights.py test       # on the test split, once: a stopped run goes on
python benchmarks/weights.py seeds seed1 seed2 seed3    # models of benchmarks/half.py
python benchmarks/weights.py timing     # two layers of LLaVA-1.5-7B's shape, with and without
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import fopru
from fopru.cli.common import keep
from fopru.encoding import EncodedImage
from fopru.evaluation.controls import CONTROLS
from fopru.methods.fopru import FoPru
from fopru.picking import top

FOLDER = Path(__file__).parents[1] / "data" / "results" / "weights"
STORE = Path("~/.cache/fopru/weights").expanduser()
RETENTIONS = (0.5, 0.25, 0.1, 0.05)
SELECTING = (
    *("fopru", "fopru-row", "cls", "vispruner", "divprune", "dpp", "cdpruner", "dart"),
    "uniform",
)
TUNED = (
    *("fopru", "fopru-cells", "fopru-quarter", "fopru-cover", "divprune", "dpp", "uniform"),
    *("cls", "vispruner", "random"),
)
COLUMNS = ["id", "task", "image", "method", "retention", "seed", "kept", "evidence", "found"]


@dataclass(frozen=True)
class Cover(FoPru, name="fopru-cover"):
    """Part of the budget by rank, the rest spread: the tokens that are left, in the order of a
    Hilbert curve over the grid, are cut into as many runs of equal length, and each keeps the one
    of largest significance.

    Args:
        ranked: share of the budget that is taken by rank, in [0, 1].
    """

    ranked: float = 0.5

    def select(self, image: EncodedImage, k: int) -> Tensor:
        (view,) = image.grid.views
        scores = image.significance
        best = top(scores, round(k * self.ranked))
        left = torch.ones(len(scores), dtype=torch.bool)
        left[best.cpu()] = False
        curve = hilbert(view.height, view.row_width)
        curve = curve[left[curve]].to(scores.device)
        cells = curve.tensor_split(k - len(best)) if k > len(best) else ()
        peaks = [cell[scores[cell].argmax()] for cell in cells]
        return torch.cat([best, torch.stack(peaks)] if peaks else [best]).sort().values


@cache
def hilbert(height: int, width: int) -> Tensor:
    """(height * width,) places of a grid in the order of a Hilbert curve over the square around it
    (D. Hilbert, "Ueber die stetige Abbildung einer Linie auf ein Flaechenstueck", 1891)."""
    side = 1
    while side < max(height, width):
        side *= 2
    x = torch.arange(width).repeat(height)
    y = torch.arange(height).repeat_interleave(width)
    along = torch.zeros_like(x)
    step = side // 2
    while step:
        right, below = (x & step > 0).long(), (y & step > 0).long()
        along += step * step * ((3 * right) ^ below)
        flipped = (below == 0) & (right == 1)
        x, y = x.where(~flipped, side - 1 - x), y.where(~flipped, side - 1 - y)
        swap = below == 0
        x, y = y.where(swap, x), x.where(swap, y)
        step //= 2
    return along.argsort()


@dataclass(frozen=True)
class Cells(Cover, name="fopru-cells"):
    """All of the budget spread."""

    ranked: float = 0.0


@dataclass(frozen=True)
class Quarter(Cover, name="fopru-quarter"):
    """A quarter by rank."""

    ranked: float = 0.25


def both(methods):
    kinds = {**fopru.METHODS, **CONTROLS}
    return [kinds[name](weights=weights) for name in methods for weights in ("none", "mass")]


def ask(model, split: str, methods, store: Path, seeds=(0,)) -> pd.DataFrame:
    net, processor = fopru.load(model)
    store.parent.mkdir(parents=True, exist_ok=True)
    examples = fopru.pocket.benchmark(split)
    return fopru.evaluate(net, processor, examples, methods, RETENTIONS, seeds=seeds, out=store)


def slim(results: pd.DataFrame) -> pd.DataFrame:
    return results[[*COLUMNS, "correct", "loglik"]].astype(
        {"found": "float32", "loglik": "float32"}
    )


def tune() -> None:
    results = ask("pocket", "validation", both(TUNED), STORE / "validation.sqlite")
    keep(slim(results).assign(layers="all"), FOLDER / "validation.parquet")


def test() -> None:
    chosen = both((*SELECTING, "oracle"))
    results = ask("pocket", "test", chosen, STORE / "test.sqlite")
    draws = ask("pocket", "test", both(("random",)), STORE / "test.sqlite", range(5))
    results = pd.concat([results, draws], ignore_index=True)
    results = results.drop_duplicates(["id", "method", "retention", "seed"])
    keep(slim(results), FOLDER / "test.parquet")


def seeds(folders: list[Path]) -> None:
    methods = both(("fopru", "divprune", "uniform", "random"))
    parts = [
        ask(folder, "test", methods, STORE / f"{folder.name}.sqlite").assign(model=folder.name)
        for folder in folders
    ]
    results = pd.concat(parts, ignore_index=True)
    keep(slim(results).assign(model=results["model"]), FOLDER / "seeds.parquet")


@torch.no_grad()
def timing(turns: int = 9, steps: int = 8) -> None:
    """Prefill and decode with the bias over without, in turns."""
    text = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, vocab_size=128)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(**text, num_hidden_layers=2),
        image_token_index=5,
    )
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16).eval()
    inputs = {
        "pixel_values": torch.randn(1, 3, 336, 336),
        "input_ids": torch.tensor([[1] * 10 + [5] * 576 + [2] * 34]),
    }
    for retention in (0.5, 0.25):
        taken = {"none": ([], []), "mass": ([], [])}
        for turn in range(turns + 1):
            for weights in ("none", "mass") if turn % 2 else ("mass", "none"):
                with fopru.FoPru(retention, weights=weights)(model) as run:
                    model(**inputs, logits_to_keep=1)  # the tower and the selection
                    pruned = dict(run.last)
                    start = time.perf_counter()
                    out = model(**pruned, use_cache=True, logits_to_keep=1)
                    first = time.perf_counter()
                    for _ in range(steps):
                        token = torch.tensor([[7]])
                        out = model(input_ids=token, past_key_values=out.past_key_values)
                    end = time.perf_counter()
                if turn:
                    taken[weights][0].append(first - start)
                    taken[weights][1].append((end - first) / steps)
        for i, stage in enumerate(("prefill", "decode")):
            none, mass = (statistics.median(taken[w][i]) for w in ("none", "mass"))
            ratios = [m / n for m, n in zip(taken["mass"][i], taken["none"][i], strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4)
            print(
                f"retention {retention}: {stage} {1000 * none:.1f} ms, with weights "
                f"{1000 * mass:.1f} ms; ratio {median:.3f} [{low:.3f}, {high:.3f}]"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["tune", "test", "seeds", "timing"])
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.part == "seeds":
        seeds(arguments.folders)
    else:
        {"tune": tune, "test": test, "timing": timing}[arguments.part]()
