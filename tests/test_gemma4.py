"""Gemma 4 beyond what holds for every family: its small models, and the one without a tower."""

import json
from dataclasses import replace

import folders
import pytest
import reference
import tiny
import torch
import torch.nn.functional as F
import transformers as hf
import zoo
from test_pruner import TEXTS, answers
from test_zoo import batch, pictures

import fopru
from fopru import efficiency
from fopru.efficiency import shapes
from fopru.efficiency.measuring import kv_bytes
from fopru.evaluation import Example

FEATURES = fopru.DivPrune(0.25)


def varied(**text):
    """The tiny Gemma 4 with other settings of its language model."""
    config = zoo.config("gemma4")
    settings = {**config.text_config.to_dict(), "global_head_dim": 24, **text}
    del settings["per_layer_config"]
    config = hf.Gemma4Config(
        **{**config.to_dict(), "text_config": settings, "vision_config": config.vision_config}
    )
    torch.manual_seed(0)
    net = hf.AutoModelForImageTextToText.from_config(config)
    tiny.shake(net)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    net.generation_config.suppress_tokens = [zoo.IMAGE_TOKEN_ID, zoo.VIDEO_TOKEN_ID]
    return net.eval()


def small():
    """As E2B and E4B are: an input per layer, keys and values that later layers share, and pictures
    that are read in one direction."""
    return varied(
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(tiny.WORDS),
        num_kv_shared_layers=3,
        use_bidirectional_attention=None,
        attention_k_eq_v=False,
    )


def alone(family):
    return [
        zoo.inputs(family, pictures()[:1], TEXTS[0]),
        zoo.inputs(family, pictures()[1:], TEXTS[1]),
    ]


def holds(model, family, pruner, side):
    """Nothing changes at retention 1, and below it the masked run says the same."""
    inputs = batch(family, side)
    if side == "left":
        expected = answers(model, inputs)
        with replace(pruner, retention=1.0)(model):
            assert torch.equal(answers(model, inputs), expected)
    pruned = replace(pruner, positions="preserve").prune(model, inputs)
    with torch.no_grad():
        logits = model(**pruned).logits
    for row, want in enumerate(reference.masked_logits(model, inputs, pruned)):
        found = logits[row, pruned["attention_mask"][row].bool()]
        assert (found - want).abs().max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_inputs_per_layer_and_shared_keys_go_with_their_tokens(side):
    holds(small(), "gemma4", fopru.FoPru(0.25), side)


def test_layers_that_share_keys_are_weighed_and_counted_once():
    model, (single, _) = small(), alone("gemma4")
    with torch.no_grad(), fopru.FoPru(0.25, weights="mass")(model):
        last = model(**single, logits_to_keep=3).logits
        torch.testing.assert_close(last, model(**single).logits[:, -3:], atol=1e-5, rtol=1e-5)
        words = single["input_ids"][:, -4:]  # no picture, no weights
        last = model(input_ids=words, logits_to_keep=3).logits
        torch.testing.assert_close(last, model(input_ids=words).logits[:, -3:])
        out = model(**single, use_cache=True)
    text, length = model.config.text_config, out.past_key_values.get_seq_length()
    own = text.layer_types[:-3]  # (sliding, sliding, full): 2 heads of 12, and of 24
    widths = sum(48 if kind == "full_attention" else 24 for kind in own)
    assert kv_bytes(out.past_key_values) == 2 * 4 * length * widths


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
def test_inside_the_small_models_tokens_cannot_leave(method):
    with pytest.raises(fopru.UnsupportedModelError, match="last 3 layers attend to keys.*input of"):
        fopru.METHODS[method](0.25)(small())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_steps_of_padded_rows_where_the_first_layer_without_a_window_has_lost_tokens(attention):
    """transformers makes the masks of a step for that layer."""
    model = zoo.model("gemma4", attention)
    with fopru.FastV(0.25)(model):
        together = answers(model, batch("gemma4"))
        rows = [answers(model, single) for single in alone("gemma4")]
    assert torch.equal(together, torch.cat(rows))


