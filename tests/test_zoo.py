"""Every family: nothing changes at retention 1, the masked oracle below it, scores by hand."""

import warnings
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import reference
import tiny
import torch
import torch.nn.functional as F
import zoo
from test_pruner import SIZES, TEXTS, answers

import fopru
from fopru.families import Family, coverage
from fopru.in_llm import InLLMPruner


def pictures():
    return [tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES)]


def batch(family, padding_side="left"):
    return zoo.inputs(family, pictures(), TEXTS, padding_side)


# Nothing changes at retention 1; below it, the masked oracle


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [
        "fopru",
        "divprune",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("fopru-row", "random")),
    ],
)
@pytest.mark.parametrize("family", zoo.NEW)
def test_retention_one_is_token_identical(family, method, attention):
    model, inputs = zoo.model(family, attention), batch(family)
    pruner, expected = fopru.METHODS[method](1.0), answers(model, inputs)
    assert torch.equal(answers(model, pruner.prune(model, inputs)), expected)
    with pruner(model):
        assert torch.equal(answers(model, inputs), expected)
    assert "generate" not in vars(model)
    assert torch.equal(answers(model, inputs), expected)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pruner", [fopru.FoPru(0.1), fopru.FoPru(0.3, "row")])
@pytest.mark.parametrize("family", zoo.NEW)
def test_logits_equal_the_full_length_run_with_dropped_columns_masked(family, pruner, padding_side):
    from dataclasses import replace

    model, inputs = zoo.model(family), batch(family, padding_side)
    pruned = replace(pruner, positions="preserve").prune(model, inputs)
    expected = reference.masked_logits(model, inputs, pruned)
    with torch.no_grad():
        logits = model(**pruned).logits
    for row, want in enumerate(expected):
        found = logits[row, pruned["attention_mask"][row].bool()]
        assert found.shape == want.shape
        assert (found - want).abs().max() < zoo.near(family)


@pytest.mark.parametrize("family", zoo.NEW)
def test_decoding_continues_where_the_masked_run_would(family):
    model, inputs = zoo.model(family), zoo.inputs(family, pictures()[:1], TEXTS[:1])
    pruned = fopru.FoPru(0.2, positions="preserve").prune(model, inputs)
    new = answers(model, pruned)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], new], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            told = zoo.example(family).answered
            longer[name] = F.pad(inputs[name], (0, new.shape[1]), value=told)
    logits = reference.masked_logits(model, longer, pruned)[0]
    logits[:, [zoo.IMAGE_TOKEN_ID, zoo.VIDEO_TOKEN_ID]] = -torch.inf
    assert torch.equal(logits[-new.shape[1] - 1 : -1].argmax(-1), new[0])


@pytest.mark.parametrize("family", zoo.NEW)
def test_steps_of_ones_own_on_a_pruned_cache(family):
    """A loop around forward inside `with`, as generate does it, where the model numbers steps."""
    model, inputs = zoo.model(family), zoo.inputs(family, pictures()[:1], TEXTS[:1])
    pruner, tokens = fopru.FoPru(0.3), []
    expected = answers(model, pruner.prune(model, inputs))
    with pruner(model), torch.no_grad():
        out = model(**inputs, use_cache=True)
        for _ in range(expected.shape[1]):
            out.logits[..., [zoo.IMAGE_TOKEN_ID, zoo.VIDEO_TOKEN_ID]] = -torch.inf
            tokens.append(out.logits[:, -1:].argmax(-1))
            out = model(input_ids=tokens[-1], past_key_values=out.past_key_values, use_cache=True)
    assert torch.equal(torch.cat(tokens, 1), expected)


