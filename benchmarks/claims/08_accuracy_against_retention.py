"""Accuracy against retention."""

import numpy as np
from prose import Rows, bench, ends, gap, lead, table

PAGE = "notebooks/08_accuracy_against_retention.ipynb"


SIX = ("presence", "attributes", "counting", "reading", "documents", "charts")
SEVEN = ("presence", "attributes", "reading", "knowledge", "documents", "diagrams", "charts")
WAYS = (("dpp", 0.25, "preserve"), ("dpp-mass", 0.25), ("dpp-mass", 0.25, "preserve"))
NINE = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 1 / 256)


def known(method, retention=1.0, **equal):
    return bench(method, retention, **equal).share("choice")


def said(method, retention=1.0, **equal):
    return bench(method, retention, **equal).share("exact")


def malformed(method, retention=1.0, **equal):
    return bench(method, retention, **equal).share("malformed")


def away(one, other, column="choice", **equal):
    """Points between two settings, each a method, a retention and perhaps the positions."""
    return gap(bench(*one, **equal), bench(*other, **equal), column)


def reach(one, other, column="choice", **equal):
    """That, with the ends of its interval."""
    return lead(bench(*one, **equal), bench(*other, **equal), column)


def left(method, retention=0.1):
    """What is left of that which the picture gives, in the mean of six tasks."""
    shares = []
    for task in SIX:
        floor, full = known("guess", task=task), known("full", task=task)
        shares.append(100 * (known(method, retention, task=task) - floor) / (full - floor))
    return float(np.mean(shares))


def area(method, column):
    """Under the curve over log tokens from 16 to 256, in the mean of the tasks."""
    rows = Rows(table("pocketbench")).where(method=method, positions="reindex").rows
    rows = rows[rows["retention"].isin(NINE)]
    full, found = bench("full").rows, []
    for task, part in rows.groupby("task"):
        points = part.groupby("retention").agg({"kept": "mean", column: "mean"})
        points = points.sort_values("kept")
        x = np.log([*points["kept"], 256.0])
        y = [*points[column].astype(float), full[full["task"] == task][column].mean()]
        at = np.unique([np.log(16.0), *x[x >= np.log(16.0)]])
        found.append(np.trapezoid(np.interp(at, x, y), at) / np.ptp(at))
    return 100 * float(np.mean(found))


def oracle(task):
    """What it loses at a tenth."""
    return away(("oracle", 0.1), ("full",), task=task)


def spread():
    """Counting questions with evidence, and with more than 25 patches of it."""
    patches = bench("full", task="counting").rows["evidence"]
    return [(patches > 0).sum(), (patches > 25).sum()]


def whole():
    """The ids of the counting questions whose evidence the oracle keeps whole at a tenth."""
    rows = bench("oracle", 0.1, task="counting").rows
    return list(rows[(rows["evidence"] > 0) & (rows["found"] == 1)]["id"])


def training(model, other, retention=0.1):
    """FoPru minus another, said, on one of the half-length models."""
    rows = Rows(table("pocket/half")).where(model=model, retention=retention)
    return gap(rows.where(method="fopru"), rows.where(method=other), "exact")


def trainings(other, retention=0.1):
    here = away(("fopru", retention), (other, retention), "exact")
    return [here, *(training(f"seed{i}", other, retention) for i in (1, 2, 3))]


def errors(one, other):
    """Standard deviation over trainings, and half of the interval over pictures, said."""
    low, high = ends(bench(*one), bench(*other), "exact")
    return [float(np.std(trainings(other[0], other[1]), ddof=1)), (high - low) / 2]


def flips(method, retention=0.25):
    """Known with all tokens and no more; and the other way round."""
    full, pruned = bench("full").each("choice"), bench(method, retention).each("choice")
    full = full.reindex(pruned.index)
    return [100 * float((full * (1 - pruned)).mean()), 100 * float(((1 - full) * pruned).mean())]


def later(method, retention):
    positions = "preserve" if method == "fastv" else "reindex"
    return reach((method, retention, positions), (f"{method}-later", retention, positions))


def ahead(method, positions="preserve"):
    """VisPruner with weights and original ids minus another, on the validation split."""
    rows = Rows(table("validation"))
    one = rows.where(method="vispruner-mass", positions="preserve")
    other = rows.where(method=method, positions=positions)
    return [gap(one, other), *ends(one, other)]


def chosen(method, positions, column="choice"):
    """In the mean of a quarter and a tenth, on the validation split."""
    rows = Rows(table("validation")).where(method=method, positions=positions)
    return float(np.mean([rows.where(retention=r).share(column) for r in (0.25, 0.1)]))


