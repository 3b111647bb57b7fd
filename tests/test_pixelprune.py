"""PixelPrune: the rule against a loop, the smaller tower against the whole one with masks, and
every door."""

import re
import sys

import accelerate
import folders
import numpy as np
import pytest
import torch
import zoo
from PIL import Image
from test_pruner import answers
from transformers.vision_utils import get_vision_window_index
from typer.testing import CliRunner

import fopru
from fopru.applying import cache_name, cache_of
from fopru.cli import app
from fopru.evaluation import Example, controls
from fopru.families import Family, Grid, View, patchwise
from fopru.families.example import PATCH

TOWERS = [name for name in zoo.EVERY if Family.registry[name].patchwise]
FEW = [
    pytest.param(name, marks=() if name in ("qwen2_5_vl", "qwen3_vl") else pytest.mark.slow)
    for name in TOWERS
]
TEXTS = ["w7 w1 <image> w2 w3", "w4 <image> w5 <image> w6 w8 w9"]
SIDE = 2 * PATCH
"""The pixels along a token of the example models."""


def squares(height, width, colours=2, seed=0):
    """A picture of these many tokens, many of which repeat one beside them: (H, W) colours, and the
    picture, which processors leave at its size."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, colours, (height // 2 + 1, width // 3 + 1))
    table = np.kron(table, np.ones((2, 3), int))[:height, :width]
    dots = rng.integers(0, 4, (height, width)) == 0
    table[dots] = rng.integers(0, colours, dots.sum())
    values = np.array([[200, 30, 90], [10, 220, 60], [90, 90, 255], [0, 0, 0]], np.uint8)[table]
    return table, Image.fromarray(values.repeat(SIDE, 0).repeat(SIDE, 1))


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height * SIDE, width * SIDE, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def pictures():
    return [squares(6, 8, seed=1)[1], squares(8, 5, seed=2)[1], squares(4, 7, 3, seed=3)[1]]


def batch(family, padding_side="left", images=None):
    return zoo.inputs(family, images or pictures(), TEXTS, padding_side)


def kept_serially(pixels, threshold):
    """The places that stay of (H, W, c) pixels, by the paper's rule, a token at a time."""
    pixels, stands, kept = np.asarray(pixels, np.float64), {}, []

    def equal(a, b):
        return np.abs(a - b).max() <= threshold

    for r, c in np.ndindex(pixels.shape[:2]):
        left, above, corner = (stands.get(p) for p in ((r, c - 1), (r - 1, c), (r - 1, c - 1)))
        if corner is not None:
            up = equal(corner, left) and not equal(corner, above)
            guess = above if up else left
        else:
            guess = left if left is not None else above
        if guess is not None and equal(pixels[r, c], guess):
            stands[r, c] = guess
        else:
            stands[r, c] = pixels[r, c]
            kept.append(r * pixels.shape[1] + c)
    return kept


# The rule


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.75, 1.5])
def test_the_rule_is_that_of_a_loop_over_tokens(threshold):
    rng, pruner, shares = np.random.default_rng(0), fopru.PixelPrune(threshold=threshold), []
    for _ in range(60):
        height, width = rng.integers(1, 10, 2)
        pixels = rng.integers(0, 3, (height, width, 1)).repeat(4, 2).astype(np.float32)
        flat = rng.integers(0, 4, (height, width)) > 0
        pixels[flat] = rng.integers(0, 2)
        if threshold:  # a slope, along which the differences add up
            pixels = pixels + 0.2 * np.arange(width, dtype=np.float32)[:, None]
        tokens = torch.tensor(pixels).flatten(0, 1)
        found = pruner.enter(tokens, Grid((View(int(height), int(width)),)))
        assert found.tolist() == kept_serially(pixels, threshold)
        shares.append(len(found) / len(tokens))
    assert 0.1 < np.mean(shares) < 0.9


def test_a_small_threshold_is_none_and_what_is_lost_does_not_add_up():
    table, _ = squares(9, 9, seed=5)
    tokens, grid = torch.tensor(table).float().reshape(81, 1), Grid((View(9, 9),))
    exactly, nearly = (fopru.PixelPrune(threshold=t).enter(tokens, grid) for t in (0, 1e-6))
    assert torch.equal(exactly, nearly)
    slope = torch.arange(10.0)[:, None]  # each by 1 from the one before it
    kept = fopru.PixelPrune(threshold=2.5).enter(slope, Grid((View(1, 10),)))
    assert kept.tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("family", TOWERS)
def test_what_stays_of_a_drawn_picture_is_known_from_its_colours(family):
    """The processor packs pixels patch by patch; what is compared are squares of the picture."""
    (table, picture), model = squares(6, 8, 3, seed=4), zoo.model(family)
    inputs = zoo.inputs(family, [picture], "w1 <image> w2")
    (image,) = fopru.PixelPrune().prune(model, inputs).images
    assert image.grid == Grid((View(6, 8),))
    assert image.kept.tolist() == kept_serially(table[..., None], 0)
    assert 1 < image.n_kept < image.n_full


