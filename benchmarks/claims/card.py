"""The pocket model's card."""

from prose import Rows, over, table

PAGE = "data/pocket/README.md"
GOALS = dict.fromkeys(("presence", "attributes", "counting", "reading", "charts"), 95)
GOALS |= {"documents": 90, "diagrams": 80}


def card(method: str, retention: float | None = None, **equal) -> Rows:
    """Rows of the card's questions."""
    rows = Rows(table("pocket/score")).where(method=method, **equal)
    return rows if retention is None else rows.at(retention)  # all tokens, or blind


def each(column: str, *setting, **equal) -> list[float]:
    """Percent, training by training."""
    return [rows.share(column) for rows in card(*setting, **equal).apart()]


def known(method: str, retention: float | None = None, **equal) -> float:
    return card(method, retention, **equal).share()


def less(other: str, retention: float) -> list[float]:
    """FoPru minus another method in what is known: the mean over trainings, and the ends of all
    intervals."""
    return over(card("fopru", retention), card(other, retention))


def met() -> list[int]:
    """How many goals all tokens reach in what is known, of how many."""
    shares = [
        (goal, share) for t, goal in GOALS.items() for share in each("choice", "full", task=t)
    ]
    return [sum(share >= goal for goal, share in shares), len(shares)]


CLAIMS = [
    ("The three trainings know {}, {} and {} % of the answers", lambda: each("choice", "full")),
    ("{} of {} goals are met", met),
    ("documents {}, {} and {} %", lambda: each("choice", "full", task="documents")),
    ("diagrams {}, {} and {} %", lambda: each("choice", "full", task="diagrams")),
    ("counting {}, {} and {} %", lambda: each("choice", "full", task="counting")),
    (
        "a tenth of the tokens {}, {} and {} % of FoPru's answers are malformed",
        lambda: each("malformed", "fopru", 0.1),
    ),
    (
        "{} % of these answers are known",
        lambda: 100 * card("fopru", 0.1, formed=False).rows["choice"].astype(float).mean(),
    ),
    (
        "without a picture {} % of the answers are malformed",
        lambda: card("none").share("malformed"),
    ),
    (
        "knows {} % of reading, {} % of documents and {} % of charts blind",
        lambda: [known("swapped", task=t) for t in ("reading", "documents", "charts")],
    ),
    (
        "a quarter of the tokens FoPru knows {} % and says {} %",
        lambda: [card("fopru", 0.25).share(column) for column in ("choice", "exact")],
    ),
    (
        "with a tenth {} % and {} %",
        lambda: [card("fopru", 0.1).share(column) for column in ("choice", "exact")],
    ),
    *(
        (
            f"{name} {{}} [{{}}, {{}}] at a quarter and {{}} [{{}}, {{}}] at a tenth",
            lambda other=other: [*less(other, 0.25), *less(other, 0.1)],
            0.5,
        )
        for name, other in {
            "random tokens": "random",
            "uniform ones": "uniform",
            "CLS": "cls",
            "DivPrune": "divprune",
        }.items()
    ),
    (
        "diagrams ({} against {} %) and documents ({} against {} %)",
        lambda: [
            known(*setting, task=t)
            for t in ("diagrams", "documents")
            for setting in (("oracle", 0.1), ("full",))
        ],
    ),
]
ASIDE = [
    "a vocabulary of 151 tokens",
    "two trainings knew 61 and 89 % of documents and 57 and 60 % of diagrams",
    "as many tokens as the others at 50 and 25 %, fewer at 10 % (16 against 25), more at 5 % (16",
    "95 % on presence, attributes, counting, reading and charts, 90 % on documents, 80 % on "
    "diagrams",
    "at most 5 % of FoPru's answers",
]
