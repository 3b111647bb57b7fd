"""Kept tokens with the weight of those they stand for: equal to copies of them."""

from copy import deepcopy
from dataclasses import replace

import pytest
import tiny
import torch
import zoo
from test_pruner import SIZES, TEXTS, answers

import fopru
from fopru.families import Family
from fopru.picking import owners
from fopru.pruner import Merged

MASS = fopru.FoPru(0.25, weights="mass")
SOME = ["llava", "llava_next", "llava_onevision", "qwen2_5_vl", "internvl", "gemma3"]


def pictures():
    return [tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES)]


def masses(features, kept):
    return owners(features, kept).bincount(minlength=len(kept))


def test_masses_by_hand():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        features = torch.randn(30, 4, generator=generator).round()  # with ties
        kept = torch.randperm(30, generator=generator)[:7].sort().values
        expected = [0] * 7
        for j in range(30):
            alike = [torch.cosine_similarity(features[j], features[i], dim=0) for i in kept]
            best = max(range(7), key=lambda i, a=alike: (round(a[i].item(), 5), -i))
            owner = kept.tolist().index(j) if j in kept else best
            expected[owner] += 1
        found = masses(features, kept)
        assert found.sum() == 30
        # rounding decides near-ties in either way: compare where there are none
        if len({tuple(f.tolist()) for f in features}) == 30:
            assert found.tolist() == expected


def test_equal_tokens_stand_for_themselves_and_the_first_for_the_rest():
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0]])
    assert masses(features, torch.tensor([1, 2, 3])).tolist() == [3, 1, 1]
    assert masses(features, torch.arange(5)).tolist() == [1] * 5


@torch.no_grad()
def copies(model, inputs, pruned, mass, extra):
    """Last logits of a prompt in which each kept token stands as often as it weighs, all copies at
    one position and seeing each other, then `extra` tokens one by one: (1 + len(extra), V)."""
    ids = torch.cat([pruned["input_ids"], extra], 1)[0]  # (L,)
    family = Family.of(model)
    times = torch.ones(len(ids), dtype=torch.int64)
    times[ids == family.image_token_id] = mass
    positions = pruned.get("position_ids")
    if positions is None:
        places = torch.arange(len(ids))[None]
    else:
        ahead = positions[..., -1:] + torch.arange(1, extra.shape[1] + 1)
        places = torch.cat([positions, ahead], -1)
    repeated = places.repeat_interleave(times, -1)  # (1, R), or (4, 1, R)
    order = torch.arange(len(ids)).repeat_interleave(times)
    mask = (order[None] <= order[:, None])[None, None]  # copies see each other, and what was before
    embeddings = model.get_input_embeddings()(ids[None])
    features = torch.cat(pruned.features)
    embeddings[0, ids == family.image_token_id] = features
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    if model.config.model_type == "gemma3":
        bias = {"full_attention": bias, "sliding_attention": bias}
    hidden = family.decoder(
        inputs_embeds=embeddings.repeat_interleave(times, 1),
        attention_mask=bias,
        position_ids=repeated[-3:] if repeated.dim() == 3 else repeated,
    ).last_hidden_state
    ends = times.cumsum(0) - 1
    return model.lm_head(hidden[0, ends[-1 - extra.shape[1] :]])


