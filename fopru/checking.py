"""check() compares a reader's function with the package's, on cases from small to large."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from fopru.arguments import check_choice
from fopru.efficiency import Latency
from fopru.picking import first, floor_share, owners, top
from fopru.significance import wider

CASES = 200


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a check found. A notebook shows it in words and, if it failed, with a picture."""

    name: str
    cases: int
    arguments: dict[str, Any] | None = None
    """The arguments of the smallest case that failed; None if all passed."""
    expected: Any = None
    found: Any = None

    @property
    def passed(self) -> bool:
        """Whether all cases passed."""
        return self.arguments is None

    def __str__(self) -> str:
        if self.passed:
            return f"{self.name}: agrees with the package on {self.cases} cases."
        arguments = ", ".join(f"{name}={_short(value)}" for name, value in self.arguments.items())
        return (
            f"{self.name}: case {self.cases} is the smallest that fails.\n"
            f"  {self.name}({arguments})\n"
            f"  expected {_short(self.expected)}\n"
            f"  found    {_short(self.found)}"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        words = f"<pre>{html.escape(str(self))}</pre>"
        if self.passed or "significance" not in self.arguments:
            return words
        data = base64.b64encode(self._picture()).decode()
        return (
            f'{words}<img alt="significance, expected, found" src="data:image/png;base64,{data}">'
        )

    def _picture(self) -> bytes:
        scores = self.arguments["significance"]
        shape = (self.arguments.get("height", 1), -1)
        figure, axes = plt.subplots(1, 3, figsize=(7, 1.6), layout="constrained")
        for ax, title, values in (
            (axes[0], "significance", scores),
            (axes[1], "expected", _flags(self.expected, len(scores))),
            (axes[2], "found", _flags(self.found, len(scores))),
        ):
            ax.imshow(values.view(shape).numpy(), cmap="cividis")
            ax.set(title=title, xticks=[], yticks=[])
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=120)
        plt.close(figure)
        return data.getvalue()


def _flags(kept: Any, n: int) -> Tensor:
    flags = torch.zeros(n)
    if isinstance(kept, Tensor) and not kept.is_floating_point():
        flags[[i for i in kept.flatten().tolist() if 0 <= i < n]] = 1
    return flags


def _short(value: Any) -> str:
    if isinstance(value, Tensor) and not value.ndim:
        return f"tensor({value.item()})"
    if isinstance(value, Tensor):
        return str([round(x, 3) if isinstance(x, float) else x for x in value.tolist()])
    if isinstance(value, tuple):
        return str(tuple(float(f"{x:.3g}") for x in value))
    return str(value)


def rank(significance: Tensor, k: int) -> Tensor:
    """Return the places of the k tokens of largest significance, (k,), in the order of the picture.

    Ties go to the lower index.
    """
    return top(significance, k)


def row(significance: Tensor, height: int, width: int, retention: float) -> Tensor:
    """Return the places of all tokens in the floor(height * retention) rows of largest sum, at
    least one row.

    Sums are made in float64, and ties go to the upper row.
    """
    table = significance.double().view(height, width)
    rows = top(table.sum(1).float(), floor_share(height, retention))
    return (rows[:, None] * width + torch.arange(width)).flatten()


def significance(attention: Tensor) -> Tensor:
    """Return what each token receives or gives, (P,): the one of the two that varies more.

    Args:
        attention: (h, P, P); it is averaged over heads first.
    """
    mean = attention.mean(0)
    received, given = mean.mean(0), mean.mean(1)
    return wider(received, given, torch.ones(len(received), dtype=torch.bool))


def reorder(chosen: Tensor) -> Tensor:
    """Sort the places of tokens that were chosen best first into the order of the picture."""
    return chosen.sort().values


def n_keep(n: int, retention: float) -> int:
    """Return how many of n tokens stay: the floor of the exact product n * retention, at least
    1."""
    return floor_share(n, retention)


def masses(features: Tensor, kept: Tensor) -> Tensor:
    """Return how many tokens each kept one stands for, (k,) int64; they sum to N.

    Each token counts for the kept one that is most like it by cosine, and a kept one for itself.
    Ties go to the kept one that comes first.

    Args:
        features: (N, d) of all tokens of a picture.
        kept: (k,) int64 places of the kept ones, sorted.
    """
    return owners(features, kept).bincount(minlength=len(kept))


def compaction(input_ids: Tensor, kept: Tensor, image_token_id: int) -> Tensor:
    """Return the shorter prompt: all ids but those placeholders whose tokens are not kept.

    Args:
        input_ids: (L,) the ids of one prompt. Its placeholders need not stand side by side.
        kept: (k,) int64 places of the kept tokens among the placeholders, sorted.
        image_token_id: The id of the placeholders.
    """
    places = (input_ids == image_token_id).nonzero().flatten()
    stays = input_ids != image_token_id
    stays[places[kept]] = True
    return input_ids[stays]


def choice(log_likelihoods: Tensor) -> int:
    """Return which legal answer is the likeliest: its place in (A,) log-likelihoods.

    Ties go to the first.
    """
    return int(first(log_likelihoods.double()))


