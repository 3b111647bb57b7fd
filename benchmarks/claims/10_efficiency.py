import re

from prose import ROOT, table

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


FULL_FOPRU = ("full", "fopru")
SEVEN = "llava-1.5-7b"
MANY = ((SEVEN, 32), ("llava-next-7b", 8))


def gpu(model: str, batch: int, method: str, stage: str, column: str = "seconds") -> float:
    """A number of the run on a GPU; seconds in ms."""
    rows = table("efficiency/h200").set_index(["model", "batch", "method", "stage"]).sort_index()
    value = rows.loc[(model, batch, method, stage), column]
    return 1000 * value if column == "seconds" else value


def own(model: str, batch: int, method: str) -> float:
    return sum(gpu(model, batch, method, s) for s in ("scoring", "selection", "compaction"))


def first(model: str, batch: int) -> float:
    """How many times earlier FoPru's first token comes."""
    read = [gpu(model, batch, m, "vision") + gpu(model, batch, m, "prefill") for m in FULL_FOPRU]
    return read[0] / (read[1] + own(model, batch, "fopru"))


def less(model: str, batch: int, column: str = "seconds") -> float:
    """How many times less FoPru's prefill takes: seconds, or tokens."""
    full, kept = (gpu(model, batch, m, "prefill", column) for m in FULL_FOPRU)
    return full / kept


CLAIMS = [
    ("with one prompt it is {} times faster, and", lambda: less(SEVEN, 1)),
    (
        "The prefill of {} tokens takes {} ms, that of {} tokens {} ms, and each step",
        lambda: [
            gpu(SEVEN, 1, method, "prefill", column)
            for method in FULL_FOPRU
            for column in ("tokens", "seconds")
        ],
    ),
    (
        "each step of decoding {} to {} ms",
        lambda: sorted(gpu(SEVEN, 1, m, "decode") for m in FULL_FOPRU),
    ),
    (
        "or with 8 pictures of {} tokens, the GPU is full",
        lambda: gpu("llava-next-7b", 8, "full", "prefill", "visual"),
    ),
    ("The prefill is {} and {} times faster", lambda: [less(*one) for one in MANY]),
    (
        "where the prompts are {} and {} times shorter",
        lambda: [less(*one, "tokens") for one in MANY],
    ),
    (
        "the first token comes {} and {} times earlier",
        lambda: [first(*one) for one in MANY],
    ),
    (
        "for one picture after another: {} ms for 32 pictures, more than the {} ms",
        lambda: [
            gpu(SEVEN, 32, "divprune", "selection"),
            gpu(SEVEN, 32, "full", "prefill") - gpu(SEVEN, 32, "divprune", "prefill"),
        ],
    ),
    ("FoPru's own stages take {} ms", lambda: own(SEVEN, 32, "fopru")),
    (
        "Its scoring takes {} ms, more than half",
        lambda: gpu(SEVEN, 32, "fopru", "scoring"),
    ),
    ("2.1 times faster, where Table 10.3 has {}", lambda: less(SEVEN, 1)),
    ("prefill and decoding change by less than {} % with weights", cost_of_weights),
    (
        "with FoPru's scoring took between {} and {} times as long as the plain tower",
        lambda: over_plain("tower + FoPru"),
    ),
    (
        "is how other implementations get the same scores, took between {} and {} times",
        lambda: over_plain("eager tower + attentions"),
    ),
    ("28 ms at 128 tokens (reported): {} times faster", 59 / 28),
]

ASIDE = [
    "a method with 12.8 % of the FLOPs",  # reported
    "quartiles are further apart than 15 % of the median",  # fopru.efficiency.measuring.SPREAD
    "the KV cache of 620 tokens is 0.3 GB",  # asserted in Anatomy
    "the medians differ by less than 1 %",  # asserted on the page
    "a prefill of 59 ms with all tokens, and with VisionZip 28 ms at 128 tokens (reported)",
    '"our method cuts the prefill by 60 %"',  # an exercise
]
