"""What the model card claims, measured again on fresh questions."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from making.score import TRAININGS

import fopru
from fopru.evaluation.controls import BLIND
from fopru.evaluation.statistics import accuracy, difference
from fopru.pocket import scenes

SCENES = ("presence", "attributes", "counting", "reading")
RESULTS = Path(__file__).parents[2] / "data" / "results" / "pocket"


def ask(n, seed, tasks=tuple(scenes.TASKS), training="pocket", **arguments):
    model, processor = fopru.load(fopru.pocket.folder(training))
    examples = [e for task in tasks for e in fopru.pocket.sample(task, n, seed)]
    return fopru.evaluate(model, processor, examples, **{"methods": (), **arguments})


def told(training):
    """The rows that the card's tables were made of."""
    card = pd.read_parquet(RESULTS / "score.parquet")
    return card[card.training == TRAININGS.index(training)]


def shares(results, method):
    table = accuracy(results[results.method == method])
    return table.set_index("task")["mean"]


def malformed(results):
    """The share of FoPru's answers at a tenth that are no legal ones."""
    rows = results[(results.method == "fopru") & (results.retention == 0.1)]
    return 1 - rows.formed.astype(float).mean()


def far(n):
    """Four standard errors of the difference of n and 200 questions, at a share of one half."""
    return 4 * 0.5 * (1 / n + 1 / 200) ** 0.5


def test_forty_questions_a_task_agree_with_the_card():
    here, there = (shares(results, "full") for results in (ask(40, seed=77), told("pocket")))
    assert ((here - there).abs() < far(40)).all(), here - there


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_each_training_answers_fresh_questions_as_the_card_says(training):
    asked = {"methods": ("fopru",), "retentions": (0.1,), "blind": tuple(BLIND)}
    fresh, card = ask(200, 78, training=training, **asked), told(training)
    for method, retention in (("full", 1.0), ("fopru", 0.1)):
        here, there = (shares(rows[rows.retention == retention], method) for rows in (fresh, card))
        assert ((here - there).abs() < far(200)).all(), (method, here - there)
    here, there = (malformed(rows) for rows in (fresh, card))
    assert abs(here - there) < 0.05
    full = shares(fresh, "full")
    assert full[list(SCENES)].mean() >= 0.9
    assert full["charts"] >= 0.75 and full["diagrams"] >= 0.45
    if training != "pocket-0":  # it did not learn to find an item by its price: the card says so
        assert full["documents"] >= 0.75
    assert shares(fresh, "grey")["reading"] < 0.05
    for blind in BLIND:
        lost = full - shares(fresh, blind)
        assert (lost.drop("knowledge") > 0.15).all(), (blind, lost)


@pytest.fixture(scope="module")
def signs():
    """Questions of reading, with a quarter of the tokens in their own places."""
    methods, own = ("fopru", "random"), "preserve"
    return ask(200, 79, ("reading",), methods=methods, retentions=(0.25,), positions=own)


@pytest.mark.slow
def test_on_reading_significance_finds_what_random_tokens_lose(signs):
    _, low, _ = difference(signs, ("fopru", 0.25), ("random", 0.25))
    assert low > 0.2
    found = accuracy(signs, by=[], value="found").set_index("method")["mean"]
    assert found["fopru"] > 2 * found["random"]


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="half is not enough there: see the README")
def test_on_reading_a_quarter_loses_little(signs):
    lost, _, _ = difference(signs, ("full", 1.0), ("fopru", 0.25))
    assert lost <= 0.05


@pytest.mark.xfail(strict=True, reason="the goal is missed: the card says by how much")
@pytest.mark.parametrize("training", TRAININGS)
def test_few_answers_are_malformed_at_a_tenth(training):
    assert malformed(told(training)) < 0.05


def test_weights_are_small_and_safe():
    folder = fopru.pocket.folder()
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}
    assert sum(p.stat().st_size for p in folder.iterdir()) < 12 * 2**20
    assert fopru.load("pocket")[0].dtype == torch.float32
