"""What is known and what is said, against readings made one by one."""

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import fopru
from fopru.evaluation import Example, evaluate
from fopru.evaluation.asking import answer_ids, inputs_of, prompts
from fopru.evaluation.readings import Choices, Known, begins, legal_answers
from fopru.pocket.answers import legal

PRUNERS = [fopru.FoPru(0.1), fopru.DivPrune(0.1, weights="mass"), fopru.FastV(0.1)]


@pytest.fixture(scope="module")
def pocket():
    return fopru.load("pocket")


@torch.no_grad()
def margin(model, processor, e, pruner):
    """By how much the right answer leads, each legal answer whole in a row of its own behind the
    prompt."""
    text = prompts(processor, [e])
    prompt = inputs_of(processor, [e], text)
    end = [processor.tokenizer.eos_token_id]
    bare = {name: answer_ids(processor, text[0], name)[0][:-1] for name in e.choices}
    read = {}
    for name, tokens in bare.items():
        clash = any(
            o != name and (t[: len(tokens)] == tokens or tokens[: len(t)] == t)
            for o, t in bare.items()
        )
        read[name] = tokens + end if clash else tokens
    longest = max(map(len, read.values()))
    ids = torch.tensor([tokens + end * (longest - len(tokens)) for tokens in read.values()])
    with pruner(model):
        out = model(**prompt)
        first = out.logits[:, -1:].log_softmax(-1).expand(len(ids), -1, -1)  # (N, 1, V)
        out.past_key_values.batch_repeat_interleave(len(ids))
        out = model(input_ids=ids, past_key_values=out.past_key_values)
    log = torch.cat([first, out.logits.log_softmax(-1)], 1)  # (N, 1 + longest, V)
    each = log[:, :-1].gather(2, ids[..., None])[..., 0]  # (N, longest)
    scores = {
        name: row[: len(tokens)].sum().item()
        for (name, tokens), row in zip(read.items(), each, strict=True)
    }
    right = max(scores[name] for name in scores if name in e.right)
    return right - max(value for name, value in scores.items() if name not in e.right)


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda p: p.name)
def test_the_likeliest_legal_answer_is_that_of_a_loop(pocket, pruner, which):
    """Questions of all kinds, several on a picture, a batch of unequal prompts and choices."""
    model, processor = pocket
    kinds = {}
    for e in fopru.pocket.sample(n=160, seed=11):
        kinds.setdefault((e.task, e.scene["variant"]), []).append(e)
    examples = [e for some in kinds.values() for e in some[which : which + 1]]
    assert len(examples) >= 20 and all(e.choices for e in examples)
    table = evaluate(model, processor, examples, [pruner], [0.1], batch_size=16)
    table = table[table.method != "full"].set_index("id")
    for e in examples:
        expected = margin(model, processor, e, pruner)
        assert table.margin[e.id] == pytest.approx(expected, abs=1e-3)
        if abs(expected) > 1e-3:
            assert table.choice[e.id] == (expected > 0)
    assert 0.3 < table.choice.mean() < 1


def test_readings_do_not_depend_on_batches_or_on_what_shares_a_picture(pocket):
    model, processor = pocket
    examples = fopru.pocket.sample("charts", n=12, seed=3)
    together = evaluate(model, processor, examples, ["fopru"], [0.1], batch_size=12)
    for i in (0, 5, 11):
        alone = evaluate(model, processor, examples[i : i + 1], ["fopru"], [0.1])
        here = together[together.id == examples[i].id].reset_index(drop=True)
        for name in ("margin", "loglik", "loglik_open"):
            np.testing.assert_allclose(here[name], alone[name], atol=1e-3)
        assert here.choice.equals(alone.choice) and here.begins.equals(alone.begins)


def test_readings_survive_a_results_file(pocket, tmp_path):
    model, processor = pocket
    examples = fopru.pocket.sample("presence", n=4, seed=3)
    arguments = (model, processor, examples, ["fopru"], [0.1])
    fresh = evaluate(*arguments, out=tmp_path / "found.sqlite")
    pd.testing.assert_frame_equal(evaluate(*arguments, out=tmp_path / "found.sqlite"), fresh)


