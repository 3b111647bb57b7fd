"""Numbers of "Sixty percent with five tokens"."""

from prose import bench, ends, gap

PAGE = "notebooks/five_tokens.ipynb"
ONE, FIVE = 1 / 256, 0.02
BLIND = ("none", "grey", "swapped", "guess")
KNOWLEDGE, DIAGRAMS = {"task": "knowledge"}, {"task": "diagrams"}
FACT, NUMBER, PICTURE = ({"variant": name} for name in ("fact", "number", "picture"))


def on(method, retention=1.0, column="choice", **part):
    return bench(method, retention, **part).share(column)


def both(method, retention=1.0, **part):
    """Known, said."""
    return [on(method, retention, column, **part) for column in ("choice", "exact")]


def pair(other, retention=1.0, **part):
    """FoPru's one token and another setting."""
    return bench("fopru", ONE, **part), bench(other, retention, **part)


def above(others, **part):
    """The least and the most that FoPru's token knows above some others."""
    found = [gap(*pair(other, **part)) for other in others]
    return [min(found), max(found)]


def kept(floor, **part):
    """Percent of what the picture gives that FoPru knows with one token."""
    low, high = on(floor, **part), on("full", **part)
    return 100 * (on("fopru", ONE, **part) - low) / (high - low)


def relative(method, retention=1.0, column="choice", **part):
    """Percent of the full model's accuracy."""
    return 100 * on(method, retention, column, **part) / on("full", column=column, **part)


def malformed(retention, **part):
    return 100 - on("fopru", retention, "formed", **part)


CLAIMS = [
    (
        "FoPru's one token knows {} % of the answers and says {} %",
        lambda: both("fopru", ONE, **KNOWLEDGE),
    ),
    (
        "with another question's picture the model knows {} % and says {} %, with a grey one "
        "{} % and {} %, with none {} % and {} %",
        lambda: [x for name in ("swapped", "grey", "none") for x in both(name, **KNOWLEDGE)],
    ),
    (
        "FoPru's token knows {} %, where one of three choices at random is right to a third, and "
        "says {} %, since {} % of its answers are malformed",
        lambda: [*both("fopru", ONE, **DIAGRAMS), malformed(ONE, **DIAGRAMS)],
    ),
    ("The full model is at {} % there", lambda: on("full", **DIAGRAMS)),
    (
        '"{} % of the full model\'s accuracy with one token" is true of knowledge (known; {} % of '
        "what is said). It is also true that {} % of it, in both readings,",
        lambda: [
            relative("fopru", ONE, **KNOWLEDGE),
            relative("fopru", ONE, "exact", **KNOWLEDGE),
            relative("swapped", **KNOWLEDGE),
        ],
    ),
    (
        "On diagrams the two figures are {} % for the token and {} % for the other picture",
        lambda: [relative("fopru", ONE, **DIAGRAMS), relative("swapped", **DIAGRAMS)],
    ),
    (
        "beats random tokens ({} points known) and no picture ({})",
        lambda: [gap(*pair("random", ONE, **KNOWLEDGE)), gap(*pair("none", **KNOWLEDGE))],
    ),
    (
        "{} points known, with an interval from",
        lambda: gap(*pair("swapped", **KNOWLEDGE)),
    ),
    (
        "with an interval from {} to {} against the picture",
        lambda: ends(*pair("swapped", **KNOWLEDGE)),
        0.5,
    ),
    (
        "In what is said it is {} points behind that picture",
        lambda: -gap(*pair("swapped", **KNOWLEDGE), "exact"),
    ),
    ("in what is known, by {} to {} points", lambda: above(BLIND, **DIAGRAMS)),
    (
        "In what is said it is {} points behind another picture",
        lambda: -gap(*pair("swapped", **DIAGRAMS), "exact"),
    ),
    (
        "even the guesser, are at {} % known. FoPru's token is *below* them, at {} % and {} %",
        lambda: [
            min(on(name, **part) for name in BLIND[1:] for part in (FACT, NUMBER)),
            on("fopru", ONE, **FACT),
            on("fopru", ONE, **NUMBER),
        ],
    ),
    (
        "FoPru knows {} % of them, random tokens {} %, and the blind answers {} % to {} %",
        lambda: [
            on("fopru", ONE, **PICTURE),
            on("random", ONE, **PICTURE),
            min(on(name, **PICTURE) for name in BLIND),
            max(on(name, **PICTURE) for name in BLIND),
        ],
    ),
    ("Against another picture that is {} points", lambda: gap(*pair("swapped", **PICTURE))),
    (
        "points, with an interval from {} to {}, for 62",
        lambda: ends(*pair("swapped", **PICTURE)),
        0.7,
    ),
    ("The oracle's one token knows {} %", lambda: on("oracle", ONE, **PICTURE)),
    ("With five tokens FoPru knows {} %", lambda: on("fopru", FIVE, **PICTURE)),
    (
        "retains {} % of what the picture gives over all knowledge questions, and {} % on those "
        "that need it. With no picture as the floor it is {} % and {} %",
        lambda: [
            kept(floor, **part) for floor in ("swapped", "none") for part in (KNOWLEDGE, PICTURE)
        ],
    ),
    ('are "{} % of full" in the usual', lambda: relative("fopru", ONE, **KNOWLEDGE)),
    ("here it turns nothing into {} %", lambda: relative("fopru", ONE, **KNOWLEDGE)),
    (
        "On diagrams the token retains {} % above another picture, of a difference between full "
        "and floor of {} points",
        lambda: [
            kept("swapped", **DIAGRAMS),
            on("full", **DIAGRAMS) - on("swapped", **DIAGRAMS),
        ],
    ),
    (
        "at one token {} % here on knowledge and {} % on diagrams",
        lambda: [malformed(ONE, **KNOWLEDGE), malformed(ONE, **DIAGRAMS)],
    ),
    (
        "five tokens are enough ({} points, from {} to {})",
        lambda: [
            gap(bench("fopru", FIVE, **KNOWLEDGE), bench("swapped", **KNOWLEDGE)),
            *ends(bench("fopru", FIVE, **KNOWLEDGE), bench("swapped", **KNOWLEDGE)),
        ],
        0.5,
    ),
    (
        "the model knows {} % of it, {} % of the full model's share. FoPru at a tenth knows {} %",
        lambda: [
            on("swapped", task="presence"),
            relative("swapped", task="presence"),
            on("fopru", 0.1, task="presence"),
        ],
    ),
    (
        "One token of 256 gives {} % of the full model's accuracy",
        lambda: relative("fopru", ONE, **KNOWLEDGE),
    ),
    ('"{} % of full" measures', lambda: relative("fopru", ONE, **KNOWLEDGE)),
]

ASIDE = [
    "with 0.2 % of the visual tokens, about five of them, accuracy on Ai2D and ScienceQA (SQA) is "
    "still about 60 %",
    "reads 576 tokens a picture, of which 0.2 % is one. Five tokens are 0.2 % of 2,880",
    "0.2 % of the 24 rows of a view is no row at all",
    "at least one row a view, 120 tokens, which is 4 % and not 0.2",
    "one view of 256 tokens",
    "with 32 tokens left, AI2D falls only from 55.2 to 50.5",
    "from 68.7 at 192 tokens to 68.1 at 64",
    '"60 % with 0.2 % of the tokens"',
    "far below 60 % there",
    'If it is, say, 30 % on Ai2D and SQA, then "60 %" is thirty points',
    "leave an interval of 29 points",
    "it takes 25 %",
]
