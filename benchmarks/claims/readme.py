from prose import bench

PAGE = "README.md"
METHODS = ("fopru", "divprune", "random")


def fewest(task: str, method: str, column: str, points: float = 3) -> float | None:
    """The fewest tokens with which, and with every larger budget, a method is at most some points
    below all tokens; None where half of them is not enough."""
    enough = None
    for retention in (0.5, 0.25, 0.1, 0.05):
        cell = bench(method, retention, "preserve", task=task)
        full = bench("full", task=task, id=list(cell.rows.id.unique()))
        if cell.share(column) < full.share(column) - points - 1e-9:
            break
        enough = float(cell.rows.kept.mean())
    return enough


def row(task: str, example: str):
    found = [fewest(task, m, column) for m in METHODS for column in ("choice", "exact")]
    cells = " | ".join("all" if k is None else "{}" for k in found)
    return f"| {task} | {example} | {cells} |", [k for k in found if k is not None]


CLAIMS = [
    row("presence", "is there a red star?"),
    row("attributes", "what shape is the purple object?"),
    row("counting", "how many objects are there?"),
    row("reading", "what number is on the sign?"),
    row("knowledge", "which is a vehicle? plane, cat or spade"),
    row("documents", "what is the price of fish?"),
    row("diagrams", "what does k point to? b, f or h"),
    row("charts", "which bar is highest?"),
    (
        "on {} of PocketBench's test questions",
        lambda: bench("fopru", 0.5, "preserve").rows.id.nunique(),
    ),
]
ASIDE = ["Of 12, 25, 64 and 128 visual tokens"]