def test_prompts_longer_than_the_window():
    """The window counts the tokens that are left: a step sees what the shorter prompt would."""
    model, inputs = varied(sliding_window=16), batch("gemma4")
    expected = answers(model, inputs)
    with fopru.FoPru(1.0)(model):
        assert torch.equal(answers(model, inputs), expected)
    pruned = dict(fopru.FoPru(0.3).prune(model, alone("gemma4")[0]))
    assert pruned["input_ids"].shape[1] > 16
    new = answers(model, pruned)
    longer = {**pruned, "input_ids": torch.cat([pruned["input_ids"], new], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    longer["mm_token_type_ids"] = F.pad(pruned["mm_token_type_ids"], (0, new.shape[1]))
    with torch.no_grad():
        logits = model(**longer, use_cache=False).logits[0]
    logits[:, [zoo.IMAGE_TOKEN_ID, zoo.VIDEO_TOKEN_ID]] = -torch.inf
    assert torch.equal(logits[-new.shape[1] - 1 : -1].argmax(-1), new[0])


# Gemma 4 unified


def test_without_a_tower_features_choose():
    holds(zoo.model("gemma4_unified"), "gemma4_unified", FEATURES, "left")


def test_without_a_tower_attention_is_refused():
    model, inputs = zoo.model("gemma4_unified"), batch("gemma4_unified")
    with pytest.raises(fopru.UnsupportedModelError, match="no attention to score its tokens by"):
        fopru.FoPru(0.25).prune(model, inputs)


@pytest.mark.slow
def test_without_a_tower_right_padding():
    holds(zoo.model("gemma4_unified"), "gemma4_unified", FEATURES, "right")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("pruner", [FEATURES, fopru.DivPrune(0.25, weights="mass")])
def test_without_a_tower_batches_equal_singles(pruner, options):
    model = zoo.model("gemma4_unified")
    with pruner(model):
        together = answers(model, batch("gemma4_unified"), **options)
        rows = [answers(model, single, **options) for single in alone("gemma4_unified")]
    assert torch.equal(together, torch.cat(rows))


@pytest.mark.slow
def test_without_a_tower_what_the_projector_gets_and_videos():
    model, inputs = zoo.model("gemma4_unified"), batch("gemma4_unified")
    encoded = fopru.encode(model, inputs, [fopru.METHODS["mmtok"](0.25)])
    embedder = model.model.embed_vision.multimodal_embedder
    for image in encoded.images:
        with torch.no_grad():
            torch.testing.assert_close(embedder(image.vision), image.features)
    inputs = zoo.video("gemma4_unified")
    expected = answers(model, inputs)
    with fopru.DivPrune(1.0)(model):
        assert torch.equal(answers(model, inputs), expected)
    (clip,) = FEATURES.prune(model, inputs).images
    assert len(clip.grid.views) == 4
    assert clip.view[clip.kept].bincount().tolist() == FEATURES.budgets(clip.grid)


def test_without_a_tower_a_folder_loads_and_answers(tmp_path):
    """Its own image processor needs torchvision; Gemma 4's makes the same, a patch a token."""
    folders.skip_without("gemma4_unified")
    folder = folders.save("gemma4_unified", tmp_path)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | {"patch_size": 4, "pooling_kernel_size": 2}
    settings["image_processor_type"] = "Gemma4UnifiedImageProcessor"
    file.write_text(json.dumps(settings))
    model, processor = fopru.load(folder)
    found = processor(
        images=[[picture] for picture in pictures()[:2]],
        text=["<|image|> w1", "<|image|> w2"],
        return_tensors="pt",
    )
    by_hand = zoo.inputs("gemma4_unified", pictures()[:2], ["<image> w1", "<image> w2"])
    assert found.keys() == by_hand.keys()
    assert all(torch.equal(found[name], by_hand[name]) for name in by_hand)
    asked = [Example("q", "words", tiny.image(60, 40), "w1 w9", "w21")]
    table = fopru.evaluate(model, processor, asked, ["divprune"], [0.25], max_new_tokens=2)
    assert table.loglik.notna().all() and table.error.isna().all()


def test_a_shape_with_tied_weights_has_them_once(monkeypatch):
    monkeypatch.setattr(shapes, "config", lambda shape: zoo.config("gemma4_unified"))
    model = efficiency.build("gemma-4-12b")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not any(p.is_meta for p in model.parameters())