def kept(one, other, retention):
    """Points between two settings with original position ids, with the ends of the interval."""
    one, other = (bench(name, retention, "preserve") for name in (one, other))
    return lead(one, other)


CLAIMS = [
    (
        "for DPP {} points [{}, {}] at a tenth, for ToMe {} points [{}, {}], for FoPru {} points "
        "[{}, {}]",
        lambda: [
            value
            for name in ("dpp", "tome", "fopru")
            for value in kept(f"{name}-restore", f"{name}-mass", 0.1)
        ],
        0.3,
    ),
    (
        "the model knows {} % with a twentieth of its tokens, 13 of 256, and {} % with all",
        lambda: [
            bench("cluster-mean-mass", 0.05, "preserve").share("choice"),
            bench("full").share("choice"),
        ],
    ),
    (
        "That is {} points [{}, {}] on DivPrune's tokens with masses, and {} points [{}, {}] on",
        lambda: [
            value
            for name in ("divprune-mass", "dpp-mass")
            for value in kept("cluster-mean-mass", name, 0.05)
        ],
        0.3,
    ),
    (
        "At a tenth of the tokens FoPru knows {} % of the answers and says {} %",
        lambda: [known("fopru", 0.1), said("fopru", 0.1)],
    ),
    (
        "%: {} % of what it says is malformed",
        lambda: malformed("fopru", 0.1),
    ),
    (
        "Random tokens know {} % and say {} %",
        lambda: [known("random", 0.1), said("random", 0.1)],
    ),
    (
        "FoPru minus random is {} points in what is known and {} points in what is said",
        lambda: [away(("fopru", 0.1), ("random", 0.1), c) for c in ("choice", "exact")],
    ),
    (
        "at a tenth of the tokens FoPru knows {} %, DivPrune {} % and uniform tokens {} %",
        lambda: [known(m, 0.1, task="reading") for m in ("fopru", "divprune", "uniform")],
    ),
    (
        "with half of the patches it knows {} % of *reading*",
        lambda: known("smaller", 0.5, task="reading"),
    ),
    (
        "DivPrune: {} against {} % known at a tenth",
        lambda: [known(m, 0.1, task="counting") for m in ("fopru", "divprune")],
    ),
    (
        "and {} against {} % at half of the tokens",
        lambda: [known(m, 0.5, task="counting") for m in ("fopru", "divprune")],
    ),
    (
        "FoPru knows {}, {} and {} % of them at a tenth",
        lambda: [known("fopru", 0.1, task=t) for t in ("presence", "attributes", "charts")],
    ),
    (
        "says {}, {} and {} %",
        lambda: [said("fopru", 0.1, task=t) for t in ("presence", "attributes", "charts")],
    ),
    (
        "With random tokens the model knows {}, {} and {} %",
        lambda: [known("random", 0.1, task=t) for t in ("presence", "attributes", "charts")],
    ),
    (
        "FoPru says less with 25 tokens ({} %) than with 12 ({} %)",
        lambda: [said("fopru", r, task="documents") for r in (0.1, 0.05)],
    ),
    (
        "({} and {} % known",
        lambda: [known("fopru", r, task="documents") for r in (0.1, 0.05)],
    ),
    (
        "*Knowledge* has a floor of {} %",
        lambda: known("guess", task="knowledge"),
    ),
    (
        "a floor of {} % and a ceiling of {} %",
        lambda: [known(m, task="diagrams") for m in ("guess", "full")],
    ),
    (
        "At a tenth of the tokens DPP keeps {} % of what the picture gives, DivPrune {}"
        " %, FoPru {} %, CLS {} %, uniform {} % and random tokens {} %",
        lambda: [left(m) for m in ("dpp", "divprune", "fopru", "cls", "uniform", "random")],
    ),
    (
        "FoPru's mean area is {} % known and {} % said",
        lambda: [area("fopru", c) for c in ("choice", "exact")],
    ),
    (
        "CLS has {} and {} %",
        lambda: [area("cls", c) for c in ("choice", "exact")],
    ),
    (
        "DivPrune {} and {} %",
        lambda: [area("divprune", c) for c in ("choice", "exact")],
    ),
    (
        "DPP {} and {} %",
        lambda: [area("dpp", c) for c in ("choice", "exact")],
    ),
    (
        "uniform tokens {} and {} %",
        lambda: [area("uniform", c) for c in ("choice", "exact")],
    ),
    (
        "With 160 tokens in every layer random tokens know {} %, FoPru's {} %, and "
        'FastV "at 25 %" {} %',
        lambda: [known("random", 160 / 256), known("fopru", 160 / 256), known("fastv", 0.25)],
    ),
    (
        'With 99 random tokens know {} %, FoPru\'s {} %, and PyramidDrop "at 5 %" {} %',
        lambda: [known("random", 99 / 256), known("fopru", 99 / 256), known("pyramiddrop", 0.05)],
    ),
    (
        "then it knows {} points more at 25 % [{}, {}]",
        lambda: reach(("fastv", 0.25, "preserve"), ("fastv", 0.25)),
        0.3,
    ),
    (
        "more than random tokens by {}, {}, {} and {} points at 50, 25, 10 and 5 %",
        lambda: [away(("fopru", r), ("random", r)) for r in (0.5, 0.25, 0.1, 0.05)],
    ),
    (
        "At a quarter FoPru minus DivPrune is {} points known [{}, {}]",
        lambda: reach(("fopru", 0.25), ("divprune", 0.25)),
        0.3,
    ),
    (
        "at a tenth {} points [{}, {}]",
        lambda: reach(("fopru", 0.1), ("divprune", 0.1)),
        0.3,
    ),
    (
        "at a twentieth {} points [{}, {}]",
        lambda: reach(("fopru", 0.05), ("divprune", 0.05)),
        0.3,
    ),
    (
        "In what is said the same three differences are {}, {} and {} points",
        lambda: [away(("fopru", r), ("divprune", r), "exact") for r in (0.25, 0.1, 0.05)],
    ),
    (
        "At half of the tokens FoPru knows {} points more [{}, {}]",
        lambda: reach(("fopru", 0.5), ("divprune", 0.5)),
        0.3,
    ),
    (
        "all: {} points known at a quarter [{}, {}]",
        lambda: reach(("fopru", 0.25), ("cls", 0.25)),
        0.3,
    ),
    (
        "+4.1], {} points at a tenth [{}, {}]",
        lambda: reach(("fopru", 0.1), ("cls", 0.1)),
        0.3,
    ),
    (
        "at a quarter FoPru knows {} % and DivPrune {} %",
        lambda: [known(m, 0.25, task="reading") for m in ("fopru", "divprune")],
    ),
    (
        "At a tenth DivPrune knows more: FoPru minus DivPrune is {} points [{}, {}]",
        lambda: reach(("fopru", 0.1), ("divprune", 0.1), task="reading"),
        0.6,
    ),
    (
        "FoPru minus DivPrune is {} points on the shipped weights and {}, {} and {} "
        "points on the three others",
        lambda: trainings("divprune"),
    ),
    (
        "the standard deviation over trainings is {} points, and half the width of the "
        "picture interval {} points",
        lambda: errors(("fopru", 0.1), ("divprune", 0.1)),
        0.2,
    ),
    (
        "sign: {} points here, {}, {} and {} points there",
        lambda: trainings("random"),
    ),
    (
        "Random tokens lose {} % of all answers and gain {} %",
        lambda: flips("random"),
    ),
    (
        "FoPru's lose {} % and gain {} %",
        lambda: flips("fopru"),
    ),
    (
        "decides: {} points known at 25 % [{}, {}]",
        lambda: later("pyramiddrop", 0.25),
        0.3,
    ),
    (
        "+14.0], {} points at 10 % [{}, {}]",
        lambda: later("pyramiddrop", 0.1),
        0.3,
    ),
    (
        "little: {} points [{}, {}]",
        lambda: later("fastv", 0.25),
        0.3,
    ),
    (
        "and {} points [{}, {}]",
        lambda: later("fastv", 0.1),
        0.3,
    ),
    (
        "({} and {} points",
        lambda: [later("cdpruner", r)[0] for r in (0.25, 0.1)],
    ),
    (
        "*counting*: {} points there, {} points on *attributes* and {} points on *charts*",
        lambda: [oracle(t) for t in ("counting", "attributes", "charts")],
    ),
    (
        "of the {} questions with evidence {} have more patches of it than the 25 "
        "tokens that are kept",
        lambda: spread(),
    ),
    (
        "on the {} whose evidence is kept whole the oracle knows {} %, and the full model {} %",
        lambda: [len(whole()), known("oracle", 0.1, id=whole()), known("full", id=whole())],
    ),
    (
        "counting {} points [{}, {}]",
        lambda: reach(("divprune-mass", 0.25), ("divprune", 0.25), task="counting"),
        0.6,
    ),
    (
        "the other seven tasks {} points [{}, {}]",
        lambda: reach(("divprune-mass", 0.25), ("divprune", 0.25), task=SEVEN),
        0.3,
    ),
    (
        "The malformed share of FoPru's answers falls from {} to {} % at a quarter",
        lambda: [malformed("fopru", 0.25), malformed("fopru-mass", 0.25)],
    ),
    (
        "from {} to {} % at a tenth",
        lambda: [malformed("fopru", 0.1), malformed("fopru-mass", 0.1)],
    ),
    (
        "twentieth, known: counting {} points [{}, {}]",
        lambda: reach(("fopru-mass", 0.05), ("fopru", 0.05), task="counting"),
        0.6,
    ),
    (
        "the other seven {} points [{}, {}]",
        lambda: reach(("fopru-mass", 0.05), ("fopru", 0.05), task=SEVEN),
        0.3,
    ),
    (
        "budget: {} points on the other seven [{}, {}]",
        lambda: reach(("divprune-mass", 0.05), ("divprune", 0.05), task=SEVEN),
        0.3,
    ),
    (
        "from {} to {} % known",
        lambda: [known("divprune", 0.1), known("divprune-constant", 0.1)],
    ),
    (
        "The same masses dealt to the wrong tokens give {} %, the right ones {} %",
        lambda: [known("divprune-dealt", 0.1), known("divprune-mass", 0.1)],
    ),
    (
        "by {} points [{}, {}]",
        lambda: reach(("divprune-averaged-mass", 0.05), ("divprune-mass", 0.05)),
        0.3,
    ),
    (
        "said by {} points [{}, {}]",
        lambda: reach(("divprune-averaged-mass", 0.05), ("divprune-mass", 0.05), "exact"),
        0.3,
    ),
    (
        "With them it knows {} points more at a quarter and {} points more at a tenth",
        lambda: [away(("tome-mass", r), ("tome", r)) for r in (0.25, 0.1)],
    ),
    (
        "ids: {} % known",
        lambda: chosen("vispruner-mass", "preserve"),
    ),
    (
        "VisPruner minus DivPrune is {} points [{}, {}]",
        lambda: ahead("divprune-mass"),
        0.3,
    ),
    (
        "minus DPP {} points [{}, {}]",
        lambda: ahead("dpp-mass"),
        0.3,
    ),
    (
        "minus FoPru {} points [{}, {}]",
        lambda: ahead("fopru-mass"),
        0.3,
    ),
    (
        "New ids in place of the original ones cost it {} points [{}, {}]",
        lambda: ahead("vispruner-mass", "reindex"),
        0.3,
    ),
    (
        "no weights {} points [{}, {}]",
        lambda: ahead("vispruner"),
        0.3,
    ),
    (
        "VisPruner minus FoPru is {} points [{}, {}]",
        lambda: reach(("vispruner-mass", 0.25, "preserve"), ("fopru-mass", 0.25, "preserve")),
        0.3,
    ),
    (
        "({} points [{}, {}]",
        lambda: reach(("vispruner-mass", 0.1, "preserve"), ("fopru-mass", 0.1, "preserve")),
        0.3,
    ),
    (
        "DivPrune ({} points [{}, {}]",
        lambda: reach(("vispruner-mass", 0.05, "preserve"), ("divprune-mass", 0.05, "preserve")),
        0.3,
    ),
    (
        "DivPrune minus DPP is {} points [{}, {}]",
        lambda: reach(("divprune-mass", 0.05, "preserve"), ("dpp-mass", 0.05, "preserve")),
        0.3,
    ),
    (
        "original ids alone give {} points, weights alone {} points, both {} points",
        lambda: [away(way, ("dpp", 0.25)) for way in WAYS],
    ),
    (
        "give {} points [{}, {}]",
        lambda: reach(("dpp-mass", 0.1, "preserve"), ("dpp-mass", 0.1)),
        0.3,
    ),
    (
        "the model knows {} % with DPP's tokens and {} % with all",
        lambda: [known("dpp-mass", 0.25, positions="preserve"), known("full")],
    ),
]

ASIDE = [
    "most methods are near 100 % at half of the tokens",
    "at least twelve of fifteen methods know 95 % or more",
    "so that 16 tokens in their last layer are not 16 tokens",
    "256, 256, 64 and 64 tokens, 160 in the mean",
    (
        "has 57.3, 56.8 and 55.5 on TextVQA at 192, 128 and 64 tokens, and DivPrune "
        "57.0, 56.1 and 54.7"
    ),
    "(reported: 95.0 and 96.4 % of the full average",
    "LLaVA-1.5-7B with 64 tokens has",
    "With all 256 tokens many patches",
]
