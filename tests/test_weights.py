"""Kept tokens with the weight of those they stand for: equal to copies of them."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import tiny
import torch
import zoo
from test_pruner import SIZES, TEXTS, answers
from transformers import DynamicCache

import fopru
from fopru.applying.conversation import cache_name, mark
from fopru.applying.layers import in_place_of_one_rotary
from fopru.choosing import pruned_image
from fopru.encoding import VISION
from fopru.families import Family
from fopru.in_llm import InLLMPruner
from fopru.picking import owners
from fopru.pruned import Merged
from fopru.versions import CHUNKS, INSTALLED

MASS = fopru.FoPru(0.25, weights="mass")
RESTORE = fopru.FoPru(0.25, weights="restore")
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


MERGING = [
    name
    for name, kind in fopru.METHODS.items()
    if not issubclass(kind, InLLMPruner) and not kind.selects()
]


@pytest.mark.parametrize("method", MERGING)
def test_merged_tokens_weigh_what_went_into_them(method):
    equal_to_copies(fopru.METHODS[method](0.25, weights="mass"), "llava")


@pytest.mark.parametrize("method", MERGING)
def test_masses_sum_to_the_tokens_that_went_in(method):
    """A token went into a merged one if that one changes with it, be it by features or before the
    projector; where it went into several, it counts once, in one of them."""
    model, inputs = zoo.model("llava"), zoo.inputs("llava", pictures()[:1], TEXTS[:1])
    pruner = fopru.METHODS[method](0.25, weights="mass")
    (image,) = fopru.encode(model, inputs, [pruner]).images
    mixed = "vision" in pruner.needs
    source = (image.vision if mixed else image.features).detach().requires_grad_()
    learned = {**image.learned, VISION: source} if mixed else image.learned
    features = model.model.multi_modal_projector(source) if mixed else source
    image = replace(image, learned=learned, features=features)
    image = replace(image, significance=pruner.score(image))
    (k,) = pruner.budgets(image.grid)
    merged = pruner.merge(image, k)
    went = torch.stack(
        [
            torch.autograd.grad(token.sum(), source, retain_graph=True)[0].abs().sum(1) > 0
            for token in merged.features
        ]
    )  # (k, N)
    pruned, _ = pruned_image(pruner, replace(image, significance=None))
    assert pruned.mass.min() >= 1
    assert pruned.mass.sum() == went.any(0).sum()
    for place, owner in enumerate(pruned.owner.tolist()):
        assert went[owner, place] if owner >= 0 else not went[:, place].any()


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


# RESTORE


def waves(model):
    """The rotary frequencies, and for each the row of M-RoPE's positions that it turns by."""
    config = Family.of(model).decoder.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    told = config.rope_parameters
    n = int(size * told.get("partial_rotary_factor", 1)) // 2
    thetas = [told["rope_theta"] ** (-j / n) for j in range(n)]
    rows = [row for row, times in enumerate(told.get("mrope_section", [n])) for _ in range(times)]
    return thetas, rows


