"""DINOv2's towers, with registers and without: attention by hand in float64, every method once."""

from functools import cache

import pytest
import tiny
import torch
import transformers as hf
import zoo

import fopru
from fopru.families import Family
from fopru.families.example import PATCH, SQUARE, VIT
from fopru.in_llm import InLLMPruner
from fopru.significance import SCORES, attention_scores
from fopru.tapping import tapped

PREFIX = {"dinov2": 1, "dinov2_with_registers": 5}
AXES = ("received", "given", "cls")


@cache
def model(kind):
    """A LLaVA with such a tower, whose layer scales all differ."""
    config = zoo.config("llava/dinov2")
    config.vision_config = hf.CONFIG_MAPPING[kind](**VIT, **SQUARE, mlp_ratio=2)
    torch.manual_seed(1)
    net = hf.LlavaForConditionalGeneration(config).eval()
    tiny.shake(net)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("lambda1"):
                parameter.uniform_(0.1, 1.5)
            if name.endswith(("bias", "_token", "_tokens")):
                parameter.normal_(std=0.3)
    return net


def pixels(n=2):
    images = [tiny.image(seed=seed) for seed in range(n)]
    return zoo.image_processor("llava/dinov2")(images=images, return_tensors="pt")["pixel_values"]


def by_hand(tower, pictures):
    """For each block its logits and its probabilities, (B, h, T, T), float64; no code of the model
    is called."""
    w = {name: value.double() for name, value in tower.state_dict().items()}
    heads, side = tower.config.num_attention_heads, tower.config.image_size // PATCH

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + tower.config.layer_norm_eps).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    cells = pictures.double().view(-1, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
    kernel = w["embeddings.patch_embeddings.projection.weight"].flatten(1)
    x = cells.flatten(3).flatten(1, 2) @ kernel.T  # (B, P, d)
    x = x + w["embeddings.patch_embeddings.projection.bias"]
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + w["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in w:
        registers = w["embeddings.register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)  # (B, T, d)
    for index in range(tower.config.num_hidden_layers):
        name = f"encoder.layer.{index}"
        seen = norm(x, f"{name}.norm1")
        q, k, v = (
            linear(seen, f"{name}.attention.{part}_proj").unflatten(2, (heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        probabilities = logits.softmax(-1)
        yield {"logits": logits, "probabilities": probabilities}
        mixed = (probabilities @ v).transpose(1, 2).flatten(2)
        x = x + w[f"{name}.layer_scale1.lambda1"] * linear(mixed, f"{name}.attention.o_proj")
        inner = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        x = x + w[f"{name}.layer_scale2.lambda1"] * linear(inner, f"{name}.mlp.fc2")


def averages(maps, p):
    """CLS is the first token, and p tokens stand before the patches."""
    patches = maps[:, :, p:, p:]
    return {
        "received": patches.mean((1, 2)),
        "given": patches.mean((1, 3)),
        "cls": maps[:, :, 0, p:].mean(1),
    }


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("kind", PREFIX)
def test_scores_of_every_block_by_hand(kind, scores):
    net, pictures = model(kind), pixels()
    family = Family.of(net)
    assert family.n_prefix == PREFIX[kind]
    assert [family.block(None), family.depth] == [2, 4]
    with torch.no_grad(), tapped(family.tower, dict(enumerate(family.blocks))) as seen:
        family.tower(pictures)
    for index, maps in enumerate(by_hand(family.tower, pictures)):
        ((query, key, scaling, visible),) = seen[index]
        assert visible is None
        found = attention_scores(query, key, scaling, family.n_prefix, AXES, scores)
        for axis, expected in averages(maps[scores], PREFIX[kind]).items():
            assert expected.shape == (2, 64) and expected.std() > 1e-6
            torch.testing.assert_close(found[axis].double(), expected, atol=1e-5, rtol=1e-4)


def test_what_pruners_rank_by_is_the_block_whose_output_llava_reads():
    net, pictures = model("dinov2"), [tiny.image(seed=seed) for seed in range(2)]
    texts = [f"USER: <image> w{i} ASSISTANT:" for i in range(2)]
    inputs = zoo.inputs("llava/dinov2", pictures, texts)
    pruners = [fopru.FoPru(0.25, axis="received"), fopru.FoPru(0.25, axis="given"), fopru.CLS(0.25)]
    encoded = fopru.encode(net, inputs, pruners)
    expected = averages(list(by_hand(net.model.vision_tower, pixels()))[2]["probabilities"], 1)
    for axis, pruner in zip(AXES, pruners, strict=True):
        kept = [image.kept for image in pruner.compact(encoded).images]
        for image, tokens, want in zip(encoded.images, kept, expected[axis], strict=True):
            torch.testing.assert_close(image.tap(axis).double(), want, atol=1e-6, rtol=1e-4)
            assert tokens.tolist() == want.argsort(descending=True)[:16].sort().values.tolist()


@pytest.mark.parametrize(
    "method", sorted(n for n, m in fopru.METHODS.items() if "view" in m.shares and m.budgeted)
)
def test_every_method_runs_and_keeps_everything_at_one(method):
    net = model("dinov2")
    inputs = zoo.inputs("llava/dinov2", [tiny.image()], "USER: <image> w1 w2 ASSISTANT:")
    with torch.no_grad():
        plain = net(**inputs).logits
        with fopru.METHODS[method](1.0)(net):
            torch.testing.assert_close(net(**inputs).logits, plain, atol=1e-5, rtol=1e-5)
        with fopru.METHODS[method](0.25)(net) as run:
            assert not torch.allclose(net(**inputs).logits[:, -1], plain[:, -1])
    if isinstance(pruner := fopru.METHODS[method](0.25), InLLMPruner):
        assert run.visual_counts[-1][0] < 64
    else:
        assert run.last.images[0].n_kept == pruner.n_keep(run.last.images[0].grid)


def test_registers_that_stay_among_the_visual_tokens_are_refused_by_name():
    """transformers' LLaVA cuts one token off whatever the tower: four registers reach the LLM."""
    net = model("dinov2_with_registers")
    features = net.model.get_image_features(pixels(1), return_dict=True).pooler_output[0]
    assert features.shape[0] == 64 + 4
    ids = torch.tensor([[5] + [tiny.IMAGE_TOKEN_ID] * 68 + [9]])
    said = r"Dinov2WithRegistersModel puts 5 tokens before the patches.* its registers stay"
    with pytest.raises(fopru.UnsupportedModelError, match=said):
        fopru.FoPru(0.25).prune(net, {"input_ids": ids, "pixel_values": pixels(1)})
    tiled = zoo.config("llava_next")
    tiled.vision_config = net.config.vision_config
    with pytest.raises(fopru.UnsupportedModelError, match=said):
        Family.of(hf.LlavaNextForConditionalGeneration(tiled)).check_rectangular()