# The smaller tower


@torch.no_grad()
def whole_with_masks(model, inputs, kept, monkeypatch):
    """What the whole tower makes of the kept tokens where the patches of all others are no keys:
    its own loop, its attention replaced. (k, d) per picture, deep features beside."""
    family = Family.of(model)
    keep = torch.cat([torch.zeros(g.n_tokens).bool() for g in family.grids(inputs)])
    starts = np.cumsum([0, *(g.n_tokens for g in family.grids(inputs))]).tolist()
    for start, places in zip(starts, kept, strict=False):
        keep[places + start] = True
    order = torch.arange(len(keep))
    if "qwen2_5" in model.config.model_type:
        vision = model.config.vision_config
        order, _ = get_vision_window_index(
            inputs["image_grid_thw"], 2, vision.window_size, vision.patch_size
        )
    visible, read, lengths = keep[order].repeat_interleave(4), {}, set()

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        start = read.get(id(module), 0) % len(visible)
        read[id(module)] = end = start + query.shape[2]
        lengths.add(query.shape[2])
        logits = (query @ key.mT) * scaling
        logits = logits.masked_fill(~visible[start:end], torch.finfo(logits.dtype).min / 2)
        return (logits.softmax(-1) @ value).transpose(1, 2), None

    home = next(p for p in family.blocks[0].modules() if type(p).__name__.endswith("Attention"))
    monkeypatch.setattr(sys.modules[type(home).__module__], "eager_attention_forward", attend)
    model.set_attn_implementation("eager")
    output = model.base_model.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
    )
    model.set_attn_implementation("sdpa")
    found = list(output.pooler_output)
    for layer in getattr(output, "deepstack_features", None) or ():
        found = [torch.cat(pair, 1) for pair in zip(found, layer, strict=True)]
    return [tokens[places] for tokens, places in zip(found, kept, strict=True)], lengths


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("family", TOWERS)
def test_the_smaller_tower_is_the_whole_one_with_masks(family, threshold, monkeypatch):
    """Three pictures of other sizes in two rows."""
    model, inputs = zoo.model(family, dtype=torch.float64), batch(family)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    images = fopru.encode(model, inputs, [fopru.PixelPrune(threshold=threshold)]).images
    kept = [image.entered.places for image in images]
    assert all(1 < len(k) < 0.75 * i.grid.n_tokens for k, i in zip(kept, images, strict=True))
    expected, lengths = whole_with_masks(model, inputs, kept, monkeypatch)
    assert min(lengths) < 4 * 28 or "qwen2_5" not in family  # some attention is within windows
    plain = fopru.encode(model, inputs).images
    for image, want, whole in zip(images, expected, plain, strict=True):
        assert image.whole.shape == want.shape and want.shape[1] == whole.whole.shape[1]
        torch.testing.assert_close(image.whole, want, atol=1e-9, rtol=1e-9)
        assert (whole.whole[image.entered.places] - want).abs().max() > 1e-3  # it is another pass


@pytest.mark.parametrize("family", FEW)
def test_a_picture_in_which_nothing_repeats_is_the_models_own(family):
    images = [noise(6, 8, seed=1), noise(8, 5, seed=2), noise(4, 7, seed=3)]
    model, inputs = zoo.model(family), batch(family, images=images)
    expected = answers(model, inputs)
    with torch.no_grad(), fopru.PixelPrune()(model) as run:
        assert torch.equal(answers(model, inputs), expected)
        assert [i.n_kept for i in run.images] == [48, 40, 28]
    found = fopru.encode(model, inputs, [fopru.PixelPrune()]).images
    for one, other in zip(found, fopru.encode(model, inputs).images, strict=True):
        assert torch.equal(one.whole, other.whole)


def test_a_tower_that_places_its_patches_in_another_way_is_refused(monkeypatch):
    model, inputs = zoo.model("qwen2_vl"), batch("qwen2_vl")

    def forward(self, hidden_states, grid_thw):
        return hidden_states

    monkeypatch.setattr(type(model.base_model.visual), "forward", forward)
    with pytest.raises(fopru.UnsupportedModelError, match="does not place its patches by get_vis"):
        fopru.PixelPrune().prune(model, inputs)
    with pytest.raises(fopru.UnsupportedModelError, match="num_grid_per_side.*install one of"):
        patchwise.interpolated(model.base_model.visual, inputs["image_grid_thw"], torch.ones(0))


# Doors


