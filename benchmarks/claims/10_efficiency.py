import re

from prose import ROOT

PAGE = "notebooks/10_efficiency.ipynb"
FOLDER = ROOT / "data" / "results"


def cost_of_weights() -> float:
    """The bound that the page names, if what was stored keeps it: percent."""
    found = re.findall(
        r"ratio ([\d.]+) \[([\d.]+), ([\d.]+)\]",
        (FOLDER / "efficiency" / "weights.txt").read_text(),
    )
    rows = [tuple(map(float, r)) for r in found]
    kept = [abs(ratio - 1) < 0.01 and low <= 1 <= high for ratio, low, high in rows]
    return 1 if len(kept) == 4 and all(kept) else 100


def over_plain(way: str) -> list[float]:
    """Least and most of the runs of benchmarks/scoring.py, times the plain tower."""
    text = "".join((FOLDER / f).read_text() for f in ("scoring.txt", "efficiency/checks.txt"))
    found = re.findall(rf"{re.escape(way)} .*?([\d.]+) of plain", text)
    return [min(map(float, found)), max(map(float, found))]


CLAIMS = [
    ("prefill and decoding change by less than {} % with weights", cost_of_weights),
    (
        "with FoPru's scoring took between {} and {} times as long as the plain tower",
        lambda: over_plain("tower + FoPru"),
    ),
    (
        "is how other implementations get the same scores, took between {} and {} times",
        lambda: over_plain("eager tower + attentions"),
    ),
    ("(reported). That is {} and {} times faster", [59 / 28, 59 / 23]),
    ("with {} and {} times fewer visual tokens", [576 / 128, 576 / 32]),
]

ASIDE = [
    "a method with 12.8 % of the FLOPs",  # reported
    "quartiles are further apart than 15 % of the median",  # fopru.efficiency.measuring.SPREAD
    "the KV cache of 620 tokens is 0.3 GB",  # asserted in Anatomy
    "the medians differ by less than 1 %",  # asserted on the page
    "the prefill of 620 tokens takes tens of milliseconds",
    "28 ms at 128 tokens and 23 ms at 32 (reported)",
    "Pictures of 2,880 tokens (LLaVA-NeXT)",
    '"our method cuts the prefill by 60 %"',  # an exercise
]
