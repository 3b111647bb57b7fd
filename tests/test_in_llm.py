"""FastV, PyramidDrop and SparseVLM against full-length runs with the dropped columns masked out."""

from functools import partial
from itertools import pairwise

import pytest
import tiny
import torch
import zoo
from transformers import Gemma2Config, LlavaForConditionalGeneration

import fopru
from fopru.methods import FastV, PyramidDrop, SparseVLM

TEXTS = ["USER: <image> w1 w2 w3 ASSISTANT:", "w7 USER: <image> w4 w5 w6 w8 w9 ASSISTANT:"]
METHODS = [FastV, PyramidDrop, SparseVLM]
SELECTING = [FastV, PyramidDrop, partial(SparseVLM, recycle=False)]
"""Those that make no new tokens, which no mask can."""


def model(attention="sdpa"):
    """Five layers, so that PyramidDrop has its three steps."""
    torch.manual_seed(0)
    config = tiny.configs("llava")
    config.text_config.num_hidden_layers = 5
    net = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.2 / parameter.shape[-1] ** 0.5)
    net.set_attn_implementation(attention)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    net.generation_config.suppress_tokens = [tiny.IMAGE_TOKEN_ID]
    return net.eval()


def batch(texts=TEXTS, padding_side="left"):
    images = [tiny.image(seed=i) for i in range(len(texts))]
    return tiny.inputs("llava", images, texts, padding_side)


@torch.no_grad()
def masked(net, inputs, allowed, positions):
    """Last logits of one prompt when layer i lets its tokens attend to columns `allowed[i]` only.

    An eager decoder written here from the model's own modules, layer by layer, at full length.
    """
    core = net.model
    ids = inputs["input_ids"]
    features = torch.cat(
        list(core.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output)
    )
    hidden = net.get_input_embeddings()(ids).clone()
    hidden[ids == tiny.IMAGE_TOKEN_ID] = features
    decoder = core.language_model
    length = ids.shape[1]
    for layer, columns, places in zip(decoder.layers, allowed, positions, strict=True):
        waves = decoder.rotary_emb(hidden, position_ids=places[None])
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        mask[:, ~columns] = torch.finfo(torch.float32).min
        mask.fill_diagonal_(0)  # dropped tokens see something: their rows are not read
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=waves)
    return net.lm_head(decoder.norm(hidden))[0, -1]