@pytest.mark.parametrize("positions", [None, "preserve"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [f for f in SOME if f not in ("gemma3",)])
def test_logits_are_those_of_as_many_copies(family, attention, positions):
    equal_to_copies(replace(MASS, positions=positions), family, attention)


@pytest.mark.parametrize("method", ["tome", "pool", "visionzip", "prumerge", "cluster-mean"])
def test_merged_tokens_weigh_what_went_into_them(method):
    equal_to_copies(fopru.METHODS[method](0.25, weights="mass"), "llava")


def equal_to_copies(pruner, family, attention="sdpa"):
    model = zoo.model(family, attention)
    inputs = zoo.inputs(family, pictures()[:1], TEXTS[:1])
    extra = torch.tensor([[9, 11, 13]])
    with pruner(model) as run, torch.no_grad():
        out = model(**inputs, use_cache=True)
        logits = [out.logits[0, -1]]
        mask = run.last["attention_mask"]
        places = run.last.get("position_ids")
        for i in range(extra.shape[1]):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            ahead = {} if places is None else {"position_ids": places[..., -1:] + i + 1}
            out = model(
                input_ids=extra[:, i : i + 1],
                attention_mask=mask,
                past_key_values=out.past_key_values,
                **ahead,
            )
            logits.append(out.logits[0, -1])
    mass = torch.cat([image.mass for image in run.last.images])
    assert mass.max() > 1
    if pruner.selects():
        assert mass.sum() == sum(image.n_full for image in run.last.images)
    expected = copies(model, inputs, run.last, mass, extra)
    torch.testing.assert_close(torch.stack(logits), expected, atol=1e-4, rtol=1e-4)
    unweighted = replace(pruner, weights="none").prune(model, inputs)
    with torch.no_grad():
        assert (model(**unweighted).logits[0, -1] - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", SOME)
def test_batches_and_beams_equal_singles(family):
    model, images = zoo.model(family), pictures()
    both = zoo.inputs(family, images, TEXTS)
    alone = [zoo.inputs(family, images[:1], TEXTS[0]), zoo.inputs(family, images[1:], TEXTS[1])]
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        with MASS(model):
            found = answers(model, both, **options)
            for row, single in enumerate(alone):
                assert torch.equal(found[row : row + 1], answers(model, single, **options))


@pytest.mark.parametrize("window", [8, 24])  # the prompt has 11 tokens, with the answer 35
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_weights_stay_with_their_tokens_when_a_window_slides(window, cache):
    net = zoo.model("gemma3")
    config = deepcopy(net.config)
    config.text_config.sliding_window = window
    model = type(net)(config).eval()
    model.load_state_dict(net.state_dict())
    inputs = zoo.inputs("gemma3", pictures()[:1], TEXTS[:1])
    told = dict(
        max_new_tokens=24, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    with MASS(model) as run:
        whole = model.generate(**inputs, use_cache=False, **told)  # all keys, each time
        found = model.generate(**inputs, cache_implementation=cache, **told)
    assert run.last["input_ids"].shape[1] == 11
    expected = torch.cat(whole.logits)
    torch.testing.assert_close(torch.cat(found.logits), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SOME)
def test_retention_one_and_prompts_without_pictures_are_untouched(family):
    model, inputs = zoo.model(family), zoo.inputs(family, pictures(), TEXTS)
    words = torch.tensor([[5, 9, 10, 11, 6]])
    said = model.generate(words, max_new_tokens=4, do_sample=False)
    expected = answers(model, inputs)
    before = Family.of(model).decoder.config._attn_implementation
    with fopru.FoPru(1.0, weights="mass")(model):
        assert Family.of(model).decoder.config._attn_implementation == before
        assert torch.equal(answers(model, inputs), expected)
    with MASS(model):
        answers(model, inputs)
        assert torch.equal(model.generate(words, max_new_tokens=4, do_sample=False), said)
    with pytest.raises(RuntimeError, match="mine"), MASS(model):
        raise RuntimeError("mine")
    assert Family.of(model).decoder.config._attn_implementation == before
    assert torch.equal(answers(model, inputs), expected)


def test_generation_in_another_thread_is_weighted_too():
    from threading import Thread

    model, inputs, found = tiny.model(), tiny.inputs(), []
    with MASS(model):
        expected = answers(model, inputs)
        thread = Thread(target=lambda: found.append(answers(model, inputs)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


# Bad input


def test_inputs_cannot_carry_weights():
    model, inputs = tiny.model(), tiny.inputs()
    with pytest.raises(ValueError, match=r"weights='mass'.*use `with pruner\(model\):`"):
        MASS.prune(model, inputs)
    with pytest.raises(ValueError, match=r"weights='mass'.*use `with pruner\(model\):`"):
        MASS.compact(fopru.encode(model, inputs, [MASS]))


def test_new_tokens_that_nothing_went_into_have_no_weight():
    class Empty(fopru.Pruner):
        def merge(self, image, k):
            owner = torch.zeros(image.grid.n_tokens, dtype=torch.int64)
            return Merged(torch.arange(k), image.features[:k], owner)

    model, inputs = tiny.model(), tiny.inputs()
    Empty(0.25).prune(model, inputs)
    weighted = Empty(0.25, weights="mass")
    with (
        weighted(model),
        pytest.raises(ValueError, match="Empty.merge made .* no old one went into"),
    ):
        model(**inputs)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_methods_inside_the_llm_have_no_weights(name):
    with pytest.raises(ValueError, match=r"weights='mass': \w+ drops tokens inside the language"):
        fopru.METHODS[name](0.5, weights="mass")


def test_unknown_weights_and_kernels_without_a_bias():
    with pytest.raises(ValueError, match="weights='masses': must be one of 'none', 'mass'"):
        fopru.FoPru(weights="masses")
    model = tiny.model()
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no bias.*'sdpa' or 'eager'"):
        MASS(model).__enter__()
    model.set_attn_implementation("sdpa")
    with MASS(model):
        answers(model, tiny.inputs())
