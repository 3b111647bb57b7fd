"""Language models in which most layers have linear attention: a state in place of keys and values.

No key of such a layer can be masked, so pruned runs are compared with runs without the tokens, put
together here from the model's own parts.
"""

import copy
from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
import zoo
from torch import nn

import fopru
from fopru import efficiency
from fopru.applying import cache_name, select_rows
from fopru.applying.layers import placed
from fopru.efficiency.measuring import kv_bytes

TEXTS = ["USER: <image> w1 w2 w3 ASSISTANT:", "w7 USER: <image> w4 <image> w6 w8 w9 ASSISTANT:"]
FASTV, PYRAMID = fopru.FastV(0.3), fopru.PyramidDrop(0.2)
MASS = fopru.FoPru(0.25, weights="mass")
NEAR = dict(atol=1e-3, rtol=1e-3)
"""As `zoo.near`; a wrong mask or position shows in the first decimal."""


def batch(family, padding_side="left"):
    sizes = [(60, 44), (44, 70), (40, 40)]
    images = [tiny.image(*size, seed=seed) for seed, size in enumerate(sizes)]
    return zoo.inputs(family, images, TEXTS, padding_side)


def places(model, inputs):
    """(4, B, L) position ids of the whole prompts."""
    found, _ = model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return torch.cat([found[:1], found])


def causal(length, logs=0):
    least = torch.finfo(torch.float32).min
    return (torch.full((length, length), least).triu(1) + logs)[None, None]


# Weights


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", zoo.LINEAR)
def test_weights_are_exact_where_layers_attend_and_nothing_elsewhere(family, padding_side):
    model, inputs = zoo.model(family), batch(family, padding_side)
    with MASS(model) as run, torch.no_grad():
        logits = model(**inputs).logits
    alive, where = run.last["attention_mask"].bool(), places(model, inputs)
    for row, kept in enumerate(run.kept):
        visual = inputs["input_ids"][row] == zoo.IMAGE_TOKEN_ID
        keep = inputs["attention_mask"][row].bool() & ~visual
        keep[visual.nonzero()[kept, 0]] = True
        logs = torch.zeros(int(keep.sum()))
        mass = torch.cat([image.mass for image in run.images if image.sample == row])
        logs[visual[keep]] = mass.float().log()
        masks = {"full_attention": causal(len(logs), logs), "linear_attention": None}
        want = reference.left_out(model, inputs, row, keep, where[:, row], masks)
        torch.testing.assert_close(logits[row, alive[row]], want, **NEAR)
        plain = reference.left_out(model, inputs, row, keep, where[:, row])
        assert (plain - want).abs().max() > 0.1


@pytest.mark.parametrize("family", zoo.LINEAR)
def test_a_static_cache_weighs_keys_and_multiplies_no_states(family):
    """Its masks are made before the forward: that of linear attention is multiplied in."""
    model, inputs = zoo.model(family), batch(family)
    told = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with MASS(model):
        expected = torch.stack(model.generate(**inputs, **told).logits)
        found = torch.stack(model.generate(**inputs, **told, cache_implementation="static").logits)
    torch.testing.assert_close(found, expected, **NEAR)


# Inside the language model


@torch.no_grad()
def layer_by_layer(model, inputs, run, row):
    """Last logits of one row when each layer gets the columns that it saw in the run and no other,
    what follows the prompt included; and the attention of the last token, layer by layer."""
    decoder, ids = model.model.language_model, inputs["input_ids"]
    features = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
    ).pooler_output
    hidden = model.get_input_embeddings()(ids)
    hidden[ids == zoo.IMAGE_TOKEN_ID] = torch.cat(list(features))
    where, before, maps = places(model, inputs)[1:, row], torch.arange(ids.shape[1]), []
    hidden, length = hidden[row], run.prompt.length
    for layer, seen in zip(decoder.layers, run.layers, strict=True):
        tail = torch.arange(length, ids.shape[1])
        columns = torch.cat([seen.index[row][~seen.dead[row]], tail])
        hidden = hidden[torch.isin(before, columns)]
        before = columns
        waves = decoder.rotary_emb(hidden[None], position_ids=where[:, None, columns])
        mask = None
        if hasattr(layer, "self_attn"):
            mask = causal(len(columns))
            normed = layer.input_layernorm(hidden[None])
            _, attention = layer.self_attn(normed, position_embeddings=waves, attention_mask=mask)
            maps.append(attention[0, :, -1].mean(0))
        else:
            maps.append(None)
        hidden = layer(hidden[None], attention_mask=mask, position_embeddings=waves)[0]
    return model.lm_head(decoder.norm(hidden))[-1], maps


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pruner", [FASTV, PYRAMID], ids=lambda p: p.name)
@pytest.mark.parametrize("family", zoo.LINEAR)
def test_later_layers_of_both_kinds_get_the_shorter_sequence(family, pruner, padding_side):
    model, inputs = zoo.model(family), batch(family, padding_side)
    with pruner(model) as run, torch.no_grad():
        logits = model(**inputs).logits
    eager = zoo.model(family, "eager")
    for row in range(2):
        want, maps = layer_by_layer(eager, inputs, run, row)
        alive = (~run.layers[-1].dead[row]).nonzero()
        torch.testing.assert_close(logits[row, alive[-1, 0]], want, **NEAR)
        if pruner is FASTV:  # its choice, by hand
            columns = run.layers[1].index[row][~run.layers[1].dead[row]]
            visual = inputs["input_ids"][row, columns] == zoo.IMAGE_TOKEN_ID
            best = maps[1][visual].sort(descending=True, stable=True).indices
            assert torch.equal(run.kept[row], best[: len(run.kept[row])].sort().values)