def columns(run, row, net, length):
    """(layers, L) bool: what each layer saw of the prompt."""
    seen = torch.zeros(len(run.layers), length, dtype=torch.bool)
    for flags, layer in zip(seen, run.layers, strict=True):
        flags[layer.index[row][~layer.dead[row]]] = True
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@pytest.mark.parametrize("method", SELECTING)
def test_logits_are_those_of_a_masked_full_length_run(method, positions, attention):
    net, inputs = model(attention), batch(TEXTS[:1])
    length = inputs["input_ids"].shape[1]
    with method(0.3, positions=positions)(net) as run, torch.no_grad():
        logits = net(**inputs).logits[0, -1]
    allowed = columns(run, 0, net, length)
    places = []
    for seen in allowed:
        new = (seen.cumsum(0) - 1).clamp(min=0)
        places.append(new if positions == "reindex" else torch.arange(length))
    eager = model("eager")
    torch.testing.assert_close(logits, masked(eager, inputs, allowed, places), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_batches_with_padding_equal_their_members(method, padding_side):
    net = model()
    pruner = method(0.25)
    together = batch(padding_side=padding_side)
    with pruner(net) as run, torch.no_grad():
        logits = net(**together).logits
        counts = run.visual_counts
        for row, text in enumerate(TEXTS):
            alone = tiny.inputs("llava", [tiny.image(seed=row)], text)
            expected = net(**alone).logits[0, -1]
            assert [c[0] for c in run.visual_counts] == [c[row] for c in counts]
            end = -1 if padding_side == "left" else kept_length(counts, row, together) - 1
            torch.testing.assert_close(logits[row, end], expected, atol=1e-4, rtol=1e-4)


def kept_length(counts, row, inputs):
    """Tokens of a row after the last layer: its text, and the visual tokens that were left."""
    ids, mask = inputs["input_ids"][row], inputs["attention_mask"][row].bool()
    return int((mask & (ids != tiny.IMAGE_TOKEN_ID)).sum()) + counts[-1][row]


@pytest.mark.parametrize("method", SELECTING)
def test_decoding_on_the_cache_equals_one_long_forward(method):
    """Each generated token is the first choice of a run in which the text so far was the prompt's
    end, as long as the same visual tokens stay: checked with the masked run."""
    net, inputs = model(), batch(TEXTS[:1])
    length = inputs["input_ids"].shape[1]
    with method(0.3, positions="preserve")(net) as run:
        out = net.generate(**inputs, max_new_tokens=4, do_sample=False)
    allowed = columns(run, 0, net, length)
    eager = model("eager")
    for step in range(4):
        prompt = {**inputs, "input_ids": out[:, : length + step]}
        seen = torch.cat([allowed, torch.ones(len(allowed), step, dtype=torch.bool)], 1)
        places = [torch.arange(length + step)] * len(seen)
        logits = masked(eager, prompt, seen, places)
        logits[tiny.IMAGE_TOKEN_ID] = -torch.inf
        assert logits.argmax() == out[0, length + step]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_in_batches_equals_generation_alone(method, options):
    net = model()
    with method(0.25)(net):
        together = net.generate(**batch(), max_new_tokens=5, do_sample=False, **options)
        for row, text in enumerate(TEXTS):
            alone = tiny.inputs("llava", [tiny.image(seed=row)], text)
            single = net.generate(**alone, max_new_tokens=5, do_sample=False, **options)
            assert torch.equal(single[0, -5:], together[row, -5:])


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_changes_nothing_and_nothing_is_left_behind(method):
    net, inputs = model(), batch()
    before = net.model.language_model.config._attn_implementation
    plain = net.generate(**inputs, max_new_tokens=5, do_sample=False)
    with method(1.0)(net) as run:
        assert torch.equal(net.generate(**inputs, max_new_tokens=5, do_sample=False), plain)
        assert run.layer_weighted == [64, 64]
    with pytest.raises(RuntimeError, match="stop"), method(0.5)(net):
        raise RuntimeError("stop")
    assert net.model.language_model.config._attn_implementation == before
    assert not net._forward_pre_hooks
    assert not any(layer._forward_pre_hooks for layer in net.model.language_model.layers)
    assert torch.equal(net.generate(**inputs, max_new_tokens=5, do_sample=False), plain)


def test_fastv_keeps_what_the_last_token_looks_at_in_the_layer_before():
    net, inputs = model("eager"), batch(TEXTS[:1])
    with torch.no_grad():
        maps = net(**inputs, output_attentions=True).attentions
    visual = (inputs["input_ids"][0] == tiny.IMAGE_TOKEN_ID).nonzero().flatten()
    for k_layer in (1, 2, 3):
        row = maps[k_layer - 1][0, :, -1].mean(0)[visual]
        expected = visual[row.sort(descending=True, stable=True).indices[:16]].sort().values
        with FastV(0.25, k_layer=k_layer)(net) as run, torch.no_grad():
            net(**inputs)
        last = run.layers[-1]
        assert torch.equal(last.index[0][last.visual[0]], expected)
        assert run.visual_counts == [[64]] * k_layer + [[16]] * (5 - k_layer)
        assert run.layer_weighted == [(64 * k_layer + 16 * (5 - k_layer)) / 5]


def test_scores_are_capped_where_the_model_caps_its_logits():
    """PaliGemma 2, whose language model is Gemma 2."""
    inputs = zoo.inputs("paligemma", [tiny.image(60, 44)], "<image> w1 w2 w3")
    config = zoo.config("paligemma")
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    same += ("num_key_value_heads", "vocab_size", "pad_token_id", "head_dim")
    text = {name: getattr(config.text_config, name) for name in same}
    config.text_config = Gemma2Config(
        **text, attn_logit_softcapping=0.5, query_pre_attn_scalar=text["head_dim"]
    )
    net = zoo.built(config, "eager")
    with torch.no_grad(), FastV(0.25)(net) as run:
        net(**inputs)
    with torch.no_grad():
        attention = net(**inputs, output_attentions=True).attentions[1]
    row = attention[0, :, -1].mean(0)[inputs["input_ids"][0] == zoo.IMAGE_TOKEN_ID]
    expected = row.sort(descending=True, stable=True).indices[:16].sort().values
    assert torch.equal(run.kept[0], expected)


def test_pyramiddrop_takes_the_same_share_three_times():
    net, inputs = model(), batch(TEXTS[:1])
    with PyramidDrop(0.125)(net) as run, torch.no_grad():
        net(**inputs)
    assert run.visual_counts == [[64], [32], [16], [8], [8]]
    kept = [set(s.index[0].tolist()) for s in run.layers]
    assert all(after <= before for before, after in pairwise(kept))


def test_text_alone_passes_through():
    net = model()
    ids = torch.tensor([[2, 9, 10, 11]])
    plain = net.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    with FastV(0.25)(net) as run:
        assert torch.equal(net.generate(input_ids=ids, max_new_tokens=4, do_sample=False), plain)
        assert run.layers == []


def test_what_is_refused():
    net, inputs = model(), batch(TEXTS[:1])
    for method in METHODS:
        with pytest.raises(ValueError, match=f"'{method.name}' drops tokens inside .* use `with"):
            method(0.5).prune(net, inputs)
        with pytest.raises(ValueError, match="tokens=5: methods inside the language model take"):
            method(tokens=5)
    with (
        pytest.raises(ValueError, match="k_layer=5: must be below the language model's 5 layers"),
        FastV(0.5, k_layer=5)(net),
    ):
        pass
    with pytest.raises(ValueError, match="k_layer=0: must be an integer of at least 1"):
        FastV(0.5, k_layer=0)
    with (
        pytest.raises(ValueError, match="at least 4 layers; this model has 3"),
        PyramidDrop(0.5)(tiny.model()),
    ):
        pass
    with pytest.raises(ValueError, match="labels were given"), FastV(0.5)(net):
        net(**inputs, labels=inputs["input_ids"])
    busy = pytest.raises(RuntimeError, match="another pruner is at work")
    with FastV(0.5)(net), busy, fopru.FoPru(0.5)(net):
        pass