@pytest.mark.parametrize("family", FEW)
def test_generate_is_greedy_forward_and_a_batch_is_its_rows(family):
    model, inputs, pruner = zoo.model(family), batch(family), fopru.PixelPrune()
    pruned = pruner.prune(model, inputs)
    expected, tokens = answers(model, pruned), []
    with torch.no_grad(), pruner(model) as run:
        assert torch.equal(answers(model, inputs), expected)
        out = model(**inputs, use_cache=True)
        for _ in range(expected.shape[1]):
            out.logits[..., [zoo.IMAGE_TOKEN_ID, zoo.VIDEO_TOKEN_ID]] = -torch.inf
            tokens.append(out.logits[:, -1:].argmax(-1))
            out = model(input_ids=tokens[-1], **{cache_name(model): cache_of(out)})
    assert torch.equal(torch.cat(tokens, 1), expected)
    assert torch.equal(
        answers(model, pruner.compact(fopru.encode(model, inputs, [pruner]))), expected
    )
    assert [len(kept) for kept in run.kept] == [
        sum(i.n_kept for i in pruned.images if i.sample == row) for row in range(2)
    ]
    for row, images in enumerate((pictures()[:1], pictures()[1:])):
        single = zoo.inputs(family, images, TEXTS[row])
        found = pruner.prune(model, single)
        assert torch.equal(answers(model, found)[0], expected[row])
        mask = pruned["attention_mask"][row].bool()
        assert torch.equal(found["position_ids"][1:, 0], pruned["position_ids"][1:, row, mask])


def test_the_kept_tokens_have_the_positions_that_they_had():
    model, inputs = zoo.model("qwen2_5_vl"), batch("qwen2_5_vl")
    pruned, plain = fopru.PixelPrune().prune(model, inputs), fopru.Random(1.0).prune(model, inputs)
    for row in range(2):
        there = pruned["attention_mask"][row].bool()
        columns = pruned.columns[row, there]
        found = pruned["position_ids"][1:, row, there]
        assert torch.equal(found, plain["position_ids"][1:, row, columns])


@pytest.mark.slow
def test_a_model_spread_over_devices(tmp_path):
    model, inputs, pruner = zoo.model("qwen3_vl"), batch("qwen3_vl"), fopru.PixelPrune()
    expected = answers(model, pruner.prune(model, inputs))
    spread = accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    spread.hf_device_map = {"": "disk"}  # as from_pretrained(device_map=...) notes it
    with pruner(spread):
        assert torch.equal(answers(spread, inputs), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.save("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl"))