@pytest.mark.parametrize("method", ["fopru", "fopru-row", "divprune", "tome"])
@pytest.mark.parametrize("family", zoo.NEW)
def test_a_batch_equals_singles(family, method):
    if zoo.undefined(method, family):
        return
    model, pruner = zoo.model(family), fopru.METHODS[method](0.25)
    pruned, images = pruner.prune(model, batch(family)), pictures()
    first = pruner.prune(model, zoo.inputs(family, images[:1], TEXTS[:1]))
    second = pruner.prune(model, zoo.inputs(family, images[1:], TEXTS[1:]))
    kept = [image.kept for image in (*first.images, *second.images)]
    assert all(torch.equal(p.kept, k) for p, k in zip(pruned.images, kept, strict=True))
    assert {image.sample for image in pruned.images} == {0, 1}
    both = answers(model, pruned)
    assert torch.equal(both[:1], answers(model, first))
    assert torch.equal(both[1:], answers(model, second))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("family", zoo.NEW)
def test_beams_and_static_caches_at_retention_one_and_on_singles(family, options):
    model, inputs, images = zoo.model(family), batch(family), pictures()
    pruned = fopru.FoPru(1.0).prune(model, inputs)
    if zoo.beams(family) or "num_beams" not in options:
        assert torch.equal(answers(model, pruned, **options), answers(model, inputs, **options))
    pruner = fopru.FoPru(0.3)
    both = answers(model, pruner.prune(model, inputs), **options)
    alone = zoo.inputs(family, images[:1], TEXTS[:1]), zoo.inputs(family, images[1:], TEXTS[1:])
    for row, single in enumerate(alone):
        assert torch.equal(
            both[row : row + 1], answers(model, pruner.prune(model, single), **options)
        )


# Scores, by hand