def break_even(
    visual: int, text: int, prefill: tuple[float, float, float], overhead: tuple[float, float]
) -> int:
    """Return the most visual tokens that may stay if pruning shall save time; 0 if it never does.

    Args:
        visual, text: The visual tokens without pruning, and the other tokens of the prompt.
        prefill: (a, b, c): reading a prompt of L tokens takes a + b L + c L squared seconds.
        overhead: (a, b): pruning adds a + b k seconds where k visual tokens stay.
    """
    methods = {"full": (0.0, 0.0), "mine": overhead}
    latency = Latency(vision=0.0, prefill=prefill, decode=(0.0, 0.0), overhead=methods)
    saves = (k for k in range(visual, 0, -1) if latency.saved(visual, k, text, 1, "mine") > 0)
    return next(saves, 0)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rank": rank,
    "row": row,
    "significance": significance,
    "reorder": reorder,
    "n_keep": n_keep,
    "masses": masses,
    "compaction": compaction,
    "choice": choice,
    "break_even": break_even,
}


def _cases(name: str) -> Iterator[dict[str, Any]]:
    """Draw cases from small to large, with ties, grids that are not square, rounded products,
    duplicates, and prompts with nothing around the picture."""
    draw = torch.Generator().manual_seed(0)
    exact = ((100, 0.29), (100, 0.57), (10, 0.3), (7, 0.1), (576, 0.002), (3, 1.0))
    for i in range(CASES):
        high, wide = (int(torch.randint(1, 3 + i // 12, (), generator=draw)) for _ in range(2))
        n = high * wide
        scores = torch.rand(n, generator=draw)
        if i % 3 == 0:
            scores = (scores * 3).floor()  # ties
        share = round(float(torch.rand((), generator=draw)) * 0.99 + 0.01, 2)
        if name == "rank":
            k = int(torch.randint(1, n + 1, (), generator=draw))
            yield {"significance": scores, "k": k}
        elif name == "row":
            yield {"significance": scores, "height": high, "width": wide, "retention": share}
        elif name == "reorder":
            yield {"chosen": torch.randperm(n, generator=draw)[: max(1, n // 2)]}
        elif name == "n_keep":
            count, part = exact[i] if i < len(exact) else (n, share)
            yield {"n": count, "retention": part}
        elif name == "masses":
            kept = torch.randperm(n, generator=draw)[: floor_share(n, share)].sort().values
            features = torch.randn(n, 4, generator=draw)
            if i % 3 == 0:  # duplicates of several lengths, and what is like no other
                kinds = torch.eye(4)[torch.randint(4, (n,), generator=draw)]
                features = kinds * torch.randint(1, 4, (n, 1), generator=draw)
            yield {"features": features, "kept": kept}
        elif name == "compaction":
            kept = torch.randperm(n, generator=draw)[: floor_share(n, share)].sort().values
            parts = torch.randint(0, 1 + i // 12, (3,), generator=draw).tolist()
            words = [torch.randint(0, 99, (part,), generator=draw) for part in parts]
            left = int(torch.randint(0, n + 1, (), generator=draw))
            picture = torch.full((n,), 99)
            ids = torch.cat([words[0], picture[:left], words[1], picture[left:], words[2]])
            yield {"input_ids": ids, "kept": kept, "image_token_id": 99}
        elif name == "choice":
            yield {"log_likelihoods": (scores - 1) * (1000 if i % 2 else 10)}
        elif name == "break_even":
            a, b, c, fixed, each = torch.rand(5, generator=draw, dtype=torch.float64).tolist()
            prefill = (a, b / 10, c / 1000 * (i % 2))
            overhead = (fixed * n / 10 * (i % 3 > 0), each / 10 * (i % 5 > 0))
            text = int(torch.randint(0, 40, (), generator=draw))
            yield {"visual": n, "text": text, "prefill": prefill, "overhead": overhead}
        else:
            logits = 3 * torch.randn(2, n + 1, n + 1, generator=draw)
            yield {"attention": logits.softmax(-1) if i % 2 else logits}


def check(name: str, function: Callable[..., Any]) -> Verdict:
    """Try a function of your own on cases from small to large.

    Args:
        name: What the function does: "rank", "row", "significance", "reorder", "n_keep", "masses",
            "compaction", "choice" or "break_even". It takes the arguments of the function of that
            name in `fopru.checking`, and returns the same.
        function: Your function. It is called with copies of the arguments, by position.

    Returns:
        A verdict that says, and in a notebook draws, the smallest case in which the two differ.

    Raises:
        ValueError: the name is unknown.
    """
    check_choice("name", name, tuple(FUNCTIONS))
    for i, case in enumerate(_cases(name), 1):
        expected = FUNCTIONS[name](**case)
        copies = [v.clone() if isinstance(v, Tensor) else v for v in case.values()]
        try:
            found = function(*copies)
        except Exception as error:  # whatever a reader's function does is the answer
            found = f"{type(error).__name__}: {error}"
        if not _same(found, expected):
            return Verdict(name, i, case, expected, found)
    return Verdict(name, CASES)


def _same(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor):
        return isinstance(found, int) and not isinstance(found, bool) and found == expected
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    if expected.is_floating_point():
        return torch.allclose(found.double(), expected.double(), atol=1e-6)
    return torch.equal(found.long(), expected)
