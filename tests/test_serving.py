"""Serving, as far as it needs no engine: settings, budgets and embeddings."""

from dataclasses import fields

import pytest
import tiny
import torch
import zoo

import fopru
from fopru.choosing import refusal
from fopru.families import Family, Grid, UnsupportedModelError, View
from fopru.serving.vllm.settings import (
    adapter,
    budget,
    budgeted,
    check_blocks,
    check_engine,
    default,
    n_kept,
    pruner_of,
    settled,
)


def config(**settings):
    found = fopru.load("pocket")[0].config
    found.fopru = settings
    return found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tome"}, "method 'tome' cannot be served: it makes new tokens"),
        ({"method": "fastv"}, "method 'fastv' cannot be served: it drops tokens inside"),
        ({"method": "cdpruner"}, "method 'cdpruner' cannot be served: it reads the question"),
        ({"method": "evs"}, "method 'evs' cannot be served: it takes videos alone"),
        ({"weights": "mass"}, "cannot be served: it changes the language model's attention"),
        ({"method": "foprus"}, "method='foprus': must be one of.*Did you mean 'fopru'"),
        ({"retnetion": 1}, "method 'fopru' takes no 'retnetion'.*Did you mean 'retention'"),
        ({"layer": -1}, "reads block 4 of the vision tower, and vLLM builds blocks 0 to 3"),
        ({"positions": "preserve"}, "positions='preserve': vLLM numbers visual tokens"),
        (None, "start the engine with settings of a pruner"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(settings, message):
    asked = config()
    asked.fopru = settings
    family = adapter(asked)
    with pytest.raises(ValueError, match=message):
        pruner = pruner_of(default(asked))
        check_engine(pruner, family, "0.32.0")
        check_blocks(pruner, pruner.taps(family), 4)


def test_an_engine_of_another_version_is_told_what_proves_it():
    pruner, family = fopru.FoPru(), adapter(config())
    with pytest.warns(UserWarning, match="this is 0.99.1: `fopru serve-check MODEL PICTURES`"):
        check_engine(pruner, family, "0.99.1")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"retention": 0.25, "strategy": "row"}),
        ({"retention": 0.5}, {"retention": 0.5, "strategy": "row"}),
        ({"tokens": 32}, {"tokens": 32, "strategy": "row"}),
        ({"strategy": "rank"}, {"retention": 0.25, "strategy": "rank"}),
    ],
)
def test_a_request_changes_its_budget_and_nothing_else(asked, expected):
    engine = config(strategy="row", retention=0.25)
    once = settled(engine, asked)
    assert once == expected and list(once) == sorted(once)
    assert settled(engine, {"retention": 0.25}) == settled(engine, {})


@pytest.mark.parametrize("method", [m for m, kind in fopru.METHODS.items() if not refusal(kind())])
@pytest.mark.parametrize("asked", [{"retention": 0.29}, {"tokens": 24}])
def test_a_budget_travels_to_the_model_as_it_is(method, asked):
    engine, grid = pruner_of({"method": method}), Grid((View(6, 8), View(3, 4)))
    pruner = pruner_of({"method": method, **asked})
    if method == "fopru-row" and "tokens" in asked:
        grid = Grid((View(6, 8),))
    written = budget(pruner, grid)
    assert budgeted(engine, written).budgets(grid) == pruner.budgets(grid)
    assert n_kept(written) == pruner.n_keep(grid)
    if "strategy" in [field.name for field in fields(pruner)]:
        rows = budget(fopru.FoPru(0.5, strategy="row"), grid)
        assert budgeted(engine, rows).strategy == "row"


def test_a_model_without_weights_says_where_tokens_sit():
    net = tiny.model("llava_next")
    inputs = tiny.inputs("llava_next", [tiny.image(90, 30, seed=1)], ["w1 <image> w2"])
    bare, family = adapter(net.config), Family.of(net)
    assert bare.grids(inputs) == family.grids(inputs)
    assert bare.block(None) == family.block(None) and bare.n_prefix == family.n_prefix
    assert next(bare.model.parameters()).is_meta


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_embeddings_are_what_the_language_model_would_get(family):
    net = tiny.model(family)
    pictures = [tiny.image(seed=1), tiny.image(90, 30, seed=2)]
    inputs = tiny.inputs(family, pictures, ["w1 <image> w2 <image>"])
    pruner = fopru.FoPru(0.3)
    found = fopru.serving.embeddings(net, inputs, pruner)
    for one, expected in zip(found, pruner.prune(net, inputs).features, strict=True):
        assert torch.equal(one, expected) and not one.is_cuda


def test_embeddings_whose_places_an_engine_cannot_know_are_refused():
    net = zoo.model("qwen2_5_vl")
    with pytest.raises(UnsupportedModelError, match="embeddings of Qwen2.5-VL"):
        fopru.serving.embeddings(net, {}, fopru.FoPru(0.3))
    with pytest.raises(UnsupportedModelError, match="embeddings of LLaVA-1.5"):
        fopru.serving.embeddings(tiny.model(), {}, fopru.FoPru(0.3, positions="preserve"))