def by_hand(family, model, inputs, maps):
    """(N,) float64 of each picture: the mean attention that each token's patches receive."""
    if family == "gemma4":
        places = inputs["image_position_ids"]
        return [pooled(*picture) for picture in zip(maps[0], places, strict=True)]
    n_prefix = int(family in zoo.CLS)
    tiles = [
        tile.mean(0)[n_prefix:, n_prefix:].mean(0)  # (P,)
        for call in maps
        for tile in call
    ]
    side = tiny.SIDE // tiny.PATCH
    if family in ("internvl", "idefics3", "smolvlm", "gemma3", "aya_vision", "cohere2_vision"):
        blocks = [t.view(side // 2, 2, side // 2, 2).mean((1, 3)).flatten() for t in tiles]
        if family != "internvl":
            return blocks
        sizes = [image.n_tokens for image in Family.of(model).grids(inputs)]
        return list(torch.cat(blocks).split(sizes))
    if family in ("paligemma", "llava/dinov2"):
        return tiles
    if family == "llava_onevision":
        return list(canvases(tiles, inputs, side))
    if "image_sizes" in inputs:
        return list(packed(family, maps, inputs["image_sizes"] // tiny.PATCH))
    tokens = torch.cat(tiles).view(-1, 4).mean(1)  # four patches in a row make a token
    if family == "qwen2_5_vl":
        order = torch.cat([windows(inputs["image_grid_thw"])])
        tokens = torch.empty_like(tokens).index_copy(0, order, tokens)
    return list(tokens.split((inputs["image_grid_thw"].prod(1) // 4).tolist()))


def pooled(attention, places):
    """Gemma 4: means of squares of 2 x 2 patches, wherever they stand; padding neither looks nor is
    looked at."""
    there = (places >= 0).all(1)
    received = attention.mean(0)[there][:, there].mean(0)  # (P,)
    columns, rows = (places[there].amax(0) + 1) // 2
    table = torch.zeros(rows, columns, dtype=torch.float64)
    for (column, row), share in zip(places[there].tolist(), received, strict=True):
        table[row // 2, column // 2] += share / 4
    return table.flatten()


def packed(family, maps, sizes):
    """Pixtral: all pictures in one sequence, masked off from each other."""
    ((attention,),), start = maps, 0  # (h, T, T)
    for height, width in sizes.tolist():
        own = slice(start, start := start + height * width)
        received = attention[:, own, own].mean((0, 1)).view(height, width)
        if family != "llava/pixtral":
            received = received.view(height // 2, 2, width // 2, 2).mean((1, 3))
        yield received.flatten()


def windows(sizes):
    """The order in which the tower has its tokens: window after window of 2 x 2 tokens."""
    order, start = [], 0
    for _, height, width in (sizes // torch.tensor([1, 2, 2])).tolist():
        for top in range(0, height, 2):
            for left in range(0, width, 2):
                for row in range(top, min(top + 2, height)):
                    for column in range(left, min(left + 2, width)):
                        order.append(start + row * width + column)
        start += height * width
    return torch.tensor(order)


def canvases(tiles, inputs, side):
    """LLaVA-OneVision: tiles put together, padding cut off, made smaller, a newline a row."""
    rest = iter(tiles)
    alone = [n == 1 for n in inputs["batch_num_images"].tolist() for _ in range(n)]
    for (height, width), tiled in zip(inputs["image_sizes"].tolist(), alone, strict=True):
        base = next(rest)
        if not tiled:
            yield torch.cat([base, torch.zeros(1, dtype=base.dtype)])
            continue
        best = max(  # the pinpoint that shows most of the picture, and wastes least
            tiny.PINPOINTS,
            key=lambda p: (
                min(
                    int(width * min(p[1] / width, p[0] / height))
                    * int(height * min(p[1] / width, p[0] / height)),
                    width * height,
                ),
                -p[0] * p[1],
            ),
        )
        high, wide = best[0] // tiny.SIDE, best[1] // tiny.SIDE
        canvas = torch.cat(
            [torch.cat([next(rest).view(side, side) for _ in range(wide)], 1) for _ in range(high)]
        )
        rows, columns = canvas.shape
        if width / height > columns / rows:
            left = int(round(height * columns / width, 7))
            cut = (rows - left) // 2
            canvas = canvas[cut : rows - cut]
        else:
            left = int(round(width * rows / height, 7))
            cut = (columns - left) // 2
            canvas = canvas[:, cut : columns - cut]
        rows, columns = canvas.shape
        ratio = (rows * columns / (2 * side**2)) ** 0.5
        if ratio > 1.1:
            size = int(rows // ratio), int(columns // ratio)
            canvas = F.interpolate(canvas[None, None], size, mode="bilinear")[0, 0]
        canvas = torch.cat([canvas, canvas.mean(1, keepdim=True)], 1)
        yield torch.cat([base, canvas.flatten()])


@pytest.mark.parametrize("family", zoo.NEW)
def test_significance_is_an_eager_towers_attention_pushed_through_the_merge(family):
    model, inputs = zoo.model(family), batch(family)
    pruner = fopru.FoPru(axis="received")
    encoded = fopru.encode(model, inputs, [pruner])
    adapter = Family.of(model)
    maps = reference.eager_calls(
        model, adapter.blocks[adapter.block(None)], lambda: fopru.encode(model, inputs)
    )
    expected = by_hand(family, model, inputs, maps)
    for image, want in zip(encoded.images, expected, strict=True):
        found = image.tap("received").double()
        assert found.shape == want.shape
        torch.testing.assert_close(found, want, atol=1e-6, rtol=1e-4)
        assert want.std() > 1e-3 * want.mean()


@pytest.mark.parametrize("family", [f for f in zoo.FAMILIES if f not in zoo.CLS])
def test_towers_without_a_cls_token_are_scored_by_what_tokens_receive(family):
    model, inputs = zoo.model(family), batch(family)
    adapter = Family.of(model)
    with pytest.warns(UserWarning, match="has no CLS token: method 'cls' scores by"):
        pruned = fopru.CLS(0.25).prune(model, inputs)
    maps = reference.eager_calls(
        model, adapter.blocks[adapter.block(None)], lambda: fopru.encode(model, inputs)
    )
    expected = by_hand(family, model, inputs, maps)
    received = fopru.FoPru(0.25, axis="received").prune(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a choice that was made is not told again
        chosen = fopru.CLS(0.25, attention="received").prune(model, inputs)
        half = fopru.VisPruner(0.25, attention="received").prune(model, inputs)
    pruner = fopru.CLS(attention="cls")
    with pytest.raises(fopru.UnsupportedModelError, match="has no CLS token, whose attention"):
        pruner.prune(model, inputs)
    assert [fopru.VisPruner().attended(adapter), pruner.attended(adapter)] == ["received", "cls"]
    pairs = zip(expected, received.images, chosen.images, half.images, strict=True)
    for image, (want, *others) in zip(pruned.images, pairs, strict=True):
        for other in (image, *others):
            found = other.significance.double()
            torch.testing.assert_close(found, want, atol=1e-6, rtol=1e-4)
        assert torch.equal(image.kept, others[0].kept) and torch.equal(image.kept, others[1].kept)
        assert not torch.equal(image.kept, others[2].kept)


# Every method on every family


def test_the_book_has_the_families_and_the_refusals():
    page = (Path(__file__).parents[1] / "book" / "models.md").read_text()
    assert coverage.families() in page
    assert zoo.refusals() in page


EACH = ("fopru", "cls", "divprune", "mmtok", "random", "tome", "visionzip", "pool", "fastv")
"""A method of each kind: by what it reads, and by how it acts."""
WHOLE = ("llava", "llava_next", "qwen3_vl", "gemma4_unified")
"""Types on which the quick tests run every method."""


def every_method():
    for family in zoo.EVERY:
        for name in sorted(fopru.METHODS):
            quick = name in EACH or family in WHOLE
            yield pytest.param(name, family, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("name, family", every_method())
def test_every_method_runs_or_says_why_not(name, family):
    model, inputs = zoo.model(family), batch(family)
    kind = fopru.METHODS[name]
    pruner = kind(0.25) if kind.budgeted else kind()
    if reason := zoo.undefined(name, family):
        with pytest.raises(fopru.UnsupportedModelError, match=reason), pruner(model):
            model.generate(**inputs, max_new_tokens=2)
        return
    with torch.no_grad():
        there = inputs["attention_mask"].bool()  # what padding sees is nobody's business
        plain = model(**inputs).logits[there]
        with replace(pruner, retention=1.0 if kind.budgeted else None)(model):
            found = model(**inputs).logits[there]
            torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    with pruner(model) as run:
        new = answers(model, inputs)
    assert new.shape == (2, 6)
    if isinstance(pruner, InLLMPruner):
        assert all(0 < k < n for k, n in zip(*(run.visual_counts[i] for i in (-1, 0)), strict=True))
    elif kind.budgeted:
        assert [i.n_kept for i in run.last.images] == [
            pruner.n_keep(i.grid) for i in run.last.images
        ]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("family", zoo.NEW)
def test_methods_inside_the_llm_change_nothing_at_retention_one(name, family):
    if zoo.undefined(name, family):
        return
    model, inputs = zoo.model(family), batch(family)
    expected = answers(model, inputs)
    with fopru.METHODS[name](1.0)(model):
        assert torch.equal(answers(model, inputs), expected)


@pytest.mark.parametrize("family", zoo.SPATIAL)
def test_positions_of_time_height_and_width_are_never_numbered_anew(family):
    model, inputs = zoo.model(family), batch(family)
    with pytest.raises(fopru.UnsupportedModelError, match="positions='reindex'.*time, height"):
        fopru.FoPru(0.5, positions="reindex").prune(model, inputs)


def test_blocks_that_attend_within_windows_are_refused_by_name():
    model, inputs = zoo.model("qwen2_5_vl"), batch("qwen2_5_vl")
    with pytest.raises(ValueError, match=r"layer=2: block 2 attends within windows; .*1, 3"):
        fopru.FoPru(0.5, layer=2).prune(model, inputs)


# Video


@pytest.mark.parametrize("family", zoo.VIDEO)
def test_videos_keep_their_share_of_every_frame(family):
    model, inputs = zoo.model(family), zoo.video(family)
    expected = answers(model, inputs)
    with fopru.FoPru(1.0)(model) as run:
        assert torch.equal(answers(model, inputs), expected)
    (clip,) = run.last.images
    pruner = fopru.FoPru(0.3, positions="preserve")
    pruned = pruner.prune(model, inputs)
    kept = clip.view[pruned.images[0].kept].bincount().tolist()
    assert kept == pruner.budgets(clip.grid) and len(kept) > 1
    (want,) = reference.masked_logits(model, inputs, pruned)
    with torch.no_grad():
        found = model(**pruned).logits[0]
    assert (found - want).abs().max() < zoo.near(family)


@pytest.mark.parametrize("family", ["llava", "internvl", "gemma3"])
def test_videos_elsewhere_are_refused_with_the_families_that_have_them(family):
    model = zoo.model(family)
    inputs = {"input_ids": torch.ones(1, 4).long(), "pixel_values_videos": torch.ones(1)}
    with pytest.raises(fopru.UnsupportedModelError, match=r"hold videos; .*Qwen2\.5-VL"):
        fopru.FoPru().prune(model, inputs)


def test_images_and_videos_in_one_prompt_are_refused():
    model, inputs = zoo.model("qwen2_5_vl"), batch("qwen2_5_vl")
    inputs["pixel_values_videos"] = torch.ones(1)
    with pytest.raises(fopru.UnsupportedModelError, match="images and videos"):
        fopru.FoPru().prune(model, inputs)


# Methods inside the language model, beyond LLaVA


@pytest.mark.parametrize(
    "name", ["fastv", "pyramiddrop", pytest.param("sparsevlm", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("family", zoo.NEW)
def test_inside_the_llm_batches_equal_singles_and_kernels_agree(name, family):
    inputs, images = batch(family), pictures()
    singles = [zoo.inputs(family, images[:1], TEXTS[0]), zoo.inputs(family, images[1:], TEXTS[1])]
    counts = []
    for attention in ("sdpa", "eager"):
        model = zoo.model(family, attention)
        with fopru.METHODS[name](0.25)(model) as run, torch.no_grad():
            together = model(**inputs).logits[:, -1]
            counts.append(run.visual_counts)
            assert counts[0] == counts[-1]
            for row, single in enumerate(singles):
                found = model(**single).logits[0, -1]
                assert [layer[0] for layer in run.visual_counts] == [c[row] for c in counts[0]]
                near = zoo.near(family)
                torch.testing.assert_close(found, together[row], atol=near, rtol=near)


# Models that are not as transformers loads them


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_quantised_models_work(family):
    model, inputs = zoo.model(family), batch(family)
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    assert torch.equal(
        answers(small, fopru.FoPru(1.0).prune(small, inputs)), answers(small, inputs)
    )
    pruned = fopru.FoPru(0.25).prune(small, inputs)
    assert answers(small, pruned).shape == (2, 6)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_models_spread_over_devices_work(family, tmp_path):
    """Weights on disk, brought in layer by layer: accelerate moves what it must."""
    model, inputs, pruner = zoo.model(family), batch(family), fopru.FoPru(0.3)
    expected = answers(model, pruner.prune(model, inputs))
    spread = accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    spread.hf_device_map = {"": "disk"}  # as from_pretrained(device_map=...) notes it
    assert next(spread.parameters()).is_meta
    with pruner(spread):
        assert torch.equal(answers(spread, inputs), expected)


def test_a_peft_model_is_refused_with_what_to_pass():
    class PeftModel(torch.nn.Module):
        """As peft wraps a model."""

    with pytest.raises(fopru.UnsupportedModelError, match=r"PeftModel.*get_base_model\(\)"):
        fopru.FoPru().prune(PeftModel(), {})
