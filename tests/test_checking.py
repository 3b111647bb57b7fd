"""Right functions pass; wrong ones are caught, each by a case that shows its mistake."""

import math

import pytest
import torch

import fopru
from fopru import checking


@pytest.mark.parametrize("name", checking.FUNCTIONS)
def test_the_packages_own_functions_pass(name):
    verdict = fopru.check(name, checking.FUNCTIONS[name])
    assert verdict.passed and str(verdict) == f"{name}: agrees with the package on 200 cases."


def rows(significance, height, width, k):
    best = significance.view(height, width).sum(1).topk(k).indices.sort().values
    return (best[:, None] * width + torch.arange(width)).flatten()


def unit(features):
    return torch.nn.functional.normalize(features, dim=1)


def nearest(likeness, kept):
    owner = likeness.argmax(1)
    owner[kept] = torch.arange(len(kept))
    return owner.bincount(minlength=len(kept))


RIGHT = {  # as a reader would write them
    "masses": lambda f, kept: nearest(unit(f) @ unit(f)[kept].T, kept),
    "compaction": lambda ids, kept, image: ids[
        (ids != image) | torch.isin((ids == image).cumsum(0) - 1, kept)
    ],
    "choice": lambda x: int(x.argmax()),
    "break_even": lambda n, text, prefill, overhead: max(
        k
        for k in range(n)
        if not k
        or overhead[0] + overhead[1] * k + seconds(prefill, k + text) < seconds(prefill, n + text)
    ),
}


def seconds(prefill, length):
    return sum(part * length**power for power, part in enumerate(prefill))


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_reader_writes_passes(name):
    assert fopru.check(name, RIGHT[name]).passed, fopru.check(name, RIGHT[name])


WRONG = {
    "rank: best first": ("rank", lambda s, k: s.sort(descending=True, stable=True).indices[:k]),
    "rank: ties to the higher index": (
        "rank",
        lambda s, k: (
            (len(s) - 1 - s.flip(0).sort(descending=True, stable=True).indices[:k]).sort().values
        ),
    ),
    "rank: one too many": ("rank", lambda s, k: checking.rank(s, min(k + 1, len(s)))),
    "rank: the smallest": ("rank", lambda s, k: checking.rank(-s, k)),
    "row: square grids only": (
        "row",
        lambda s, h, w, r: rows(s, math.isqrt(len(s)), math.isqrt(len(s)), 1),
    ),
    "row: rounded": ("row", lambda s, h, w, r: rows(s, h, w, max(1, round(h * r)))),
    "row: never none": ("row", lambda s, h, w, r: rows(s, h, w, math.floor(h * r))),
    "row: columns": (
        "row",
        lambda s, h, w, r: checking.row(s.view(h, w).T.flatten(), w, h, r),
    ),
    "significance: received alone": ("significance", lambda a: a.mean((0, 1))),
    "significance: given alone": ("significance", lambda a: a.mean((0, 2))),
    "significance: one head": ("significance", lambda a: checking.significance(a[:1])),
    "reorder: as they came": ("reorder", lambda chosen: chosen),
    "reorder: backwards": ("reorder", lambda chosen: chosen.sort(descending=True).values),
    "n_keep: int of a rounded product": ("n_keep", lambda n, r: max(1, int(n * r))),
    "n_keep: none at all": ("n_keep", lambda n, r: math.floor(round(n * r, 9))),
    "n_keep: ceil": ("n_keep", lambda n, r: math.ceil(n * r)),
    "n_keep: a float": ("n_keep", lambda n, r: float(checking.n_keep(n, r))),
    "masses: by dot product": (
        "masses",
        lambda f, kept: nearest(f @ f[kept].T, kept),
    ),
    "masses: a kept one is not its own": (
        "masses",
        lambda f, kept: (unit(f) @ unit(f)[kept].T).argmax(1).bincount(minlength=len(kept)),
    ),
    "masses: itself not counted": ("masses", lambda f, kept: checking.masses(f, kept) - 1),
    "masses: those that stand for none left out": (
        "masses",
        lambda f, kept: checking.masses(f, kept).unique(),
    ),
    "compaction: the picture only": (
        "compaction",
        lambda ids, kept, image: torch.full((len(kept),), image),
    ),
    "compaction: kept as places of the prompt": (
        "compaction",
        lambda ids, kept, image: ids[
            [i for i in range(len(ids)) if ids[i] != image or i in kept.tolist()]
        ],
    ),
    "compaction: the picture in one piece": (
        "compaction",
        lambda ids, kept, image: torch.cat(
            [
                ids[: (start := int((ids == image).int().argmax()))],
                torch.full((len(kept),), image),
                ids[start:][ids[start:] != image],
            ]
        ),
    ),
    "choice: the least likely": ("choice", lambda x: int(x.argmin())),
    "choice: ties to the last": ("choice", lambda x: len(x) - 1 - int(x.flip(0).argmax())),
    "choice: by probabilities, which underflow": ("choice", lambda x: int(x.exp().argmax())),
    "choice: a tensor": ("choice", lambda x: x.argmax()),
    "break_even: overhead left out": (
        "break_even",
        lambda n, text, prefill, overhead: n - 1,
    ),
    "break_even: text left out": (
        "break_even",
        lambda n, text, prefill, overhead: checking.break_even(n, 0, prefill, overhead),
    ),
    "break_even: the least that saves": (
        "break_even",
        lambda *case: min(1, checking.break_even(*case)),
    ),
    "rank: raises": ("rank", lambda s, k: s[k + 100]),
}


@pytest.mark.parametrize("name, function", WRONG.values(), ids=WRONG)
def test_wrong_functions_are_caught(name, function):
    verdict = fopru.check(name, function)
    assert not verdict.passed
    assert str(verdict).startswith(f"{name}: case {verdict.cases} is the smallest that fails.")
    assert "expected" in str(verdict) and "found" in str(verdict)
    if name in ("rank", "row"):
        assert "the smallest that fails" in verdict._repr_html_()
        assert "data:image/png;base64,iVBOR" in verdict._repr_html_()


def test_errors_are_what_was_found():
    verdict = fopru.check("rank", lambda s, k: 1 / 0)
    assert verdict.found == "ZeroDivisionError: division by zero"


def test_an_unknown_name():
    with pytest.raises(ValueError, match="name='rows': must be one of .*Did you mean 'row'"):
        fopru.check("rows", print)
