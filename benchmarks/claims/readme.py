from prose import bench, table

PAGE = "README.md"
METHODS = ("fopru", "divprune", "random")


def fewest(task: str, method: str, column: str, points: float = 3) -> float | None:
    """The fewest tokens with which, and with every larger budget, a method is at most some points
    below all tokens; None where no budget is enough."""
    floor = bench("full", task=task).share(column) - points - 1e-9
    rows = table("pocketbench").query("method == @method and positions == 'reindex'")
    enough = None
    for retention in sorted(rows[rows.task == task].retention.unique(), reverse=True):
        cell = bench(method, retention, task=task)
        if cell.share(column) < floor:
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
        "On PocketBench's {} test questions ({} pictures)",
        lambda: [len(bench("full").pictures()), bench("full").pictures().nunique()],
    ),
]
ASIDE = ["the fewest of 256 visual tokens"]
