"""The page of answers on a real eye: counted again from what three trainings answered."""

from functools import cache

import numpy as np
import pandas as pd
from prose import Rows, bench, over, table

PAGE = "notebooks/real_eye_answers.ipynb"

BOOTSTRAPS = 3  # pairs that two bootstraps see on two sides of zero
INSIDE = {"fastv", "pyramiddrop", "sparsevlm"}
CONTROLS = {"full", "grey", "none", "oracle", "smaller", "swapped"}
TWO = ("fopru", "fopru-mass")
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


@cache
def answers() -> pd.DataFrame:
    return pd.concat([table(f"real_eye/ask-{seed}") for seed in range(3)])


def eye(method, retention=1.0, positions="reindex", weights="none", part="known", **equal) -> Rows:
    """Rows of all trainings; all tokens are asked under one kind of ids."""
    rows = Rows(answers()).where(method=method, part=part, **equal)
    if method == "full":
        return rows
    return rows.at(retention).where(positions=positions, weights=weights)


def average(rows: Rows, column: str = "choice") -> float:
    """Percent, the mean of the trainings."""
    return float(np.mean([part.share(column) for part in rows.apart()]))


def known(*setting, **equal) -> float:
    return average(eye(*setting, **equal))


def lead(one, other) -> list[float]:
    """Points between two settings: the mean over trainings, and the ends of all intervals."""
    return over(eye(*one), eye(*other))


def extra(rows: Rows, number) -> float:
    """By how many things the answers are too many, where they are numbers."""
    rows = rows.where(task="counting").rows
    return float((rows["prediction"].map(number) - rows["answer"].map(number)).mean())


def too_many(method, weights="none") -> float:
    return extra(eye(method, 0.25, "preserve", weights), NUMBERS.get)


def ahead(rows: Rows, names: list[str], draws: int = 2000) -> np.ndarray:
    """(M, M): which method knows more than which in every training, by more than other pictures
    would explain."""
    rng, found = np.random.default_rng(20261128), np.ones((len(names), len(names)), bool)
    for part in rows.apart():
        wide = pd.DataFrame({m: part.where(method=m).each("choice") for m in names}).dropna()
        by_picture = wide.groupby(part.pictures().reindex(wide.index))
        sums, sizes = by_picture.sum().to_numpy(), by_picture.size().to_numpy()
        drawn = rng.integers(0, len(sums), (draws, len(sums)))
        means = sums[drawn].sum(1) / sizes[drawn].sum(1, keepdims=True)  # (draws, methods)
        found &= np.quantile(means[:, :, None] - means[:, None, :], 0.025, axis=0) > 0
    return found


@cache
def rankings(retention: float, positions: str) -> list[int]:
    """All pairs of methods before the language model; of these ranked by the pocket model, and of
    these ranked alike and turned round here."""
    eyes, bench = answers(), table("pocketbench")
    eyes = eyes[(eyes["part"] == "known") & (eyes["weights"] == "none")]
    names = sorted({*eyes["method"]} & {*bench["method"]} - INSIDE - CONTROLS)
    first, second = (
        ahead(Rows(rows).where(method=names, positions=positions).at(retention), names)
        for rows in (bench, eyes)
    )
    pairs = len(names) * (len(names) - 1) // 2
    return [pairs, first.sum(), (first & second).sum(), (first & second.T).sum()]


def pocket(method) -> Rows:
    return bench(method, 0.25, "preserve", task="counting")


