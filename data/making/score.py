"""The numbers of the model card: what is known and what is said of each task, beside its controls,
and what pruning does to both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from fopru.encoding import encode
from fopru.evaluation import chat, evaluate
from fopru.evaluation.controls import BLIND
from fopru.evaluation.statistics import READINGS, accuracy, difference, means
from fopru.loading import load
from fopru.methods import FoPru
from fopru.pocket import sample, scenes

METHODS = ("fopru", "fopru-row", "cls", "divprune", "random", "uniform", "oracle")
RETENTIONS = (0.5, 0.25, 0.1, 0.05)
POSITIONS = ("preserve", "reindex")


def score(
    n: int = 200,
    seed: int = 1,
    model: str | Path = "pocket",
    methods: Sequence[str] = METHODS,
    retentions: Sequence[float] = RETENTIONS,
    world: str = "second",
) -> pd.DataFrame:
    """Ask n fresh questions per task with all tokens, blind, and pruned.

    Args:
        n: questions per task.
        seed: of `fopru.pocket.sample`.
        model: as for `fopru.load`.
        methods, retentions: as for `fopru.evaluate`.
        world: as for `fopru.pocket.sample`: the one that the model was trained on.

    Returns:
        Rows of `fopru.evaluate`.
    """
    examples = [e for task in scenes.TASKS for e in sample(task, n, seed, world)]
    net, processor = load(model)
    parts = []
    for positions in POSITIONS:
        blind = tuple(BLIND) if positions == POSITIONS[0] else ()
        rows = evaluate(net, processor, examples, methods, retentions, positions, blind=blind)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def sinks(
    n: int = 200, seed: int = 1, model: str | Path = "pocket", world: str = "second"
) -> pd.DataFrame:
    """Whether single tokens stand out, per picture: attention sinks, tokens of high norm.

    Returns:
        One row per picture: task; `norm`, the largest norm of a visual token as the LLM gets it,
        over the median; `received`, the most attention that a patch receives in the scored block,
        over the mean; `cls`, the share of the patches' attention that goes to the CLS token.
    """
    net, processor = load(model)
    pruners = [FoPru(1.0, axis="received"), FoPru(1.0, axis="given")]
    prompts = processor.apply_chat_template([chat("?")], add_generation_prompt=True)
    rows = []
    for task in scenes.TASKS:
        examples = list({e.scene["image_id"]: e for e in sample(task, n, seed, world)}.values())
        for e in examples:
            inputs = processor(images=e.image, text=prompts, return_tensors="pt")
            (image,) = encode(net, inputs.to(net.device), pruners).images
            norms, received = image.features.norm(dim=1), image.tap("received")
            rows.append(
                {
                    "task": task,
                    "norm": (norms.max() / norms.median()).item(),
                    "received": (received.max() / received.mean()).item(),
                    "cls": 1 - len(norms) * image.tap("given").mean().item(),
                }
            )
    return pd.DataFrame(rows)


def report(results: pd.DataFrame, stands_out: pd.DataFrame) -> str:
    """The tables of the model card, in Markdown, from `score` and `sinks`."""
    kept = results[results.positions == "preserve"]
    parts = []
    for reading in ("known", "said"):
        value, what = READINGS[reading], TITLES[reading]
        parts += [f"### {what}, percent: all tokens and blind", _full(kept, value)]
        for positions in POSITIONS:
            parts += [f"### {what}, percent: pruned, {NUMBERED[positions]}"]
            parts += [_pruned(results, positions, value)]
        parts += [
            f"### {what}, percent, by patches that the evidence covers, {NUMBERED['preserve']}"
        ]
        parts += [_by_evidence(kept, value)]
        parts += [f"### {what}: FoPru rank against others at 25 %, {NUMBERED['preserve']}"]
        parts += [_differences(kept, value)]
    for positions in POSITIONS:
        parts += [f"### {TITLES['malformed']}, percent: {NUMBERED[positions]}"]
        parts += [_pruned(results, positions, "malformed")]
    parts += ["### Share of the evidence that is kept, in percent", _recall(kept)]
    parts += ["### Tokens that stand out, median and largest over pictures", _sinks(stands_out)]
    return "\n\n".join(parts)


TITLES = {
    "known": "Known (forced choice)",
    "said": "Said (exact match)",
    "malformed": "Malformed answers",
}
NUMBERED = {"preserve": "original position ids", "reindex": "renumbered position ids"}


def _cell(row: pd.Series) -> str:
    return _within(row["mean"], row["low"], row["high"])


def _within(mean: float, low: float, high: float, sign: str = "") -> str:
    """Percent with their interval, which there is none of for a single picture."""
    ends = "" if math.isnan(low) else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{100 * mean:{sign}.1f}{ends}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _full(results: pd.DataFrame, value: str) -> str:
    cells = accuracy(results[results.method.isin(["full", *BLIND])], value=value)
    lines = []
    for task, part in cells.groupby("task", sort=False):
        by = part.set_index("method")
        lines.append([task, *(_cell(by.loc[m]) for m in ("full", *BLIND))])
    return _table(["task", "all tokens", "no picture", "a grey one", "another one"], lines)


def _pruned(results: pd.DataFrame, positions: str, value: str) -> str:
    rows = results[results.positions == positions]
    cells = means(rows, value=value).set_index(["task", "method", "retention"])["mean"]
    methods = [m for m in METHODS if m in set(rows.method)]
    retentions = sorted(set(rows.retention) - {0.0, 1.0}, reverse=True)
    lines = []
    for task in dict.fromkeys(rows.task):
        line = [task, f"{100 * cells[task, 'full', 1.0]:.0f}"]
        for method in methods:
            line.append(" ".join(f"{100 * cells[task, method, r]:.0f}" for r in retentions))
        lines.append(line)
    kept = "/".join(f"{100 * r:.0f}" for r in retentions)
    return f"Columns of methods: {kept} % of the tokens.\n\n" + _table(
        ["task", "all", *methods], lines
    )


def _by_evidence(results: pd.DataFrame, value: str) -> str:
    rows = results[(results.evidence > 0) & results.retention.isin((1.0, 0.25))]
    labels = ["1-4", "5-16", "17-64", "65-256"]
    bins = pd.cut(rows.evidence, [0, 4, 16, 64, 256], labels=labels)
    cells = accuracy(rows.assign(patches=bins.astype(str)), ["patches"], value)
    cells = cells.set_index("patches")
    lines = []
    for patches in (label for label in labels if label in cells.index):
        by = cells.loc[[patches]].set_index("method")
        methods = [m for m in ("full", *METHODS) if m in by.index]
        lines.append([patches, str(by.n.iloc[0]), *(_cell(by.loc[m]) for m in methods)])
    return _table(["patches", "questions", *methods], lines)


def _differences(results: pd.DataFrame, value: str) -> str:
    lines = []
    for task, part in results.groupby("task", sort=False):
        others = ["full", *(m for m in METHODS if m not in ("fopru", "oracle"))]
        pairs = [(other, 1.0 if other == "full" else 0.25) for other in others]
        gaps = [difference(part, ("fopru", 0.25), pair, value) for pair in pairs]
        lines.append([task, *(_within(*gap, "+") for gap in gaps)])
    return _table(["task", *(f"less {other}" for other in others)], lines)


def _recall(results: pd.DataFrame) -> str:
    cells = means(results, by=[], value="found")
    lines = []
    for method, part in cells.groupby("method", sort=False):
        if method in METHODS:
            by = part.set_index("retention")["mean"]
            lines.append([method, *(f"{100 * by[r]:.0f}" for r in RETENTIONS if r in by)])
    return _table(["method", *(f"{100 * r:.0f} %" for r in RETENTIONS)], lines)


def _sinks(stands_out: pd.DataFrame) -> str:
    names = {
        "norm": "largest norm of a token / median",
        "received": "most attention received / mean",
        "cls": "attention that goes to CLS",
    }
    by_task = stands_out.groupby("task", sort=False)[list(names)].agg(["median", "max"])
    lines = [
        [str(task), *(f"{row[name, 'median']:.2f}, {row[name, 'max']:.2f}" for name in names)]
        for task, row in by_task.iterrows()
    ]
    return _table(["task", *names.values()], lines)
