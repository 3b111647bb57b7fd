"""Numbers of "Sixty percent with five tokens"."""

from prose import bench, over

PAGE = "notebooks/five_tokens.ipynb"
ONE = 1 / 256
KNOWLEDGE, DIAGRAMS, PICTURE = {"task": "knowledge"}, {"task": "diagrams"}, {"variant": "picture"}


def on(method, retention=1.0, **part):
    return bench(method, retention, **part).share()


def pair(other, retention=1.0, **part):
    """FoPru's one token and another setting."""
    return bench("fopru", ONE, **part), bench(other, retention, **part)


def kept(floor, **part):
    """Percent of what the picture gives that FoPru knows with one token."""
    low, high = on(floor, **part), on("full", **part)
    return 100 * (on("fopru", ONE, **part) - low) / (high - low)


def relative():
    """What FoPru's one token knows, in percent of the full model's accuracy."""
    return 100 * on("fopru", ONE, **KNOWLEDGE) / on("full", **KNOWLEDGE)


def width():
    """Of the interval of FoPru's one token minus another picture, over all trainings."""
    _, low, high = over(*pair("swapped", **PICTURE))
    return high - low


CLAIMS = [
    (
        "With one token of 256 the model knows {} % of the *knowledge* answers",
        lambda: on("fopru", ONE, **KNOWLEDGE),
    ),
    ("As many: {} %", lambda: on("swapped", **KNOWLEDGE)),
    (
        "FoPru's one token knows {} % of the answers. That is",
        lambda: on("fopru", ONE, **KNOWLEDGE),
    ),
    (
        "with another question's picture the model knows {} %, and the guesser {} %",
        lambda: [on("swapped", **KNOWLEDGE), on("guess", **KNOWLEDGE)],
    ),
    ('"{} % of the full model\'s accuracy with one token" is true', relative),
    ("FoPru's token knows {} %, where one", lambda: on("fopru", ONE, **DIAGRAMS)),
    ("The full model is at {} % there", lambda: on("full", **DIAGRAMS)),
    (
        "FoPru knows {} % of them, random tokens {} %",
        lambda: [on("fopru", ONE, **PICTURE), on("random", ONE, **PICTURE)],
    ),
    (
        "Against another picture that is {} points, and the ends of all intervals are {} and {}",
        lambda: over(*pair("swapped", **PICTURE)),
        0.9,
    ),
    (
        "retains {} % of what the picture gives over all knowledge questions, and {} % on those "
        "that need it. With no picture as the floor it is {} % and {} %",
        lambda: [
            kept(floor, **part) for floor in ("swapped", "none") for part in (KNOWLEDGE, PICTURE)
        ],
    ),
    ('"{} % of full" measures', relative),
    ('are "{} % of full" in the usual', relative),
    ("here it turns next to nothing into {} %", relative),
    ("questions on 61 pictures leave an interval of {} points", width, 1.8),
    ("One token of 256 gives {} % of the full model's accuracy", relative),
]

ASIDE = [
    "with 0.2 % of the visual tokens, about five of them, accuracy on Ai2D and ScienceQA is still "
    "about 60 %",
    "reads 576 tokens a picture, of which 0.2 % is one. Five tokens are 0.2 % of 2,880",
    "0.2 % of the 24 rows of a view is no row at all",
    "one view of 256 tokens",
    "With 32 tokens left, AI2D falls only from 55.2 to 50.5",
    "from 68.7 at 192 tokens to 68.1 at 64",
    'If it is, say, 30 % on Ai2D and ScienceQA, then "60 %" is thirty points',
]