@pytest.mark.parametrize(
    "pruner, kinds, moved",
    [(FASTV, ["full", "linear"], [3]), (PYRAMID, ["linear", "full"], [3, 5, 7])],
    ids=["fastv", "pyramiddrop"],
)
def test_tokens_leave_where_stages_were_moved_to(pruner, kinds, moved):
    config = zoo.config("qwen3_5")
    config.text_config.layer_types = [f"{kind}_attention" for kind in kinds * 4]
    model, inputs = zoo.built(config), batch("qwen3_5")
    with pytest.warns(UserWarning, match="in place of"), pruner(model) as run, torch.no_grad():
        logits = model(**inputs).logits
    counts = [layer[0] for layer in run.visual_counts]
    assert [i for i in range(1, 8) if counts[i] < counts[i - 1]] == moved
    want, _ = layer_by_layer(zoo.built(config, "eager"), inputs, run, 1)
    torch.testing.assert_close(logits[1, -1], want, **NEAR)


@pytest.mark.parametrize("pruner", [FASTV, PYRAMID], ids=lambda p: p.name)
@pytest.mark.parametrize("family", zoo.LINEAR)
def test_steps_on_the_cache_equal_one_long_pass(family, pruner):
    model = zoo.model(family)
    inputs = zoo.inputs(family, [tiny.image(60, 44)], TEXTS[:1])
    told = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with pruner(model) as run:
        out = model.generate(**inputs, **told)
    eager, length = zoo.model(family, "eager"), inputs["input_ids"].shape[1]
    for step, found in enumerate(out.logits):
        longer = {**inputs, "input_ids": out.sequences[:, : length + step]}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        kinds = nn.functional.pad(inputs["mm_token_type_ids"], (0, step))
        want, _ = layer_by_layer(eager, {**longer, "mm_token_type_ids": kinds}, run, 0)
        torch.testing.assert_close(found[0], want, **NEAR)


def decoder(kinds):
    """A stack with layers that attend ("a") and layers with linear attention ("l")."""
    layer = {"a": SimpleNamespace(self_attn=None), "l": SimpleNamespace(linear_attn=None)}
    return SimpleNamespace(layers=[layer[kind] for kind in kinds])


