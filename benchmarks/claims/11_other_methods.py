"""Other methods."""

from prose import Rows, bench, lead, over, shared, table

PAGE = "notebooks/11_other_methods.ipynb"


def reach(one, other, retention):
    """Points between two methods on the questions that all were asked: the mean over trainings, and
    the ends of all intervals."""
    return over(shared(bench(one, retention)), shared(bench(other, retention)))


def captions(one, other, retention=0.25):
    """Said, on the model whose tower saw captions only."""
    rows = Rows(table("pocket/half")).where(model="captions", retention=retention)
    one, other = rows.where(method=one), rows.where(method=other)
    return lead(one, other, "exact")


def mistaken(method, answer):
    """Presence at a tenth, known wrongly, in percent of the questions with this answer."""
    return 100 - bench(method, 0.1, task="presence", answer=answer).share("choice")


def affirmed(method, variant="likely"):
    """Absent things that are affirmed at a tenth, in percent."""
    rows = Rows(table("beyond")).where(split="hallucination", method=method, variant=variant)
    return 100 - rows.where(positions="reindex").at(0.1).share("choice")


CLAIMS = [
    (
        "FoPru minus DivPrune is {} points [{}, {}]",
        lambda: reach("fopru", "divprune", 0.25),
        0.3,
    ),
    (
        "MMTok minus FoPru is {} points [{}, {}], and minus DPP {} points [{}, {}]",
        lambda: [*reach("mmtok", "fopru", 0.1), *reach("mmtok", "dpp", 0.1)],
        0.3,
    ),
    (
        "FoPru minus DivPrune is {} points said at a quarter [{}, {}]",
        lambda: captions("fopru", "divprune"),
        0.3,
    ),
    (
        "random tokens deny {} % of what is there",
        lambda: mistaken("random", "yes"),
    ),
    (
        "With the tokens of CLS it affirms {} % of the likely things",
        lambda: affirmed("cls"),
    ),
    (
        "halves minus FoPru is {} points [{}, {}], and minus DivPrune {} points [{}, {}]",
        lambda: [
            *over(bench("halves", 0.1), bench("fopru", 0.1)),
            *over(bench("halves", 0.1), bench("divprune", 0.1)),
        ],
        0.5,
    ),
]

ASIDE = [
    "(reported: 95.0 % of the full average, and 96.4 % for pooling",
    "keep 64 tokens each of the same picture",
    "at a tenth it has 16 tokens where rank has 25",
]
