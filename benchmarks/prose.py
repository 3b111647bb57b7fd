"""Recompute the numbers of the book's prose, with statistics of its own.

    python benchmarks/prose.py          # all pages; exit status 1 where one is wrong

`benchmarks/claims/` has one file per page. Its `CLAIMS` are sentences of that page with `{}` in the
place of each number, and what these must be; its `ASIDE` are pieces of text whose numbers are none
of this model's measurements: budgets, published ones, those that a cell of the page asserts. Every
number of the page's prose that stands before "%", "points", "nats" or "tokens" has to be in one or
the other. Nothing of `fopru.evaluation` is used here: means, pairs and intervals are counted again.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
NUMBER = r"([+\-\u2212]?\d+(?:,\d{3})*(?:\.\d+)?)"
SPOKEN = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)? ?(?:%|points?\b|nats?\b|tokens?\b)")
SETTING = re.compile(
    r"95 % (?:interval|bootstrap|band|over)|(?:at|to|of|with|from|below|above|between|under|and|,) "
    r"(?:a |the )?(?:75|50|35|25|15|10|5|2|0\.4|0\.2|100) %|\d+ % (?:of the tokens|kept|retention)"
)
"""Budgets and confidence levels, which are no results."""


@cache
def table(name: str) -> pd.DataFrame:
    """One of the files under data/results/."""
    return pd.read_parquet(ROOT / "data" / "results" / f"{name}.parquet")


class Rows:
    """Some rows of a results file, and what is counted of them."""

    def __init__(self, rows: pd.DataFrame):
        self.rows = rows

    def where(self, **equal) -> "Rows":
        """Those with these values; a list stands for any of them."""
        rows = self.rows
        for name, value in equal.items():
            some = value if isinstance(value, list | tuple | set) else [value]
            rows = rows[rows[name].isin(some)]
        if rows.empty:
            raise ValueError(f"no rows with {equal}")
        return Rows(rows)

    def at(self, retention: float) -> "Rows":
        """Those of one retention."""
        return Rows(self.rows[np.isclose(self.rows["retention"], retention)])

    def apart(self) -> list["Rows"]:
        """Those of each training."""
        return [Rows(rows) for _, rows in self.rows.groupby("training")]

    def each(self, column: str) -> pd.Series:
        """Question -> its value, seeds averaged."""
        if column == "malformed":
            values = 1 - self.rows["formed"].astype(float)
        else:
            values = self.rows[column].astype(float)
        return values.groupby(self.rows["id"]).sum() / values.groupby(self.rows["id"]).count()

    def share(self, column: str = "choice") -> float:
        """Percent."""
        return 100 * float(np.nanmean(self.each(column).to_numpy()))

    def median(self, column: str) -> float:
        return float(np.nanmedian(self.each(column).to_numpy()))

    def pictures(self) -> pd.Series:
        """Question -> its picture."""
        return self.rows.drop_duplicates("id").set_index("id")["image"]


def gap(one: Rows, other: Rows, column: str = "choice") -> float:
    """Points between two settings, over the questions that both answered."""
    away = (one.each(column) - other.each(column)).dropna()
    return 100 * float(away.mean())


def ends(one: Rows, other: Rows, column: str = "choice", draws: int = 4000) -> list[float]:
    """The 2.5 and 97.5 percentiles of `gap` when pictures are drawn again."""
    away = (one.each(column) - other.each(column)).dropna()
    by_picture = away.groupby(one.pictures().reindex(away.index))
    sums, sizes = by_picture.sum().to_numpy(), by_picture.size().to_numpy()
    rng = np.random.default_rng(20261126)
    found = np.empty(draws)
    for i in range(draws):
        drawn = rng.integers(0, len(sums), len(sums))
        found[i] = 100 * sums[drawn].sum() / sizes[drawn].sum()
    return list(np.quantile(found, [0.025, 0.975]))


def lead(one: Rows, other: Rows, column: str = "choice") -> list[float]:
    """`gap` and its `ends`."""
    return [gap(one, other, column), *ends(one, other, column)]


def over(one: Rows, other: Rows, column: str = "choice") -> list[float]:
    """The mean of `gap` over trainings, and the outermost of their `ends`."""
    pairs = zip(one.apart(), other.apart(), strict=True)
    means, lows, highs = zip(*(lead(*pair, column) for pair in pairs), strict=True)
    return [float(np.mean(means)), min(lows), max(highs)]


def bench(method: str, retention: float = 1.0, positions: str = "reindex", **equal) -> Rows:
    """Rows of `pocketbench.parquet`, of all trainings; what has no retention is found without
    one."""
    rows = Rows(table("pocketbench")).where(method=method, **equal)
    if method in ("none", "grey", "swapped", "guess", "full"):
        return Rows(rows.rows.drop_duplicates(["training", "id"]))
    return rows.at(retention).where(positions=positions)


def shared(rows: Rows) -> Rows:
    """Those on the pictures that every method and switch was asked about."""
    some = table("pocketbench").query("method == 'scope'")["id"].unique()
    return rows.where(id=list(some))


def prose(page: Path) -> str:
    """The text of a notebook's Markdown cells, or of a Markdown file, in one line."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    else:
        text = page.read_text(encoding="utf-8")
    text = re.sub(r"```python.*?```|```bash.*?```|```\n.*?```", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


def wrong(page: Path, claims, aside) -> Iterator[str]:
    """What is wrong with the numbers of a page."""
    text = prose(page)
    covered = [m.span() for piece in aside for m in re.finditer(re.escape(piece), text)]
    for piece in aside:
        if piece not in text:
            yield f"an aside that is not on the page: {piece!r}"
    for sentence, expected, *within in claims:
        values = expected() if callable(expected) else expected
        values = list(values) if isinstance(values, list | tuple | np.ndarray) else [values]
        pattern = NUMBER.join(re.escape(part) for part in sentence.split("{}"))
        found = re.search(pattern, text)
        told = ", ".join(f"{v:.3f}" for v in values)
        if found is None:
            yield f"not on the page: {sentence!r} (its numbers would be {told})"
            continue
        covered.append(found.span())
        for printed, value in zip(found.groups(), values, strict=True):
            plain = printed.replace(",", "").replace("\u2212", "-")
            digits = len(plain.partition(".")[2])
            if not abs(float(plain) - value) <= 0.5 * 10**-digits + 1e-9 + sum(within):
                yield f"{sentence!r} says {printed}, and it is {value:.3f} ({told})"
    covered += [m.span() for m in SETTING.finditer(text)]
    for m in SPOKEN.finditer(text):
        if not any(start <= m.start() and m.end() <= end for start, end in covered):
            around = text[max(0, m.start() - 60) : m.end() + 40]
            yield f"nobody counts {m.group()!r} again: ...{around}..."


def main() -> int:
    failed = 0
    for path in sorted((Path(__file__).parent / "claims").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        faults = list(wrong(ROOT / module.PAGE, module.CLAIMS, module.ASIDE))
        failed += len(faults)
        print(f"{module.PAGE}: {len(module.CLAIMS)} sentences, {len(faults)} wrong")
        for fault in faults:
            print(f"  {fault}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.modules["prose"] = sys.modules["__main__"]  # whose names the claims import
    sys.exit(main())
