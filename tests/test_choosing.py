"""Kept places from queries and keys, without a model: as the model's own path has them."""

import pytest
import tiny
import torch

import fopru
from fopru.choosing import choose
from fopru.encoding import run_tower
from fopru.families import Grid, UnsupportedModelError, View

FROM_ONE_BLOCK = {
    "fopru": {},
    "fopru-row": {},
    "cls": {},
    "divprune": {},
    "dart": {},
    "random": {},
    "uniform": {},
}
"""Methods that read one block or the features, and options of each."""


@pytest.mark.parametrize("method", FROM_ONE_BLOCK)
def test_a_pruner_chooses_without_a_model_what_it_chooses_with_one(method):
    model = tiny.model()
    pictures = [tiny.image(seed=1), tiny.image(seed=2)]
    inputs = tiny.inputs("llava", pictures, ["w1 <image> w2", "<image> w3 w4"])
    pruner = fopru.METHODS[method](0.3)
    expected = pruner.prune(model, inputs).images
    seen = run_tower(model, inputs, [pruner, fopru.FoPru()])
    (noted,) = seen.attention.values()
    (attention,) = noted
    for i, image in enumerate(seen.scored().images):
        query, key = attention.query[i], attention.key[i]
        found = choose(pruner, query, key, attention.scaling, 1, image.grid, image.features)
        assert found.tolist() == expected[i].kept.tolist()


def given(**changes):
    grid = Grid((View(2, 4),))
    arguments = dict(
        query=torch.randn(2, 9, 8),
        key=torch.randn(2, 9, 8),
        scaling=0.5,
        n_prefix=1,
        grid=grid,
        features=torch.randn(8, 12),
    )
    return arguments | changes


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (fopru.METHODS["tome"](0.5), "method 'tome' makes new tokens"),
        (fopru.METHODS["fastv"](0.5), "method 'fastv' drops tokens inside the language model"),
        (fopru.METHODS["cdpruner"](0.5), "method 'cdpruner' reads the question"),
        (fopru.METHODS["vispruner"](0.5), "method 'vispruner' reads the tower's features"),
        (
            fopru.FoPru(0.5, weights="mass"),
            r"changes .*attention \(weights='mass'\)",
        ),
        (fopru.METHODS["evs"](0.5), r"takes videos alone \(per='clip'\)"),
        (fopru.FoPru(0.5, layer=1), "layer=1: the queries and keys say what is read"),
    ],
)
def test_what_choose_does_not_have_is_named(pruner, message):
    with pytest.raises(ValueError, match=message):
        choose(pruner, **given())


def test_a_method_of_several_blocks_is_refused():
    with pytest.raises(UnsupportedModelError, match="reads several blocks was given one"):
        choose(fopru.METHODS["hiprune"](0.5), **given())


@pytest.mark.parametrize(
    "changes",
    [
        {"key": torch.randn(2, 8, 8)},
        {"features": torch.randn(9, 12)},
        {"n_prefix": 0},
        {"grid": Grid((View(1, 4), View(1, 4)))},
        {"grid": Grid((View(2, 3, newline=True),))},
    ],
)
def test_what_does_not_belong_together_is_refused(changes):
    with pytest.raises(ValueError, match="query, key, features and grid: must have the same N"):
        choose(fopru.FoPru(0.5), **given(**changes))


def test_the_cls_token_is_asked_for_where_there_is_none():
    arguments = given(n_prefix=0, query=torch.randn(2, 8, 8), key=torch.randn(2, 8, 8))
    with pytest.warns(UserWarning, match="has no CLS token"):
        assert len(choose(fopru.METHODS["cls"](0.5), **arguments)) == 4
    with pytest.raises(ValueError, match="this vision tower has no CLS token"):
        choose(fopru.METHODS["cls"](0.5, attention="cls"), **arguments)
