from prose import bench, gap, shared

PAGE = "notebooks/09_choosing.ipynb"


def lost(method: str, positions: str) -> float:
    """Points that a method says less at a tenth than the model with all tokens."""
    return gap(shared(bench("full")), shared(bench(method, 0.1, positions)), "exact")


CLAIMS = [
    (
        "DivPrune says {} points less than all tokens with neither of them, and {} points less "
        "with both",
        lambda: [lost("divprune", "reindex"), lost("divprune-mass", "preserve")],
    ),
    (
        "chosen and measured on the same {} questions",
        lambda: shared(bench("full", task="reading")).rows.id.nunique(),
    ),
]
ASIDE = [  # asserted by cells of the page, or reported
    "at most three points below",
    "For *knowledge* 12 tokens are enough",
    "on LLaVA-1.5-7B at 64 tokens",
    "renumbered ids keep 92.2 % of the full model's average, own ids alone 90.6 %, a "
    "logarithmic weight alone 91.0 %, and merging, weight and own ids together 96.5 % "
    "(reported",
]
