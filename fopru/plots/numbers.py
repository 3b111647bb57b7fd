"""Accuracy, differences, times and losses, drawn with seaborn (`pip install "fopru[book]"`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from fopru.efficiency import STAGES
from fopru.plots.style import GREY, INK, PALETTE, look, seaborn


def curves(cells: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw a share against the visual tokens really kept, with bands; all tokens and blind are
    lines.

    Args:
        cells: Rows of one task and reading, from `statistics.accuracy`, `statistics.bands` or
            `statistics.readings`: method, kept, mean, low, high. Of "full", "none", "grey",
            "swapped" and "guess", which have no retention, a line is drawn.
    """
    ax = ax if ax is not None else plt.subplots(figsize=(6, 4), layout="constrained")[1]
    lone = [m for m in cells.method.unique() if m in LONE]
    swept = cells[~cells.method.isin(lone)]
    percent = swept.assign(**{name: 100 * swept[name] for name in ("mean", "low", "high")})
    names = list(dict.fromkeys(swept.method))
    looks = {name: look(name) for name in names}
    if names:
        seaborn().lineplot(
            percent.sort_values("kept"),
            x="kept",
            y="mean",
            hue="method",
            style="method",
            hue_order=names,
            style_order=names,
            palette={name: color for name, (color, _) in looks.items()},
            markers={name: marker for name, (_, marker) in looks.items()},
            dashes={name: DASHES.get(name.rpartition("-")[2], "") for name in names},
            errorbar=None,
            markeredgewidth=0,
            ax=ax,
        )
    for name, part in percent.sort_values("kept").groupby("method", sort=False):
        ax.fill_between(part.kept, part.low, part.high, color=looks[name][0], alpha=0.15, lw=0)
    for method in lone:
        mean = 100 * cells[cells.method == method]["mean"].item()
        ax.axhline(mean, color=GREY, linestyle=LONE[method], label=method, linewidth=1)
    ax.set(xlabel="visual tokens kept", ylabel="accuracy (%)", xscale="log", ylim=(0, 102))
    ticks = np.unique(swept.kept.round().astype(int))
    ax.set_xticks(ticks[:: max(1, math.ceil(len(ticks) / 6))], minor=False)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", title=None)
    return ax


DASHES = {"mass": (2, 1), "restore": (1, 1), "uniform": (5, 2)}
"""The dashes of methods whose tokens are weighted, and of uniform, which is drawn beside random in
the same colour."""

LONE = {
    "full": "-",
    "none": ":",
    "grey": "--",
    "swapped": "-.",
    "guess": (0, (1, 3)),
}
"""The methods without a retention, each with the style of its line."""