@pytest.mark.parametrize(
    "layers, fastv, pyramid",
    [
        (24, [4], [7, 11, 19]),
        (32, [4], [7, 15, 23]),
        (40, [4], [11, 19, 31]),
        (64, [4], [15, 31, 47]),
    ],
)
def test_stages_keep_their_share_of_the_depth(layers, fastv, pyramid):
    """Qwen3.5 of 0.8B and 2B, 4B and 9B, 35B-A3B, 27B: every fourth layer attends."""
    stack = decoder("llla" * (layers // 4))
    for pruner, expected in ((FASTV, fastv), (PYRAMID, pyramid)):
        stages = placed(pruner.stages(layers), stack, pruner.before)
        assert list(stages) == expected
        assert list(stages.values()) == list(pruner.stages(layers).values())
        plain = placed(pruner.stages(layers), decoder("a" * layers), pruner.before)
        assert plain == pruner.stages(layers)  # nothing moves where all layers attend


def test_of_two_layers_equally_near_tokens_leave_at_the_later_one():
    stack = decoder("llla" * 8)
    assert list(placed({6: 0.5}, stack, before=True)) == [8]
    assert list(placed({31: 0.5}, stack, before=True)) == [28]  # 32 would be behind the last
    assert list(placed({1: 0.5}, stack, before=False)) == [7]  # layer 3 sees all tokens
    steps = fopru.METHODS["sparsevlm"](0.5).stages(24)  # 2, 5 and 12, of which two are next to 4
    assert list(placed(steps, decoder("llla" * 6), before=True)) == [4, 8, 12]


def test_a_stage_that_moved_is_told():
    model = efficiency.empty("qwen3.5-9b")
    with pytest.warns(UserWarning, match=r"'fastv': .* entering layer 4 of Qwen3.5 in place of 2,"):
        assert fopru.FastV(0.5).session(model).stages == {4: 0.5}
    with pytest.warns(UserWarning, match=r"layer 7, 15, 23 of Qwen3.5 in place of 8, 16, 24"):
        fopru.PyramidDrop(0.5).session(model)
    config = zoo.config("qwen3_5")
    config.text_config.layer_types = ["linear_attention"] * 6 + ["full_attention"] * 2
    short = type(zoo.model("qwen3_5"))(config)
    with pytest.raises(
        fopru.UnsupportedModelError, match="2 of the 8 layers .* stages at layers 2"
    ):
        fopru.PyramidDrop(0.5).session(short)


# The cache


@pytest.mark.parametrize("pruner", [MASS, FASTV, PYRAMID], ids=lambda p: p.name)
@pytest.mark.parametrize("family", zoo.LINEAR)
def test_rows_and_copies_of_a_cache_go_on_by_themselves(family, pruner):
    model, inputs = zoo.model(family), batch(family)
    rows, token = torch.tensor([1, 0, 1]), torch.tensor([[9], [10], [11]])
    mask = nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)

    def step(cache, rows, token):
        last = places(model, inputs).amax(-1, keepdim=True)[:, rows] + 1
        named = {cache_name(model): cache, "attention_mask": mask[rows], "position_ids": last}
        return model(input_ids=token, **named).logits[:, -1]

    with torch.no_grad(), pruner(model):
        cache = model(**inputs, use_cache=True).past_key_values
        copied = copy.deepcopy(cache)
        select_rows(copied, rows)
        found = step(copied, rows, token)
        for i, row in enumerate(rows.tolist()):
            alone = copy.deepcopy(cache)  # which the step before has left alone
            both = torch.tensor([0, 1])
            expected = step(alone, both, token[[i, i]])
            torch.testing.assert_close(found[i], expected[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", zoo.LINEAR)
def test_a_second_turn_goes_on_with_the_states(family):
    model = zoo.model(family)
    inputs = zoo.inputs(family, [tiny.image(60, 44)], TEXTS[:1])
    told = dict(max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with fopru.FoPru(0.3)(model) as run:
        first = model.generate(**inputs, **told)
        turn = torch.cat([first.sequences, torch.tensor([[12, 13, 14, 6]])], 1)
        second = model.generate(input_ids=turn, past_key_values=first.past_key_values, **told)
    grown = second.sequences.shape[1] - inputs["input_ids"].shape[1]
    longer = {
        **inputs,
        "input_ids": second.sequences,
        "attention_mask": torch.ones_like(second.sequences),
        "mm_token_type_ids": nn.functional.pad(inputs["mm_token_type_ids"], (0, grown)),
    }
    (want,) = reference.masked_logits(model, longer, run.last)
    torch.testing.assert_close(torch.cat(second.logits), want[-4:-1], **NEAR)


@pytest.mark.parametrize("family", zoo.LINEAR)
def test_bytes_of_a_cache_are_keys_values_and_states(family):
    """Four layers have keys and values for each token, four have states that do not grow."""
    model = zoo.model(family)
    inputs = zoo.inputs(family, [tiny.image(60, 44)], TEXTS[:1])
    text = model.config.text_config
    keys = 2 * text.num_key_value_heads * text.head_dim
    state = text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
    mixed = 2 * text.linear_num_key_heads * text.linear_key_head_dim
    mixed += text.linear_num_value_heads * text.linear_value_head_dim
    states = 4 * 4 * (state + text.linear_conv_kernel_dim * mixed)
    sizes = []
    for pruner in (fopru.Random(1.0), fopru.Random(0.25)):
        with pruner(model) as run, torch.no_grad():
            sizes.append(kv_bytes(model(**inputs, use_cache=True).past_key_values))
        assert sizes[-1] == 4 * 4 * keys * run.last["input_ids"].shape[1] + states
    table = fopru.measure(model, inputs, [fopru.Random(0.25)], 1, turns=1)
    assert table.groupby("method", sort=False).kv_bytes.first().tolist() == sizes
