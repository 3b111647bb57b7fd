"""The numbers of the model card: accuracy per task, beside its controls."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from scipy.stats import binomtest
from tqdm import tqdm

from fopru.evaluation import Example, answer
from fopru.loading import load
from fopru.methods import FoPru, Random
from fopru.pocket import sample, scenes

PRUNERS = {
    "FoPru rank, 25 %": FoPru(0.25),
    "FoPru row, 25 %": FoPru(0.25, "row"),
    "random, 25 %": Random(0.25),
    "FoPru rank, 25 %, preserved positions": FoPru(0.25, positions="preserve"),
    "FoPru row, 25 %, preserved positions": FoPru(0.25, "row", positions="preserve"),
    "random, 25 %, preserved positions": Random(0.25, positions="preserve"),
}


def _grey(examples: list[Example]) -> list[Example]:
    blank = Image.new("RGB", (scenes.SIZE, scenes.SIZE), "gray")
    return [replace(e, image=blank) for e in examples]


def _swapped(examples: list[Example]) -> list[Example]:
    """Each question on a picture that is another one's."""
    half = len(examples) // 2
    return [
        replace(e, image=other.image)
        for e, other in zip(examples, examples[half:] + examples[:half], strict=True)
    ]


def score(n: int = 200, seed: int = 1, model: str | Path = "pocket") -> list[dict[str, Any]]:
    """Accuracy of n fresh questions per task, with 95 % Wilson intervals.

    Args:
        n: questions per task.
        seed: of `fopru.pocket.sample`.
        model: as for `fopru.load`.

    Returns:
        One row per task and setting: all tokens, blind (grey, or another question's picture), and
        pruned to a quarter.
    """
    net, processor = load(model)
    rows = []
    bar = tqdm(total=len(scenes.TASKS) * (3 + len(PRUNERS)), desc="score")

    def measure(task: str, setting: str, examples: list[Example], said: Iterable[str]) -> None:
        right = sum(a == e.answer for a, e in zip(said, examples, strict=True))
        interval = binomtest(right, len(examples)).proportion_ci(method="wilson")
        rows.append(
            {
                "task": task,
                "setting": setting,
                "n": len(examples),
                "right": right,
                "accuracy": right / len(examples),
                "low": float(interval.low),
                "high": float(interval.high),
            }
        )
        bar.update()

    for task in scenes.TASKS:
        examples = sample(task, n, seed)
        for setting, shown in {
            "all tokens": examples,
            "blind, grey": _grey(examples),
            "blind, swapped": _swapped(examples),
        }.items():
            measure(task, setting, examples, answer(net, processor, shown))
        for setting, pruner in PRUNERS.items():
            with pruner(net):
                measure(task, setting, examples, answer(net, processor, examples))
    bar.close()
    return rows


def provenance() -> dict[str, Any]:
    """Where and with what a result was made."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "fopru")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown, one line per setting and one column per task, in percent."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = ["| | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        cells = [
            f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            for row in rows
            if row["setting"] == setting
        ]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
