"""Numbers of "What it knows and what it says"."""

from prose import bench, ends, gap

PAGE = "notebooks/known_and_said.ipynb"

FOPRU, RANDOM, DIVPRUNE = (bench(name, 0.1) for name in ("fopru", "random", "divprune"))
GREY, SWAPPED = bench("grey"), bench("swapped")
FACTS = {"variant": "fact"}


def both(rows):
    """Known, said."""
    return [rows.share("choice"), rows.share("exact")]


def of_wrong(rows, column):
    """Percent of the answers that are not exactly right."""
    return rows.where(exact=False).rows[column].astype(bool).mean() * 100


def malformed(rows):
    return 100 - of_wrong(rows, "formed")


def unlikely(rows):
    """Percent of questions whose right answer, and whose end after it, is below one half."""
    table = rows.rows
    words = table["loglik_open"] < -0.6931472
    end = table["loglik"] - table["loglik_open"] < -0.6931472
    return [100 * part.groupby(table["id"]).mean().mean() for part in (words, end)]


def against(other, retention, column):
    one, two = bench("fopru", retention), bench(other, retention)
    return [gap(one, two, column), *ends(one, two, column)]


CLAIMS = [
    (
        "FoPru says the right answer to {} % of the questions, tokens drawn at random to {} %, "
        "DivPrune to {} %",
        lambda: [rows.share("exact") for rows in (FOPRU, RANDOM, DIVPRUNE)],
    ),
    (
        "{} % of FoPru's wrong answers at a tenth are malformed, against {} % of random's and "
        "{} % of DivPrune's",
        lambda: [malformed(rows) for rows in (FOPRU, RANDOM, DIVPRUNE)],
    ),
    ("FoPru at a tenth knows {} % and says {} %. For", lambda: both(FOPRU)),
    ("the two readings are close: {} % and {} %", lambda: both(RANDOM)),
    ("DivPrune knows {} % and says {} %", lambda: both(DIVPRUNE)),
    (
        "With a grey picture the right answer is known to {} % and said to {} % of the questions; "
        "with another question's picture it is {} % and {} %",
        lambda: both(GREY) + both(SWAPPED),
    ),
    (
        "FoPru's gap of {} points",
        lambda: FOPRU.share("choice") - FOPRU.share("exact"),
    ),
    (
        "the right word to {} % of these questions. With FoPru's tenth of the *true* picture it "
        "says it to {} %",
        lambda: [
            bench("grey", **FACTS).share("exact"),
            bench("fopru", 0.1, **FACTS).share("exact"),
        ],
    ),
    (
        "FoPru's right answers are unlikely for {} % of the questions and their ends for {} %; "
        "random's for {} % and {} %",
        lambda: unlikely(FOPRU) + unlikely(RANDOM),
    ),
]

ASIDE: list[str] = []
