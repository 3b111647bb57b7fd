import threading

import pytest
import reference
import tiny
import torch
from transformers import ConvNextV2Config, LlavaConfig, LlavaForConditionalGeneration

import fopru
from fopru.encoding import Tap, encode
from fopru.families import Family

FAMILIES = ["llava", "llava_next"]


class Everything:
    """Asks for each axis and kind of score of the default block."""

    def taps(self, family):
        block = family.block(None)
        axes = ("received", "given", "cls")
        return {Tap(block, axis, kind) for axis in axes for kind in ("probabilities", "logits")}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_models_own_to_the_bit(family, attention):
    model, inputs = tiny.model(family, attention=attention), tiny.inputs(family)
    output = model.get_image_features(
        **{name: inputs[name] for name in Family.of(model).pixels}, return_dict=True
    )
    expected = output.pooler_output
    encoded = encode(model, inputs, [Everything()])
    assert [torch.equal(i.features, e) for i, e in zip(encoded.images, expected, strict=True)]
    assert not encoded.images[0].features.requires_grad


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_received_and_given_equal_an_eager_towers_attention(attention):
    model = tiny.model("llava", attention=attention)
    inputs = tiny.inputs(
        images=[tiny.image(seed=1), tiny.image(seed=2)], texts="USER: <image> <image> ASSISTANT:"
    )
    encoded = encode(model, inputs, [Everything()])
    maps = reference.eager_attention(model, inputs["pixel_values"], block=2)  # -2 of 4 blocks
    for i, image in enumerate(encoded.images):
        for axis, expected in {
            "received": reference.received(maps)[i],
            "given": reference.given(maps)[i],
            "cls": maps[i, :, 0, 1:].mean(0),
        }.items():
            assert (image.tap(axis).double() - expected).abs().max() < 1e-7, axis


def test_the_block_is_the_one_whose_output_the_model_uses():
    family = Family.of(tiny.model("llava"))
    for state, block in {-2: 2, -1: 3, 1: 0, 4: 3}.items():
        family.config.vision_feature_layer = state
        assert family.block(None) == block
    family.config.vision_feature_layer = [-3, 2]
    assert family.block(None) == 1
    assert family.block(-1) == 3
    family.config.vision_feature_layer = 0
    with pytest.raises(fopru.UnsupportedModelError, match="embeddings"):
        family.block(None)
    with pytest.raises(ValueError, match=r"layer=4: .* 4 blocks, so layer is in \[-4, 3\]"):
        family.block(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_towers(dtype):
    model = tiny.model("llava_next", dtype=dtype)
    (image,) = encode(model, tiny.inputs("llava_next"), [Everything()]).images
    assert image.features.dtype == dtype
    assert image.tap("received").dtype == torch.float32
    assert image.tap("received").isfinite().all()


def test_one_pass_serves_several_pruners_and_a_missing_tap_is_named(monkeypatch):
    model, inputs = tiny.model(), tiny.inputs()
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    first, second = fopru.FoPru(), fopru.FoPru(layer=0, scores="logits")
    encoded = encode(model, inputs, pruners=[first, second, fopru.Random()])
    assert len(calls) == 1
    for pruner in (first, second):
        assert pruner.compact(encoded).images[0].n_kept == 16
        assert torch.equal(
            pruner.compact(encoded).images[0].kept, pruner.prune(model, inputs).images[0].kept
        )
    with pytest.raises(ValueError, match="'received' probabilities of block 1: name the pruner"):
        fopru.FoPru(layer=1).compact(encoded)


def test_the_attention_implementation_comes_back_also_after_an_error():
    model, inputs = tiny.model(), tiny.inputs()
    tower = model.model.vision_tower
    seen = []
    handle = tower.register_forward_hook(
        lambda *_: seen.append(model.config.vision_config._attn_implementation)
    )
    encode(model, inputs, [fopru.FoPru()])
    handle.remove()
    assert seen == ["fopru_sdpa"]
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "sdpa"

    def fail(*_):
        raise RuntimeError("in the tower")

    handle = tower.encoder.layers[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the tower"):
        encode(model, inputs, [fopru.FoPru()])
    handle.remove()
    assert tower.config._attn_implementation == "sdpa"


def test_two_threads_get_what_one_after_the_other_gets():
    model = tiny.model()
    batches = [tiny.inputs(images=[tiny.image(seed=s)]) for s in range(8)]
    pruner = fopru.FoPru()
    alone = [pruner.prune(model, batch).images[0].significance for batch in batches]
    found = [None] * len(batches)

    def work(start):
        for _ in range(3):
            for i in range(start, len(batches), 2):
                found[i] = pruner.prune(model, batches[i]).images[0].significance

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, f) for a, f in zip(alone, found, strict=True))
    assert model.config.vision_config._attn_implementation == "sdpa"