def test_a_model_that_runs_on_knows_and_does_not_say(pocket):
    """It never stops: what it says begins right and is none of the legal answers."""
    model, processor = copy.deepcopy(pocket[0]), pocket[1]
    examples = fopru.pocket.sample("reading", n=9, seed=2)
    before = evaluate(model, processor, examples, (), []).set_index("id")
    end = processor.tokenizer.eos_token_id
    model.generation_config.suppress_tokens = [end]
    after = evaluate(model, processor, examples, (), []).set_index("id")
    right = before.exact.astype(bool)
    assert right.mean() > 0.8
    assert not after.exact.any() and not after.formed.any()
    assert after.begins[right].all() and after.choice.equals(before.choice)
    np.testing.assert_allclose(after.margin, before.margin, atol=1e-4)
    assert (before.loglik_open >= before.loglik).all()


def test_log_likelihoods_with_and_without_the_end(pocket):
    model, processor = pocket
    (e,) = fopru.pocket.sample("attributes", n=1, seed=5)
    row = evaluate(model, processor, [e], (), []).iloc[0]
    text = prompts(processor, [e])
    prompt, ids = inputs_of(processor, [e], text), answer_ids(processor, text[0], e.answer)[0]
    whole = torch.cat([prompt["input_ids"], torch.tensor([ids])], 1)
    mask = torch.ones_like(whole)
    with torch.no_grad():
        called = {**prompt, "input_ids": whole, "attention_mask": mask}
        log = model(**called).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
    each = log.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert row.loglik == pytest.approx(each.sum().item(), abs=1e-4)
    assert row.loglik_open == pytest.approx(each[:-1].sum().item(), abs=1e-4)


@pytest.mark.parametrize(
    "said, right, expected",
    [
        ("84 lamp 48", ("84",), True),
        ("84", ("84",), True),
        ("847", ("84",), False),
        ("blue 9", ("blue",), True),
        ("bluebird", ("blue",), False),
        ("no, yes", ("yes", "no"), True),
        ("", ("yes",), False),
        ("top left", ("top left", "top"), True),
    ],
)
def test_beginning_with_an_answer_ends_where_a_word_ends(said, right, expected):
    assert begins(said, right) is expected


def test_every_question_of_the_benchmark_has_its_legal_answers():
    for e in fopru.pocket.benchmark("test"):
        assert set(e.right) & set(legal_answers(e))
    assert legal("reading", "sign")[:2] == ("10", "11") and len(legal("charts", "value")) == 90
    assert legal("diagrams", "target") is None


def test_of_a_vocabulary_only_what_may_follow_is_held(pocket):
    _, processor = pocket
    (e,) = fopru.pocket.sample("reading", n=1)
    choices = Choices(processor, prompts(processor, [e])[0], e)
    last = torch.randn(1, 100_000).log_softmax(-1)
    known = Known([choices], last)
    first = {tokens[0] for tokens in choices.tokens}
    assert known.after == [{(): {token: last[0, token].item() for token in first}}]


def test_without_choices_nothing_is_guessed():
    examples = [
        Example(f"q{i}", "t", tiny.image(seed=1), f"w{i} w9", "w7", choices=choices)
        for i, choices in enumerate([None, ("w7", "w8"), ("w7",)])
    ]
    table = evaluate(tiny.model(), tiny.processor(), examples, (), [], max_new_tokens=2)
    assert table.choice.isna().tolist() == [True, False, True]
    assert table.margin.isna().tolist() == [True, False, True]
    assert table.formed.isna().tolist() == [True, False, False]
    assert not math.isnan(table.loglik_open[0])


@pytest.mark.parametrize(
    "choices, reason",
    [
        ((), r"has choices=\(\)"),
        (("w7", "w7"), "names the choice 'w7' twice"),
        (("w8", "w9"), "has the answer 'w7', which is none of its choices: w8, w9"),
    ],
)
def test_choices_that_cannot_be_read_are_refused(choices, reason):
    example = Example("q", "t", tiny.image(), "w1", "w7", choices=choices)
    model, processor = tiny.model(), tiny.processor()
    with pytest.raises(ValueError, match=reason):
        evaluate(model, processor, [replace(example, id="r", choices=None), example], (), [])
