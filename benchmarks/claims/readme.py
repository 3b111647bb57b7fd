from prose import bench

PAGE = "README.md"


def three(*what, **where):
    rows = bench(*what, **where)
    return [rows.share("choice"), rows.share("exact"), rows.share("malformed")]


def row(label: str, *what, **where):
    return f"| {label} | {{}} | {{}} | {{}} |", lambda: three(*what, **where)


WITH = ", weights and original ids"
CLAIMS = [
    row("all 256 tokens", "full"),
    *(row(f"`{name}`", name, 0.1) for name in ("fopru", "cls", "divprune", "dpp", "tome")),
    *(row(f"`{name}`", name, 0.1) for name in ("uniform", "random")),
    *(
        row(f"`{name}`{WITH}", f"{name}-mass", 0.1, "preserve")
        for name in ("fopru", "divprune", "dpp", "tome")
    ),
    row("a guesser who reads only the question", "guess"),
    (
        "On PocketBench's {} test questions ({} pictures)",
        lambda: [len(bench("full").pictures()), bench("full").pictures().nunique()],
    ),
]
ASIDE = ["at a tenth of 256 tokens"]