def calibrated(model, row, mass, extra):
    """Logits of one pruned prompt and `extra` tokens after it, all in one eager pass of a model in
    float64 with the bias of RESTORE in its mask: (1 + n, V)."""
    family = Family.of(model)
    ids = torch.cat([row["input_ids"], extra])  # (L,)
    visual = ids == family.image_token_id
    positions = row["position_ids"]  # (L - n,), or (3, L - n)
    ahead = positions.max() + 1 + torch.arange(len(extra))
    positions = torch.cat([positions, ahead.expand(*positions.shape[:-1], -1)], -1)
    axes, (thetas, rows) = positions.reshape(-1, len(ids)).tolist(), waves(model)
    times, prompt = iter(mass.tolist()), len(ids) - len(extra)
    bias = torch.full((len(ids), len(ids)), torch.finfo(torch.float64).min, dtype=torch.float64)
    for n in range(len(ids)):
        s = next(times) if visual[n] else 1
        for m in range(n, len(ids)):
            near = [math.cos((axes[i][m] - axes[i][n]) * t) for t, i in zip(thetas, rows, strict=1)]
            bias[m, n] = math.log(s * (2 - sum(near) / len(near))) if n < prompt else 0
    embeddings = model.get_input_embeddings()(ids)
    embeddings[visual] = row["features"]
    hidden = family.decoder(
        inputs_embeds=embeddings[None],
        attention_mask=bias[None, None],
        position_ids=positions.unsqueeze(-2),
    ).last_hidden_state
    return model.lm_head(hidden[0, -1 - len(extra) :])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("family", "positions", "method"),
    [
        ("llava", "reindex", "divprune"),
        ("llava", "preserve", "divprune"),
        ("llava", "preserve", "tome"),
        ("qwen2_5_vl", "preserve", "divprune"),
    ],
)
@torch.no_grad()
def test_restore_by_hand(family, positions, method, attention):
    """A padded batch, and three steps on its cache.

    transformers' eager attention takes its softmax in float32, and in a model in float64 gives NaN
    wherever a row is padded on the left.
    """
    exact = attention == "sdpa"
    model = zoo.model(family, attention, torch.float64 if exact else torch.float32)
    inputs = zoo.inputs(family, pictures(), TEXTS)
    extra = torch.tensor([[9, 11, 13], [10, 12, 14]])
    pruner = fopru.METHODS[method](0.25, positions=positions, weights="restore")
    with pruner(model) as run:
        out = model(**inputs, use_cache=True)
        logits = [out.logits[:, -1]]
        for token in extra.T[:, :, None]:
            out = model(input_ids=token, past_key_values=out.past_key_values)
            logits.append(out.logits[:, -1])
    found = torch.stack(logits, 1)  # (B, 4, V)
    model.double().set_attn_implementation("eager")
    for i in range(2):
        there = run.last["attention_mask"][i] > 0
        images = [j for j, image in enumerate(run.images) if image.sample == i]
        places = run.last["position_ids"][..., i, there]
        if positions == "reindex":
            assert places.tolist() == list(range(int(there.sum())))
        row = {
            "input_ids": run.last["input_ids"][i, there],
            "position_ids": places[-3:] if places.dim() == 2 else places,
            "features": torch.cat([run.last.features[j] for j in images]).double(),
        }
        mass = torch.cat([run.images[j].mass for j in images])
        expected = calibrated(model, row, mass, extra[i])
        near = 1e-5 if exact else 1e-4
        torch.testing.assert_close(found[i].double(), expected, atol=near, rtol=near)


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen3_5"])
def test_distances_are_the_same_by_every_way_through_a_model(family):
    """Caches of three kinds, chunks, drafts, inputs that were made before, text in the cache."""
    model, inputs = zoo.model(family), zoo.inputs(family, pictures()[:1], TEXTS[0])
    told = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    ways = {"static": {"cache_implementation": "static"}, "none": {"use_cache": False}}
    if family == "llava":
        ways["model"] = {"assistant_model": model}
        ways["lookup"] = {"prompt_lookup_num_tokens": 3}
        ways["text"] = {cache_name(model): DynamicCache(config=Family.of(model).decoder.config)}
        if INSTALLED >= CHUNKS:
            ways["chunks"] = {"prefill_chunk_size": 7}
    if family == "qwen3_5":
        del ways["none"]  # its position ids have gaps, which are refused without a cache
    with RESTORE(model) as run, torch.no_grad():
        expected = torch.stack(model.generate(**inputs, **told).logits)
        for name, way in ways.items():
            if name == "text":
                model(input_ids=inputs["input_ids"][:, :1], **way)
            found = torch.stack(model.generate(**inputs, **told, **way).logits)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, msg=name)
        made = run.arguments(fopru.encode(model, inputs, [RESTORE]))
        found = torch.stack(model.generate(**made, **told).logits)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_of_which_nothing_is_pruned_is_left_alone_in_any_batch():
    """The formula is not 1 where each token stands for itself."""
    model, images = zoo.model("qwen2_5_vl"), pictures()[:2]
    texts = [TEXTS[0], TEXTS[0]]
    both = zoo.inputs("qwen2_5_vl", images, texts)
    least = min(grid.n_tokens for grid in Family.of(model).grids(both))
    with fopru.FoPru(tokens=least, weights="restore")(model), torch.no_grad():
        found = model(**both).logits[:, -1]
        alone = [model(**zoo.inputs("qwen2_5_vl", [i], TEXTS[0])).logits[0, -1] for i in images]
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        plain = model(**both).logits[:, -1]
    near = (found - plain).abs().amax(1) < 1e-4
    assert sorted(near.tolist()) == [False, True]


