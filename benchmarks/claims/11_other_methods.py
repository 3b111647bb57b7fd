"""Other methods."""

from prose import Rows, bench, lead, table

PAGE = "notebooks/11_other_methods.ipynb"


def known(method, retention=0.25, **equal):
    return bench(method, retention, **equal).share("choice")


def said(method, retention=0.25, **equal):
    return bench(method, retention, **equal).share("exact")


def both(method, retention=0.1):
    """Known and said."""
    return [known(method, retention), said(method, retention)]


def reach(one, other, column="choice", **equal):
    """Points between two settings, with the ends of the interval."""
    return lead(bench(*one, **equal), bench(*other, **equal), column)


def found(model, method, retention=0.25):
    """Share of the evidence that is kept."""
    if model == "shipped":
        return bench(method, retention).share("found")
    rows = Rows(table("pocket/half")).where(model=model, method=method, retention=retention)
    return rows.share("found")


def captions(one, other, retention=0.25):
    """Said, on the model whose tower saw captions only."""
    rows = Rows(table("pocket/half")).where(model="captions", retention=retention)
    one, other = rows.where(method=one), rows.where(method=other)
    return lead(one, other, "exact")


def overhead():
    """Scoring and selection of the slowest method, in percent of the unpruned tower."""
    times = table("efficiency/vision").set_index(["method", "stage"])["seconds"].unstack()
    ours = times[["scoring", "selection"]].fillna(0).sum(axis=1)
    return 100 * float(ours.max() / times.loc["full", "vision"])


def right(model, method):
    """Said, of a control without retention, on a half-length model."""
    return Rows(table("pocket/half")).where(model=model, method=method).share("exact")


def widest():
    """Points between the first and the last of the newer methods at a quarter, known."""
    shares = [known(m) for m in ("hiprune", "scope", "holov", "vscan", "mmtok", "prunesid")]
    return max(shares) - min(shares)


CLAIMS = [
    (
        "on *reading* at a quarter the model knows {} % with pooled tokens, {} % with "
        "random and {} % with uniform ones",
        lambda: [known(m, task="reading") for m in ("pool", "random", "uniform")],
    ),
    (
        "knows {} % and says {} % with FoPru's",
        lambda: both("fopru"),
    ),
    (
        "knows {} % and says {} % with those of CLS",
        lambda: both("cls"),
    ),
    (
        "knows: {} and {} % at a tenth with DivPrune's",
        lambda: both("divprune"),
    ),
    (
        "DivPrune's, {} and {} % with DPP's",
        lambda: both("dpp"),
    ),
    (
        "({} % known and {} % said at a tenth",
        lambda: both("prumerge"),
    ),
    (
        "DPP knows {} %, DivPrune {} %, FoPru {} % and VisPruner {} %",
        lambda: [known(m) for m in ("dpp", "divprune", "fopru", "vispruner")],
    ),
    (
        "FoPru minus DivPrune is {} points [{}, {}]",
        lambda: reach(("fopru", 0.25), ("divprune", 0.25)),
        0.3,
    ),
    (
        "one: FoPru minus DivPrune is {} points [{}, {}]",
        lambda: reach(("fopru", 0.25), ("divprune", 0.25), "exact"),
        0.3,
    ),
    (
        "FoPru minus uniform {} points [{}, {}]",
        lambda: reach(("fopru", 0.25), ("uniform", 0.25), "exact"),
        0.3,
    ),
    (
        "by {} points [{}, {}]",
        lambda: reach(("fopru", 0.25), ("uniform", 0.25)),
        0.3,
    ),
    (
        "scoring and selection take at most {} % of the tower's time",
        lambda: overhead(),
    ),
    (
        "it holds {}, {} and {} % of it",
        lambda: [found(f"seed{i}", "fopru") for i in (1, 2, 3)],
    ),
    (
        "random tokens hold {} %",
        lambda: found("seed1", "random"),
    ),
    (
        "FoPru holds {} % of the evidence, less than random tokens ({} %), and CLS {} %",
        lambda: [found("captions", m) for m in ("fopru", "random", "cls")],
    ),
    (
        "still holds {} %",
        lambda: found("captions", "divprune"),
    ),
    (
        "FoPru minus DivPrune is {} points said at a quarter [{}, {}]",
        lambda: captions("fopru", "divprune"),
        0.3,
    ),
    (
        "DivPrune minus random {} points [{}, {}]",
        lambda: captions("divprune", "random"),
        0.3,
    ),
    (
        "right in {} % with all tokens and in {} % with another question's picture",
        lambda: [right("captions", m) for m in ("full", "swapped")],
    ),
]

