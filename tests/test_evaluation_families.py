"""`evaluate` on every family: several questions on a picture are each question by itself."""

from dataclasses import replace
from functools import cache

import folders
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import zoo

import fopru
from fopru.applying import cache_name
from fopru.evaluation import Example, answer, controls, evaluate, runner
from fopru.evaluation.asking import answer_ids, inputs_of, prompts
from fopru.evaluation.batch import Batch
from fopru.evaluation.settings import settings
from fopru.families import Family
from fopru.methods import FastV

METHODS = {
    "full": fopru.Random(1.0),
    "fopru": fopru.FoPru(0.3),
    "fopru, ids kept": fopru.FoPru(0.3, positions="preserve"),
    "fopru-mass": fopru.FoPru(0.3, weights="mass"),
    "tome": fopru.METHODS["tome"](0.3),
    "cdpruner": fopru.METHODS["cdpruner"](0.3),
    "fastv": FastV(0.3),
    "pyramiddrop": fopru.METHODS["pyramiddrop"](0.3),
}
"""All kinds: before the language model, weighted, merging, reading the question, inside."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    made = {}

    def of(family):
        folders.skip_without(family)
        if family not in made:
            folder = tmp_path_factory.mktemp(family.replace("/", "_"))
            made[family] = fopru.load(folders.save(family, folder))
        return made[family]

    return of


def examples():
    """Two pictures of other shapes, two questions on each, of unequal lengths all."""
    pictures = [tiny.image(60, 40, 0), tiny.image(40, 64, 1)]
    return [
        Example(
            f"q{i}",
            "t",
            pictures[i // 2],
            " ".join(f"w{i + j}" for j in range(1 + i)),
            ("w20", "w21 w7")[i % 2],
            evidence=((0, 0, 30, 20),),
            scene={"image_id": str(i // 2)},
        )
        for i in range(4)
    ]


def by_hand(model, processor, pruner, e):
    """Inside `with pruner(model)`, a token at a time: the log-likelihood of the right answer, and
    how many visual tokens were kept."""
    text = prompts(processor, [e])
    asked = dict(inputs_of(processor, [e], text))
    total = 0.0
    with pruner(model) as session, torch.no_grad():
        for token in answer_ids(processor, text[0], e.answer)[0]:
            out = model(**asked, use_cache=True)
            total += out.logits[0, -1].double().log_softmax(-1)[token].item()
            asked = {
                "input_ids": torch.tensor([[token]]),
                cache_name(model): out.past_key_values,
            }
        return total, len(session.kept[0])


@pytest.fixture(scope="module")
def tables(loaded):
    """Of a family: the rows of all questions asked together, and of each asked by itself."""

    @cache
    def of(family):
        told = {name: p for name, p in METHODS.items() if not zoo.undefined(p.name, family)}
        del told["full"]  # is in every table
        asked = [examples(), *([e] for e in examples())]
        return [evaluate(*loaded(family), some, told, (0.3,), max_new_tokens=3) for some in asked]

    return of


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_questions_on_one_picture_are_each_by_itself(family, method, loaded, tables):
    model, processor = loaded(family)
    pruner, asked = METHODS[method], examples()
    if reason := zoo.undefined(pruner.name, family):
        with pytest.raises(fopru.UnsupportedModelError, match=reason):
            evaluate(model, processor, asked, {method: pruner}, (0.3,), max_new_tokens=3)
        return
    found, *singly = tables(family)
    rows = found[found.method == method]
    with pruner(model):
        said = list(answer(model, processor, asked, batch_size=1, max_new_tokens=3))
    assert rows.prediction.tolist() == said
    expected = [by_hand(model, processor, pruner, e) for e in asked]
    assert rows.kept.tolist() == [kept for _, kept in expected]
    np.testing.assert_allclose(rows.loglik, [loglik for loglik, _ in expected], atol=1e-4)
    for row, table in zip(rows.itertuples(), singly, strict=True):
        (alone,) = table[table.method == method].itertuples()
        assert (row.prediction, row.kept, row.found) == (alone.prediction, alone.kept, alone.found)
        assert row.loglik == pytest.approx(alone.loglik, abs=1e-4)
        assert row.kl == pytest.approx(alone.kl, abs=1e-4)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_number_of_tokens_is_that_of_each_picture(family, loaded):
    model, processor = loaded(family)
    pruners = ["cls", "cdpruner", "tome"][: 2 if family.startswith("qwen3_vl") else 3]
    found = evaluate(model, processor, examples(), pruners, tokens=[8, 12], max_new_tokens=1)
    pictures = {}  # of each question: its tiles, where each is a picture
    for e in examples():
        asked = inputs_of(processor, [e])
        pictures[e.id] = len(Family.of(model).grids(asked))
    rows = found[found.method != "full"]
    assert len(rows) == 4 * 2 * len(pruners) and rows.error.isna().all()
    assert rows.budget.tolist() == [8, 12] * len(pruners) * 4
    assert (rows.kept == rows.budget * rows.id.map(pictures)).all()
    read = rows.attention[rows.method == "cls"].unique()
    assert read == ["cls" if family in zoo.CLS else "received"]
    full = found[found.method == "full"]
    for budget, shares in rows.groupby("budget").retention.unique().items():
        mean = (budget * full.id.map(pictures) / full.tokens).mean()
        assert shares == pytest.approx([mean], abs=1e-6)  # one for all questions


def test_a_picture_with_too_few_tokens_is_a_row_with_its_reason(loaded, tmp_path, monkeypatch):
    """On dynamic resolution: the other pictures are asked all the same, and nothing twice."""
    model, processor = loaded("qwen2_vl")
    small, large = examples()[0], replace(examples()[2], image=tiny.image(64, 64, 1))
    small = replace(small, image=tiny.image(16, 32, 0))
    given = {"methods": ["fopru", "random"], "tokens": [12], "seeds": [0], "max_new_tokens": 2}
    out = tmp_path / "a.sqlite"
    found = evaluate(model, processor, [small, large], out=out, **given)
    failed = found[found.error.notna()]
    assert failed.method.tolist() == ["fopru", "random"] and set(failed.id) == {small.id}
    reason = r"tokens=12: a picture of 8 visual tokens in 1 view\(s\) keeps 1 to 8 of them\."
    assert failed.error.str.fullmatch(reason).all()
    alone = evaluate(model, processor, [large], **given)
    rest = found[found.id == large.id].reset_index(drop=True)
    assert rest.error.isna().all() and alone.error.isna().all()
    rest, alone = (table.drop(columns="error") for table in (rest, alone))
    pd.testing.assert_frame_equal(rest, alone, check_dtype=False, atol=1e-4)
    assert rest.retention[1:].tolist() == pytest.approx([12 / rest.tokens[0]] * 2, abs=1e-6)
    monkeypatch.setattr(runner, "Batch", None)
    again = evaluate(model, processor, [small, large], out=out, **given)
    pd.testing.assert_frame_equal(again, found, check_dtype=False)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_pictures_share_their_part_of_the_prompt(family, loaded):
    """The language model gets each picture once for all questions on it, if all layers attend."""
    model, processor = loaded(family)
    (cell,) = settings(["fopru"], [0.5])
    batch = Batch(model, processor, examples(), [cell])
    seen = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(bool(kwargs.get("mm_encoder_outputs"))),
        with_kwargs=True,
    )
    with torch.no_grad():
        list(batch.rows(cell, 1))
    handle.remove()
    if family in zoo.LINEAR or family == "paligemma":  # padding amid the tokens would be read
        assert batch.prompts.prefix is None
        return
    assert batch.prompts.prefix is not None
    assert batch.prompts.prefix["input_ids"].shape[0] == 2 and sum(seen) == 2  # once for "full"


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_controls_in_every_family(family, loaded):
    model, processor = loaded(family)
    asked, blind = examples(), ("none", "grey", "swapped")
    if family == "paligemma":
        blind = blind[1:]  # its processor takes no prompt without a picture
    methods = [
        *("oracle", "random", controls.Shuffled(fopru.FoPru()), controls.Later(FastV())),
        controls.Later(fopru.METHODS["cdpruner"]()),
        controls.Shuffled(fopru.FoPru(weights="mass")),
    ]
    found = evaluate(
        model,
        processor,
        asked,
        methods,
        (0.3,),
        seeds=(0,),
        blind=blind,
        max_new_tokens=1,
    )
    assert np.isfinite(found.loglik).all() and found.error.isna().all()
    assert len(found) == 4 * (1 + len(methods) + len(blind))
    by = {name: part.reset_index(drop=True) for name, part in found.groupby("method")}
    assert (by["oracle"].evidence > 0).all()
    assert (by["oracle"].found >= by["random"].found).all()
    assert "none" not in blind or (by["none"].kept == 0).all()
    for e in asked[::2]:  # what else is asked changes nothing
        shuffled = evaluate(model, processor, [e], methods[2:3], (0.3,), max_new_tokens=1)
        assert shuffled.loglik[1] == pytest.approx(
            by["fopru-shuffled"].set_index("id").loglik[e.id], abs=1e-4
        )
    logliks = {name: tuple(part.loglik.round(4)) for name, part in by.items()}
    assert len(set(logliks.values())) == len(logliks)  # each does something


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "llava"])
def test_shuffled_tokens_keep_their_positions_and_weights(family, loaded):
    """With original ids the order says nothing to a model that goes by ids alone, but for the
    causal mask: shuffling back gives the inputs of before."""
    model, processor = loaded(family)
    asked = inputs_of(processor, examples())
    pruner = fopru.FoPru(0.4, positions="preserve", weights="mass")
    with pruner(model) as session:
        plain = session.arguments(fopru.encode(model, asked, [pruner]))
    mixed = controls.shuffled(plain, seed=3)
    orders = [
        torch.randperm(len(f), generator=torch.Generator().manual_seed(3)) for f in plain.features
    ]
    visual = plain["input_ids"] == model.config.image_token_id
    for row, order in enumerate(orders):
        assert order.tolist() != sorted(order.tolist())
        for name in ("attention_mask", "position_ids"):
            one, other = plain[name], mixed[name]
            if one.dim() == 3:
                assert torch.equal(one[0], other[0])
                one, other = one[1:], other[1:]
            assert torch.equal(other[..., row, visual[row]], one[..., row, visual[row]][..., order])
            assert torch.equal(other[..., row, ~visual[row]], one[..., row, ~visual[row]])
        torch.testing.assert_close(mixed.features[row], plain.features[row][order])


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_smaller_pictures_only_where_a_patch_is_a_token(family, loaded):
    told = *loaded(family), examples(), ("smaller",), (0.5,)
    if family in ("llava", "llava/dinov2", "llava/pixtral", "paligemma"):
        assert np.isfinite(evaluate(*told, max_new_tokens=1).loglik).all()
        return
    with pytest.raises(fopru.UnsupportedModelError, match="'smaller' (takes|makes new)"):
        evaluate(*told, max_new_tokens=1)


@pytest.mark.parametrize("method", ["full", "fopru", "fopru-mass"])
def test_sequences_that_fill_a_window_are_asked_one_by_one(method, loaded):
    """Gemma 3's layers with a window forget the beginning: nothing is shared or taken back."""
    _, processor = loaded("gemma3")
    config = zoo.config("gemma3")
    config.text_config.sliding_window = 12
    model, asked = zoo.built(config), examples()
    pruner = METHODS[method]
    methods = {} if method == "full" else {method: pruner}
    found = evaluate(model, processor, asked, methods, (0.3,), max_new_tokens=3)
    rows = found[found.method == method]
    with pruner(model):
        said = list(answer(model, processor, asked, batch_size=1, max_new_tokens=3))
    assert rows.prediction.tolist() == said
    singly = [evaluate(model, processor, [e], methods, (0.3,), max_new_tokens=3) for e in asked]
    alone = [table[table.method == method].loglik.item() for table in singly]
    np.testing.assert_allclose(rows.loglik, alone, atol=1e-4)
    expected = [by_hand(model, processor, pruner, e)[0] for e in asked]
    np.testing.assert_allclose(rows.loglik, expected, atol=1e-4)
    wide = evaluate(*loaded("gemma3"), asked, methods, (0.3,), max_new_tokens=3)
    assert not np.allclose(wide[wide.method == method].loglik, rows.loglik, atol=1e-3)


def test_a_prompt_that_differs_before_the_picture_is_not_shared():
    """Where a template puts the question first, each prompt goes through the model by itself."""
    model, processor = tiny.model(), tiny.processor()
    processor.chat_template = (
        "{% for m in messages %}USER: {% for c in m.content | reverse %}"
        "{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}"
        "{% endfor %}ASSISTANT:"
    )
    asked = [replace(e, image=examples()[0].image) for e in examples()]
    found = evaluate(model, processor, asked, ["fopru"], (0.3,), max_new_tokens=2)
    rows = found[found.method == "fopru"]
    expected = [by_hand(model, processor, fopru.FoPru(0.3), e)[0] for e in asked]
    np.testing.assert_allclose(rows.loglik, expected, atol=1e-4)