# Bad input


def test_no_images():
    model, inputs = tiny.model(), tiny.inputs()
    del inputs["pixel_values"]
    with pytest.raises(
        ValueError, match="hold no images .pixel_values missing; there are: input_ids"
    ):
        fopru.FoPru().prune(model, inputs)


def test_text_without_the_image_placeholder():
    inputs = tiny.inputs()
    inputs["input_ids"][inputs["input_ids"] == tiny.IMAGE_TOKEN_ID] = 9
    with pytest.raises(ValueError, match="no image placeholder .token id 4.*1 image"):
        fopru.FoPru().prune(tiny.model(), inputs)


def test_more_images_than_placeholders():
    inputs = tiny.inputs()
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"2 image\(s\) of \[64, 64\].*hold \[64\] placeholders"):
        fopru.FoPru().prune(tiny.model(), inputs)


def test_fewer_images_than_placeholders():
    inputs = tiny.inputs(images=[tiny.image(), tiny.image()], texts="<image> <image> w1")
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match=r"1 image\(s\) of \[64\].*hold \[128\] placeholders"):
        fopru.FoPru().prune(tiny.model(), inputs)


def test_input_embeddings_are_refused():
    inputs = tiny.inputs()
    del inputs["input_ids"]
    with pytest.raises(ValueError, match="need input_ids"):
        fopru.FoPru().prune(tiny.model(), inputs)


def test_a_family_without_adapter_is_named():
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(tiny.configs("llava").text_config)
    with pytest.raises(fopru.UnsupportedModelError, match="'llama', and .*llava, "):
        fopru.FoPru().prune(model, tiny.inputs())


def test_a_wrapped_model_is_refused_by_name():
    compiled = torch.compile(tiny.model())
    with pytest.raises(fopru.UnsupportedModelError, match="OptimizedModule is not"):
        fopru.FoPru().prune(compiled, tiny.inputs())


def test_a_vision_tower_without_attention():
    config = LlavaConfig(
        vision_config=ConvNextV2Config(
            hidden_sizes=[8, 8, 8, 32], depths=[1, 1, 1, 1], image_size=32, patch_size=4
        ),
        text_config=tiny.configs("llava").text_config,
        image_token_index=tiny.IMAGE_TOKEN_ID,
    )
    config.vision_config.hidden_size = 32
    model = LlavaForConditionalGeneration(config)
    with pytest.raises(fopru.UnsupportedModelError, match="ConvNextV2Model.*no stack of attention"):
        fopru.FoPru().prune(model, tiny.inputs())


def test_a_block_that_does_not_use_the_attention_interface():
    model = tiny.model()
    block = model.model.vision_tower.encoder.layers[2]
    block.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(fopru.UnsupportedModelError, match=r"blocks \[2\].*attention interface"):
        fopru.FoPru().prune(model, tiny.inputs())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_that_is_not_rectangular(family):
    model = tiny.model(family)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(fopru.UnsupportedModelError, match="'full' keeps the CLS token"):
        fopru.FoPru().prune(model, tiny.inputs(family))


def runs_of(model, pruners):
    """How often each block of the tower did its work during encode()."""
    blocks = Family.of(model).blocks
    counts = [0] * len(blocks)

    def count(i):
        def hook(*args):
            counts[i] += 1

        return hook

    handles = [b.mlp.register_forward_hook(count(i)) for i, b in enumerate(blocks)]
    encode(model, tiny.inputs(), pruners)
    for handle in handles:
        handle.remove()
    return counts


def test_the_last_block_that_nobody_reads_is_not_run():
    """LLaVA reads the output of the block before it; the features are still equal to the bit."""
    model = tiny.model()
    assert runs_of(model, [fopru.FoPru()]) == runs_of(model, []) == [1, 1, 1, 0]
    assert runs_of(model, [fopru.FoPru(layer=-1)]) == [1, 1, 1, 1]  # its attention is read
    model.config.vision_feature_layer = -1
    assert runs_of(model, [fopru.FoPru()]) == [1, 1, 1, 1]
    model.config.vision_feature_layer = [-2, 1]
    assert Family.of(model).idle(deepest=0) == [Family.of(model).blocks[3]]
    assert Family.of(model).idle(deepest=3) == []


def test_a_forward_that_someone_else_put_on_a_block_stays():
    model = tiny.model()
    last = Family.of(model).blocks[-1]
    mine = last.forward = lambda *args, **kwargs: type(last).forward(last, *args, **kwargs)
    encode(model, tiny.inputs(), [fopru.FoPru()])
    assert last.forward is mine
    del last.forward
    encode(model, tiny.inputs(), [fopru.FoPru()])
    assert "forward" not in vars(last)