def readings(cells: pd.DataFrame) -> Figure:
    """Draw three shares against the visual tokens kept: what is known, what is said, and what is
    said that is no legal answer.

    Args:
        cells: The table of `statistics.readings`, of one task or of all together.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.3), sharey=True, layout="constrained")
    titles = {
        "known": "known (forced choice)",
        "said": "said (exact match)",
        "malformed": "malformed answers",
    }
    for ax, (reading, title) in zip(axes, titles.items(), strict=True):
        part = cells[cells.reading == reading]
        if reading == "malformed":
            part = part[part.method != "guess"]
        curves(part, ax).set(title=title, ylabel="share of questions (%)")
    for ax in axes[1:]:
        ax.get_legend().remove()
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize="small")
    return figure


def gaps(table: pd.DataFrame, by: str, ax: Axes | None = None) -> Axes:
    """Draw differences with their intervals, a line for each value of `by`; what is right of 0 is
    gained.

    Args:
        table: The columns `by`, reading, mean, low and high, in points.
        by: The column whose values stand on the vertical axis, in their order.
    """
    ax = ax if ax is not None else plt.subplots(figsize=(6, 3.4), layout="constrained")[1]
    names, kinds = list(dict.fromkeys(table[by])), list(dict.fromkeys(table["reading"]))
    for i, (kind, color) in enumerate(zip(kinds, PALETTE, strict=False)):
        part = table[table["reading"] == kind]
        y = np.array([names.index(n) for n in part[by]]) + 0.22 * (i - (len(kinds) - 1) / 2)
        reach = [part["mean"] - part["low"], part["high"] - part["mean"]]
        style = {"fmt": "osD^v"[i % 5], "color": color, "ms": 4, "capsize": 0}
        ax.errorbar(part["mean"], y, xerr=np.abs(reach), label=kind, **style)
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set(xlabel="points")
    ax.legend(fontsize="small")
    return ax


def stages(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the seconds of each stage of an answer, stacked, a bar for each way to answer.

    Args:
        table: The table of `fopru.measure`, of one batch size; decode counts for all of its
            `new_tokens`.

    Raises:
        ValueError: several batch sizes.
    """
    if (batches := sorted(set(table.batch)))[1:]:
        raise ValueError(f"table: has batch sizes {batches}; draw each apart.")
    ax = ax if ax is not None else plt.subplots(figsize=(6, 3.2), layout="constrained")[1]
    steps = table.new_tokens.where(table.stage == "decode", 2) - 1
    ways = table.method + "\n" + table.visual.astype(str) + " tokens"
    parts = table.assign(seconds=table.seconds * steps, way=ways)
    wide = parts.pivot_table(index="way", columns="stage", values="seconds", sort=False)
    left = np.zeros(len(wide))
    for stage, color in zip(STAGES, PALETTE, strict=False):
        if stage in wide:
            ax.barh(wide.index, wide[stage].fillna(0), left=left, color=color, label=stage)
            left += wide[stage].fillna(0).to_numpy()
    if "end to end" in wide:
        style = {"color": INK, "marker": "|", "ls": "none", "markersize": 14}
        ax.plot(wide["end to end"], wide.index, label="end to end, apart", **style)
    ax.invert_yaxis()
    ax.set(xlabel="time (s)")
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def break_even(
    saved: Callable[[int, int], float],
    text: Sequence[int],
    answer: Sequence[int],
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of an answer's time that pruning saves over the lengths of text and answer,
    with a line where it neither saves nor loses.

    Args:
        saved: A function from the lengths of text and answer to the share of time that is saved:
            `Latency.saved` with the rest filled in.
        text, answer: The lengths, in tokens.
    """
    ax = ax if ax is not None else plt.subplots(figsize=(5, 3.6), layout="constrained")[1]
    shares = 100 * np.array([[saved(t, a) for t in text] for a in answer])
    most = max(abs(shares).max(), 1e-9)
    style = {"cmap": "PuOr", "shading": "nearest", "edgecolors": "face", "rasterized": True}
    mesh = ax.pcolormesh(text, answer, shares, vmin=-most, vmax=most, **style)
    if (shares < 0).any() and (shares > 0).any():
        ax.contour(text, answer, shares, levels=[0], colors="black")
    ax.set(xlabel="text tokens", ylabel="answer tokens", xscale="log", yscale="log")
    ax.figure.colorbar(mesh, ax=ax, label="time saved (%)")
    return ax


def training(log: pd.DataFrame) -> Figure:
    """Draw losses and accuracies of a training run, from the `log.csv` that
    `python data/making train` writes.

    Args:
        log: columns step, tower, answer (losses), and one per task (accuracy in [0, 1]).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in ("tower", "answer"):
        left.plot(log["step"], log[name], label=name)
    left.set(xlabel="step", ylabel="loss (nats)", yscale="log")
    for i, name in enumerate(log.columns.drop(["step", "tower", "answer"])):
        line = "-" if i < len(PALETTE) else "--"  # the colours begin anew
        right.plot(log["step"], 100 * log[name], line, label=name)
    right.set(xlabel="step", ylabel="accuracy (%)", ylim=(0, 100))
    left.legend(frameon=False, fontsize="small")
    right.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