CLAIMS = [
    (
        "the three trainings know {} % and {} % on average (from {} % to {} %, and from {} % to "
        "{} %)",
        lambda: [
            *(known("full", part=part) for part in ("known", "unseen")),
            *(
                end(rows.share() for rows in eye("full", part=part).apart())
                for part in ("known", "unseen")
                for end in (min, max)
            ),
        ],
    ),
    (
        "With own position ids it does, by {} points [{}, {}].",
        lambda: lead(("fopru", 0.25, "preserve"), ("random", 0.25, "preserve")),
        0.2,
    ),
    (
        "which are the default, the lead is {} points [{}, {}]",
        lambda: lead(("fopru", 0.25), ("random", 0.25)),
        0.2,
    ),
    (
        "FoPru knows {} % with new ids and {} % with own ones. All tokens know {} %.",
        lambda: [known("fopru", 0.25), known("fopru", 0.25, "preserve"), known("full")],
    ),
    (
        "lead over random tokens grows to {} points [{}, {}] at a tenth. Row knows {} % at a "
        "quarter and {} % at a tenth",
        lambda: [
            *lead(("fopru", 0.1, "preserve"), ("random", 0.1, "preserve")),
            *(known("fopru-row", share, "preserve") for share in (0.25, 0.1)),
        ],
        0.2,
    ),
    (
        "with own ids CLS knows {} % and says {} %.",
        lambda: [average(eye("cls", 0.1, "preserve"), column) for column in ("choice", "exact")],
    ),
    (
        "New ids take *place* away: FoPru falls from {} % to {} %.",
        lambda: [known("fopru", 0.25, i, task="place") for i in ("preserve", "reindex")],
    ),
    (
        "All tokens know that a thing is not there in {} % of these questions, FoPru with new ids "
        "in {} %, and with own ids in {} %.",
        lambda: [
            known("full", task="presence", variant="no"),
            known("fopru", 0.25, task="presence", variant="no"),
            known("fopru", 0.25, "preserve", task="presence", variant="no"),
        ],
    ),
    (
        "what falls is the right *yes*, to {} % with random tokens.",
        lambda: known("random", 0.25, task="presence", variant="yes"),
    ),
    (
        "With FoPru it says {} things too many on average, with DivPrune {}.",
        lambda: [too_many("fopru"), too_many("divprune")],
    ),
    (
        "With all tokens the model is right on average ({}). Random tokens make it say {} things "
        "too few",
        lambda: [extra(eye("full"), NUMBERS.get), -too_many("random")],
    ),
    (
        "the mean error falls to {} things with FoPru, and to {} with DivPrune.",
        lambda: [too_many("fopru", "mass"), too_many("divprune", "mass")],
    ),
    (
        "There FoPru counts {} things too many at a quarter, and {} with weights; it knows {} % of "
        "*counting* without them and {} % with them",
        lambda: [
            *(extra(pocket(m), lambda n: float(n) if n.isdigit() else np.nan) for m in TWO),
            *(average(pocket(m)) for m in TWO),
        ],
    ),
    (
        "With both DPP knows {} % with a quarter of the tokens, and FoPru {} %; all tokens know "
        "{} %.",
        lambda: [
            *(known(m, 0.25, "preserve", "mass") for m in ("dpp", "fopru")),
            known("full"),
        ],
    ),
    (
        "new ids and no weights, both know {} %.",
        lambda: known("fopru", 0.25),
    ),
    (
        "new ids and no weights, both know {} %.",
        lambda: known("dpp", 0.25),
    ),
    (
        "knows {} points [{}, {}] more at a tenth here, SCOPE {} points [{}, {}].",
        lambda: [
            *lead(("cdpruner", 0.1, "preserve"), ("fopru", 0.1, "preserve")),
            *lead(("scope", 0.1, "preserve"), ("fopru", 0.1, "preserve")),
        ],
        0.2,
    ),
    (
        "leads here: it knows {} % at a tenth, with own ids.",
        lambda: known("fastv", 0.1, "preserve"),
    ),
    (
        "the pocket model ranks {} of the {} pairs in all three trainings. Of these {} are ranked "
        "alike here",
        lambda: [rankings(0.1, "preserve")[which] for which in (1, 0, 2)],
        BOOTSTRAPS,
    ),
    (
        "With new ids {} of {} are ranked alike.",
        lambda: [rankings(0.1, "reindex")[which] for which in (2, 1)],
        BOOTSTRAPS,
    ),
    (
        "and {} turn round: with own ids",
        lambda: rankings(0.25, "preserve")[3],
    ),
    (
        "which makes {} of 256 tokens a layer. FoPru with half of the tokens, 128 in each layer, "
        "knows {} % with own ids.",
        lambda: [
            float(eye("fastv", 0.1).rows["layer_weighted"].mean()),
            known("fopru", 0.5, "preserve"),
        ],
    ),
]
ASIDE = [
    "85 % of what is asked about known things, and 65 % about unseen ones",  # the goals
    "of 256 tokens a layer",  # 224 pixels, patches of 14
]