def examples():
    shown = pictures()[:2]
    return [
        Example(f"q{i}", "t", shown[i // 2], f"w{i} w9", f"w{i + 20}", scene={"image_id": i // 2})
        for i in range(4)
    ]


def test_evaluate_gives_it_a_pass_of_its_own(folder):
    """Beside a method that scores by the whole tower, both are what they are alone."""
    model, processor = fopru.load(folder)
    methods = {"pixels": fopru.PixelPrune(), "fopru": fopru.FoPru()}
    methods |= {"mixed": controls.Shuffled(fopru.PixelPrune(threshold=1.0))}
    found = fopru.evaluate(model, processor, examples(), methods, [0.5, 0.25], max_new_tokens=2)
    assert found.groupby("method").size().to_dict() == {
        "full": 4,
        "pixels": 4,
        "fopru": 8,
        "mixed": 4,
    }
    for name in ("pixels", "fopru"):
        only = {name: methods[name]}
        table = fopru.evaluate(model, processor, examples(), only, [0.5, 0.25], max_new_tokens=2)
        columns = ["id", "retention", "kept", "prediction"]
        one, other = (t[t.method == name][columns].reset_index(drop=True) for t in (found, table))
        assert one.equals(other)
        pair = [t[t.method == name].loglik.to_numpy() for t in (found, table)]
        np.testing.assert_allclose(*pair, atol=1e-4)
    rows = found[found.method == "pixels"]
    assert rows.retention.nunique() == 1 and rows.budget.isna().all()
    assert rows.retention.iloc[0] == pytest.approx((rows.kept / rows.tokens).mean(), abs=1e-6)
    with fopru.PixelPrune()(model) as run:
        said = list(fopru.evaluation.answer(model, processor, examples(), max_new_tokens=2))
    assert rows.prediction.tolist() == said
    assert rows.kept.iloc[-1] == len(run.kept[-1])


def test_measure_times_its_own_tower(folder):
    model, _ = fopru.load(folder)
    inputs = zoo.inputs("qwen2_5_vl", pictures()[:1], "w1 <image> w2")
    pruners = [fopru.PixelPrune(), fopru.FoPru(0.5)]
    table = fopru.measure(model, inputs, pruners, new_tokens=2, turns=1)
    by = table.set_index(["method", "stage"])
    flops = {name: by.flops[name, "vision"] for name in ("full", "fopru", "pixelprune")}
    kept = by.visual["pixelprune", "vision"]
    assert flops["full"] == flops["fopru"] and 0 < kept < 48
    assert flops["pixelprune"] < 1.1 * flops["full"] * kept / 48
    assert by.retention["pixelprune", "prefill"] == kept / 48


def test_ask_and_the_other_commands(folder, tmp_path):
    picture, question = tmp_path / "a.png", "w1 w2"
    pictures()[0].save(picture)

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    options = ("--model", folder, "--method", "pixelprune")
    overlay = ("--overlay", tmp_path / "b.png")
    told = run("ask", picture, question, *options, "--max-new-tokens", 2, *overlay)
    assert told.exit_code == 0 and (tmp_path / "b.png").exists(), told.output
    (row,) = (line for line in told.stdout.splitlines() if "pixelprune" in line)
    assert 0 < int(re.search(r"│ +(\d+) │", row)[1]) < 48
    refused = run("ask", picture, question, *options, "--retention", 0.5)
    assert refused.exit_code == 2 and "retention=0.5: with method 'pixelprune'" in refused.output
    dry = run("measure", *options, "--dry-run")
    assert dry.exit_code == 0 and dry.stdout.endswith("full, pixelprune\n"), dry.output


# Refusals


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"retention": 0.5}, "retention=0.5: with method 'pixelprune' the picture itself says"),
        ({"tokens": 9}, "tokens=9: with method 'pixelprune' the picture itself says"),
        ({"layer": 2}, "layer=2: method 'pixelprune' reads no block"),
        ({"weights": "mass"}, "weights='mass': method 'pixelprune' knows nothing of the tokens"),
        ({"per": "clip"}, "per='clip': must be one of 'view'"),
        ({"threshold": -0.1}, "threshold=-0.1: must be a number of at least 0"),
        ({"threshold": "small"}, "threshold='small': must be a number of at least 0"),
        ({"positions": "kept"}, "positions='kept': must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fopru.PixelPrune(**arguments)


def test_how_many_stay_is_not_known_from_sizes():
    assert fopru.PixelPrune().share is None and not fopru.PixelPrune.fixed_k
    with pytest.raises(ValueError, match="pixelprune.*depends on the picture"):
        fopru.PixelPrune().n_keep(Grid((View(4, 4),)))


@pytest.mark.parametrize("family", [f for f in zoo.EVERY if f not in TOWERS])
def test_towers_that_take_pictures_whole_are_refused_by_name(family):
    model = zoo.model(family)
    match = "pictures go through that of .* whole; it is there for .*Qwen2-VL"
    with pytest.raises(fopru.UnsupportedModelError, match=match):
        fopru.PixelPrune()(model)


@pytest.mark.filterwarnings("ignore:fopru has no adapter")
def test_the_generic_adapter_knows_no_pixels():
    with pytest.raises(fopru.UnsupportedModelError, match="which pixels its tokens are made of"):
        fopru.PixelPrune()(zoo.model("vipllava"))


@pytest.mark.parametrize("family", [f for f in TOWERS if f in zoo.VIDEO])
def test_videos_are_refused(family):
    model, inputs = zoo.model(family), zoo.video(family)
    match = "frames of a video go through that of .* whole"
    with pytest.raises(fopru.UnsupportedModelError, match=match):
        fopru.PixelPrune().prune(model, inputs)
    with fopru.PixelPrune()(model), pytest.raises(fopru.UnsupportedModelError, match=match):
        model.generate(**inputs)


def test_a_pass_of_the_tower_is_shared_with_nobody():
    model, inputs = zoo.model("qwen3_vl"), batch("qwen3_vl")
    pruner, other = fopru.PixelPrune(), fopru.FoPru()
    with pytest.raises(
        ValueError, match="pruners: method 'pixelprune' leaves patches out .* alone"
    ):
        fopru.encode(model, inputs, [other, pruner])
    encoded = fopru.encode(model, inputs, [pruner])
    near = fopru.PixelPrune(threshold=0.5)
    for stranger in (other, fopru.DivPrune(), near):
        with pytest.raises(
            ValueError, match="encoded without the patches that 'pixelprune' leaves"
        ):
            stranger.compact(encoded)
    with fopru.FastV()(model) as session, pytest.raises(ValueError, match="all of them are needed"):
        session.arguments(encoded)
    with pytest.raises(ValueError, match="encoded with all its patches, and now those that 'pix"):
        pruner.compact(fopru.encode(model, inputs, [other]))
    with pytest.raises(ValueError, match="encode it anew, with the pruner in encode"):
        pruner.compact(fopru.encode(model, inputs, [near]))
    with pytest.raises(ValueError, match="encoded without"):
        encoded.images[0].tap("received")
    preserved = fopru.PixelPrune(positions="preserve").compact(encoded)
    assert torch.equal(answers(model, preserved), answers(model, pruner.compact(encoded)))
