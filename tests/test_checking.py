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