OBJECTS = ("attributes", "counting", "knowledge", "presence", "reading")


def through(method, column):
    """Task -> what the tower's stage says of a method."""
    rows = table("efficiency/tower")
    rows = rows[(rows.stage == "vision") & (rows.method == method)]
    return rows.set_index("task")[column]


def stay(*tasks):
    """Visual tokens that PixelPrune keeps."""
    return [int(through("pixelprune", "visual")[task]) for task in tasks]


def pace(*tasks):
    """The tower's time with PixelPrune, in percent of all patches'."""
    taken, whole = through("pixelprune", "seconds"), through("full", "seconds")
    return [100 * float(taken[task] / whole[task]) for task in tasks]


def picking(*methods):
    """Milliseconds of selection."""
    rows = table("efficiency/newer")
    rows = rows[rows.stage == "selection"].set_index("method")["seconds"]
    return [1000 * float(rows[method]) for method in methods]


def mistaken(method, answer):
    """Presence at a tenth, known wrongly, in percent of the questions with this answer."""
    return 100 - known(method, 0.1, task="presence", answer=answer)


CLAIMS += [
    (
        "random tokens deny {} % of what is there",
        lambda: mistaken("random", "yes"),
    ),
    (
        "few, {} % with FoPru's tokens, {} % with PruMerge's",
        lambda: [mistaken(m, "no") for m in ("fopru", "prumerge")],
    ),
    (
        "Of a chart {} tokens stay, of a document {} and of a diagram {}, and the tower takes {}, "
        "{} and {} % of its time",
        lambda: [
            *stay("charts", "documents", "diagrams"),
            *pace("charts", "documents", "diagrams"),
        ],
    ),
    (
        "with objects {} stay, since their backgrounds are shaded, and it takes {} to {} %",
        lambda: [stay("counting")[0], min(pace(*OBJECTS)), max(pace(*OBJECTS))],
    ),
    (
        "selection takes FoPru {} ms, HiPrune {}, HoloV {}, VScan {}, DivPrune {}, `cluster-mean` "
        "{}, PruneSID {}, SCOPE {} and MMTok {} ms",
        lambda: picking(
            *("fopru", "hiprune", "holov", "vscan", "divprune", "cluster-mean"),
            *("prunesid", "scope", "mmtok"),
        ),
    ),
    (
        "MMTok ({} %), SCOPE ({} %) and PruneSID ({} %)",
        lambda: [known(m, 0.1) for m in ("mmtok", "scope", "prunesid")],
    ),
    (
        "MMTok minus FoPru is {} points [{}, {}], and minus DPP {} points [{}, {}]",
        lambda: [
            *reach(("mmtok", 0.1), ("fopru", 0.1)),
            *reach(("mmtok", 0.1), ("dpp", 0.1)),
        ],
        0.3,
    ),
    ("the six lie within {} points", widest),
    (
        "Halves know {} % at a tenth, which is {} points [{}, {}] beside FoPru and {} points "
        "[{}, {}] beside DivPrune",
        lambda: [
            known("halves", 0.1),
            *reach(("halves", 0.1), ("fopru", 0.1)),
            *reach(("halves", 0.1), ("divprune", 0.1)),
        ],
        0.3,
    ),
    (
        "less than DivPrune, {} % against {} %",
        lambda: [said("halves", 0.1), said("divprune", 0.1)],
    ),
    (
        "more than FoPru at a tenth, {} % against {} %",
        lambda: [said("cells", 0.1), said("fopru", 0.1)],
    ),
    (
        "as far as the questions tell: {} points [{}, {}]",
        lambda: reach(("cells", 0.1), ("fopru", 0.1)),
        0.3,
    ),
]

ASIDE = [
    "a fiftieth of 25 tokens",
    "448 x 448 pixels: 256 visual tokens",
    "at a quarter of 256 tokens and on two cores",
    "(reported: 95.0 % of the full average",
    "same table: 96.4 %",
    "keeps 16 tokens where rank keeps 25",
    '"25 %" is 160 of 256 tokens for FastV, about 145 for PyramidDrop and 147 for SparseVLM',
    "at 192, 128 and 64 of 576 tokens",
    "97.9, 96.8 and 93.2 % of the full average for VisionZip",
    "98.0, 96.9 and 94.8 % for DivPrune",
]