def test_a_mask_of_true_and_false_carries_weights_too():
    model, inputs = zoo.model("llava"), zoo.inputs("llava", pictures(), TEXTS)
    with MASS(model), torch.no_grad():
        expected = model(**inputs).logits
        found = model(**{**inputs, "attention_mask": inputs["attention_mask"].bool()}).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("family", "pruner"),
    [*((f, MASS) for f in SOME), *((f, RESTORE) for f in ("llava", "qwen2_5_vl", "paligemma"))],
)
def test_batches_and_beams_equal_singles(family, pruner):
    model, images = zoo.model(family), pictures()
    both = zoo.inputs(family, images, TEXTS)
    alone = [zoo.inputs(family, images[:1], TEXTS[0]), zoo.inputs(family, images[1:], TEXTS[1])]
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        with pruner(model):
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


@pytest.mark.parametrize(
    ("family", "weights"), [*((f, "mass") for f in SOME), ("llava", "restore")]
)
def test_retention_one_and_prompts_without_pictures_are_untouched(family, weights):
    model, inputs = zoo.model(family), zoo.inputs(family, pictures(), TEXTS)
    words = torch.tensor([[5, 9, 10, 11, 6]])
    said = model.generate(words, max_new_tokens=4, do_sample=False)
    expected = answers(model, inputs)
    before = Family.of(model).decoder.config._attn_implementation
    with fopru.FoPru(1.0, weights=weights)(model):
        assert Family.of(model).decoder.config._attn_implementation == before
        assert torch.equal(answers(model, inputs), expected)
    with replace(MASS, weights=weights)(model):
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
    with pytest.raises(ValueError, match=r"weights='restore'.*use `with pruner\(model\):`"):
        RESTORE.compact(fopru.encode(model, inputs, [RESTORE]))


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


@pytest.mark.parametrize("weights", ["mass", "restore"])
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_methods_inside_the_llm_have_no_weights(name, weights):
    said = rf"weights='{weights}': \w+ drops tokens inside the language"
    with pytest.raises(ValueError, match=said):
        fopru.METHODS[name](0.5, weights=weights)


@pytest.mark.parametrize(
    ("family", "what"),
    [
        ("gemma3", "a rotary embedding for each kind of layer"),
        ("gemma4", "a rotary embedding for each kind of layer"),
        ("aya_vision", "layers of several kinds, of which some may have no rotary embedding"),
    ],
)
def test_layers_that_do_not_share_a_rotary_embedding_have_no_distances(family, what):
    model = zoo.model(family)
    with (
        pytest.raises(fopru.UnsupportedModelError, match=f"weights='restore': .* has {what}; use"),
        RESTORE(model),
    ):
        pass
    with fopru.FoPru(1.0, weights="restore")(model):  # weighs nothing
        pass


def test_decoders_without_a_rotary_embedding_have_no_distances():
    model = tiny.model()
    decoder = Family.of(model).decoder
    assert in_place_of_one_rotary(decoder) is None
    decoder.config.no_rope_layers = [1, 1, 0]  # as in SmolLM3
    assert "layers of several kinds" in in_place_of_one_rotary(decoder)
    decoder.config.no_rope_layers = [1, 1, 1]
    decoder.rotary_emb.forward = lambda x, position_ids: position_ids * 1j  # as in Llama 4
    assert "does not give cosines and sines" in in_place_of_one_rotary(decoder)
    del decoder.rotary_emb
    with (
        pytest.raises(fopru.UnsupportedModelError, match="no rotary embedding that takes position"),
        RESTORE(model),
    ):
        pass


def test_weights_by_distance_need_the_position_ids_of_the_prompt():
    model, inputs = tiny.model(), tiny.inputs()
    with RESTORE(model) as run, torch.no_grad():
        out = model(**inputs)
        cache = out.past_key_values
        mask = torch.nn.functional.pad(run.last["attention_mask"], (0, 1), value=1)
        mark(cache, None)  # as of one that someone else has made
        with pytest.raises(ValueError, match="weights='restore': .* position_ids are not known"):
            model(input_ids=torch.tensor([[9]]), attention_mask=mask, past_key_values=cache)


def test_unknown_weights_and_kernels_without_a_bias():
    allowed = "must be one of 'none', 'mass', 'restore'"
    with pytest.raises(ValueError, match=f"weights='masses': {allowed}"):
        fopru.FoPru(weights="masses")
    model = tiny.model()
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    for pruner in (MASS, RESTORE):
        said = f"{pruner.weights}'.*'flash_attention_2' takes no bias.*'sdpa' or 'eager'"
        with pytest.raises(ValueError, match=said):
            pruner(model).__enter__()
    model.set_attn_implementation("sdpa")
    with MASS(model):
        answers(model, tiny.inputs())
