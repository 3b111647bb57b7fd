import math
from dataclasses import dataclass, replace

import pytest
import reference
import tiny
import torch

import fopru
from fopru import methods
from fopru.families import Grid, View
from fopru.picking import floor_share
from fopru.pruned import Merged

FAMILIES = ["llava", "llava_next"]
TEXTS = ["USER: <image> w1 w2 w3 ASSISTANT:", "w7 USER: <image> w4 <image> w5 ASSISTANT:"]
SIZES = [(337, 801), (1000, 200), (40, 40)]


def batch(family, padding_side="left"):
    """Two prompts of different length, three pictures of different sizes."""
    images = [tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES)]
    return tiny.inputs(family, images, TEXTS, padding_side)


def answers(model, inputs, **kwargs):
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, **kwargs)
    return out[:, inputs["input_ids"].shape[1] :]


# What is kept


@pytest.mark.parametrize(
    "share, n, k",
    [
        (0.29, 100, 29),
        (0.25, 576, 144),
        (0.002, 576, 1),
        (0.002, 2880, 5),
        (0.1, 7, 1),
        (1.0, 7, 7),
        (0.57, 100, 57),
    ],
)
def test_floor_of_the_exact_value(share, n, k):
    assert floor_share(n, share) == k


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["rank", "row"])
def test_rank_and_row_of_each_view_from_its_scores_in_float64(family, strategy):
    model, inputs = tiny.model(family), batch(family)
    pruner = fopru.FoPru(retention=0.3, strategy=strategy, axis="received")
    pruned = pruner.prune(model, inputs)
    for image, encoded in zip(
        pruned.images, fopru.encode(model, inputs, [pruner]).images, strict=True
    ):
        start = 0
        for view in image.grid.views:
            values = encoded.tap("received").double()[start : start + view.n_tokens]
            kept = image.kept[(image.kept >= start) & (image.kept < start + view.n_tokens)] - start
            if strategy == "rank":
                assert reference.near(values, kept, floor_share(view.n_tokens, 0.3))
            else:
                table = values.view(view.height, view.row_width)[:, : view.width]
                rows = kept.view(-1, view.row_width)[:, 0] // view.row_width
                assert torch.equal(
                    rows.repeat_interleave(view.row_width) * view.row_width
                    + torch.arange(view.row_width).repeat(len(rows)),
                    kept,
                )
                assert reference.near(table.sum(1), rows, floor_share(view.height, 0.3))
            start += view.n_tokens


def test_llava_rank_from_the_eager_towers_attention_alone():
    model = tiny.model("llava")
    inputs = tiny.inputs(images=[tiny.image(seed=s) for s in range(5)], texts="<image> " * 5)
    maps = reference.eager_attention(model, inputs["pixel_values"], block=2)
    for retention in (0.02, 0.25, 0.8):
        pruned = fopru.FoPru(retention=retention).prune(model, inputs)
        for image, scores in zip(pruned.images, reference.received(maps), strict=True):
            assert reference.near(scores, image.kept, floor_share(64, retention))


@pytest.mark.parametrize(
    "retention", [0.01, 0.25, 1.0, *(pytest.param(r, marks=pytest.mark.slow) for r in (0.1, 0.5))]
)
@pytest.mark.parametrize("method, family", tiny.method_cases())
def test_every_method_keeps_its_budget_per_view_in_order(family, method, retention):
    model, inputs = tiny.model(family), batch(family)
    pruner = fopru.METHODS[method](retention=retention)
    pruned, again = pruner.prune(model, inputs), pruner.prune(model, inputs)
    for image, other in zip(pruned.images, again.images, strict=True):
        assert torch.equal(image.kept, other.kept)
        assert (image.kept.diff() > 0).all()
        assert image.n_kept == pruner.n_keep(image.grid) == sum(pruner.budgets(image.grid))
        per_view = image.view[image.kept].bincount(minlength=len(image.grid.views)).tolist()
        assert per_view == pruner.budgets(image.grid)
        if image.significance is not None:
            assert image.significance.shape == (image.n_full,)
            assert image.significance.dtype == torch.float32
        assert image.owner[image.kept].tolist() == list(range(image.n_kept))
        dropped = torch.ones(image.n_full, dtype=torch.bool)
        dropped[image.kept] = False
        if pruner.selects():
            assert (image.owner[dropped] == -1).all()
        else:  # what is merged stays in its view
            merged = image.owner >= 0
            assert torch.equal(image.view[merged], image.view[image.kept[image.owner[merged]]])
        assert image.mass.sum() == (image.owner >= 0).sum()
        assert [len(members) for members in image.sources] == image.mass.tolist()
        for i, members in enumerate(image.sources):
            assert torch.equal(members, (image.owner == i).nonzero().flatten())
    for image, features in zip(pruned.images, pruned.features, strict=True):
        assert features.shape[0] == image.n_kept
        assert features.dtype == torch.float32
        assert features.isfinite().all()
        assert not features.requires_grad


def test_a_method_of_ones_own_in_a_few_lines():
    """CONTRIBUTING.md's example: the CLS token's row of attention."""

    class Corners(fopru.Pruner):
        needs = frozenset({"cls"})

        def score(self, image):
            return image.tap("cls", self.layer)

    model, inputs = tiny.model(), tiny.inputs()
    image = Corners(tokens=9, layer=1).prune(model, inputs).images[0]
    row = reference.eager_attention(model, inputs["pixel_values"], block=1)[0, :, 0, 1:].mean(0)
    assert (image.significance.double() - row).abs().max() < 1e-6
    assert reference.near(row, image.kept, 9)
    assert Corners not in fopru.METHODS.values()


@pytest.mark.parametrize("k, budgets", [(2, [1, 1]), (10, [6, 4]), (13, [8, 5]), (104, [64, 40])])
def test_an_exact_count_is_shared_among_views(k, budgets):
    grid = Grid((View(8, 8), View(5, 7, newline=True)))
    assert fopru.FoPru(tokens=k).budgets(grid) == budgets
    assert fopru.FoPru(tokens=k).n_keep(grid) == k


def test_row_keeps_whole_rows_with_their_newline():
    grid = Grid((View(8, 8), View(5, 7, newline=True)))
    assert fopru.FoPru(retention=0.5, strategy="row").budgets(grid) == [32, 16]
    assert fopru.FoPru(tokens=16, strategy="row").budgets(Grid((View(8, 8),))) == [16]
    with pytest.raises(ValueError, match="tokens=20: strategy='row' keeps whole rows.* 8 a row"):
        fopru.FoPru(tokens=20, strategy="row").budgets(Grid((View(8, 8),)))


def test_boxes_tile_the_view():
    pruned = fopru.FoPru().prune(tiny.model("llava_next"), tiny.inputs("llava_next"))
    (image,) = pruned.images
    assert image.box(0) == (0, 0, 1 / 8, 1 / 8)
    assert image.box(63) == (7 / 8, 7 / 8, 1, 1)
    newline = int((image.columns < 0).nonzero()[0])
    with pytest.raises(ValueError, match="newline"):
        image.box(newline)


# What the model makes of it


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["fopru", "fopru-row", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_retention_one_is_token_identical(family, method, attention, padding_side):
    model, inputs = tiny.model(family, attention=attention), batch(family, padding_side)
    for positions in ("reindex", "preserve"):
        pruned = fopru.METHODS[method](retention=1.0, positions=positions).prune(model, inputs)
        assert torch.equal(pruned["input_ids"], inputs["input_ids"])
        assert torch.equal(answers(model, pruned), answers(model, inputs))


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@pytest.mark.parametrize("pruner", [fopru.FoPru(0.25), fopru.FoPru(0.3, "row"), fopru.Random(0.1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_full_length_run_with_dropped_columns_masked(
    family, pruner, positions, padding_side
):
    model, inputs = tiny.model(family), batch(family, padding_side)
    pruned = replace(pruner, positions=positions).prune(model, inputs)
    expected = reference.masked_logits(model, inputs, pruned, positions)
    with torch.no_grad():
        logits = model(**pruned).logits
    for row, want in enumerate(expected):
        found = logits[row, pruned["attention_mask"][row].bool()]
        assert found.shape == want.shape
        assert (found - want).abs().max() < 1e-4


@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_continues_where_the_masked_run_would(family, positions):
    """Teacher-forced: each generated token is the argmax of the masked run on the same prefix."""
    model, inputs = tiny.model(family), tiny.inputs(family, [tiny.image(337, 801)])
    pruner = fopru.FoPru(0.2, positions=positions)
    pruned = pruner.prune(model, inputs)
    new = answers(model, pruned)
    longer = dict(
        inputs,
        input_ids=torch.cat([inputs["input_ids"], new], 1),
        attention_mask=torch.ones(1, inputs["input_ids"].shape[1] + new.shape[1]).long(),
    )
    logits = reference.masked_logits(model, longer, pruned, positions)[0]
    logits[:, tiny.IMAGE_TOKEN_ID] = -math.inf
    assert torch.equal(logits[-new.shape[1] - 1 : -1].argmax(-1), new[0])


@pytest.mark.parametrize("method, family", tiny.method_cases())
def test_a_batch_equals_singles(family, method):
    model, pruner = tiny.model(family), fopru.METHODS[method](retention=0.25)
    pruned = pruner.prune(model, batch(family))
    images = [tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES)]
    first = pruner.prune(model, tiny.inputs(family, images[:1], TEXTS[:1]))
    second = pruner.prune(model, tiny.inputs(family, images[1:], TEXTS[1:]))
    kept = [image.kept for image in (*first.images, *second.images)]
    assert all(torch.equal(p.kept, k) for p, k in zip(pruned.images, kept, strict=True))
    assert [image.sample for image in pruned.images] == [0, 1, 1]
    both = answers(model, pruned)
    assert torch.equal(both[:1], answers(model, first))
    assert torch.equal(both[1:], answers(model, second))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
)
def test_generation_modes_at_retention_one_and_twice_on_the_same_inputs(family, options):
    model, inputs = tiny.model(family), batch(family)
    pruned = fopru.FoPru(1.0).prune(model, inputs)
    expected = answers(model, inputs, **options)
    assert torch.equal(answers(model, pruned, **options), expected)
    assert torch.equal(answers(model, pruned, **options), expected)


def test_ragged_counts_under_beams_equal_singles():
    model = tiny.model("llava_next")
    pruner, options = fopru.FoPru(0.2), {"num_beams": 3}
    pruned = pruner.prune(model, batch("llava_next"))
    images = [tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES)]
    first = pruner.prune(model, tiny.inputs("llava_next", images[:1], TEXTS[:1]))
    second = pruner.prune(model, tiny.inputs("llava_next", images[1:], TEXTS[1:]))
    both = answers(model, pruned, **options)
    assert torch.equal(both[:1], answers(model, first, **options))
    assert torch.equal(both[1:], answers(model, second, **options))


def test_sampling_with_one_seed_is_the_same_at_retention_one():
    model, inputs = tiny.model(), tiny.inputs()
    outs = []
    for arguments in (inputs, fopru.FoPru(1.0).prune(model, inputs)):
        torch.manual_seed(0)
        outs.append(model.generate(**arguments, do_sample=True, max_new_tokens=8))
    assert torch.equal(*outs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype):
    model, inputs = tiny.model("llava_next", dtype=dtype), batch("llava_next")
    pruned = fopru.FoPru().prune(model, inputs)
    assert {feature.dtype for feature in pruned.features} == {dtype}
    assert answers(model, pruned).shape == (2, 6)


def test_a_row_of_text_only_beside_a_row_with_an_image():
    model = tiny.model()
    inputs = tiny.inputs(texts=["USER: <image> w1 ASSISTANT:", "USER: w1 w2 w3 ASSISTANT:"])
    pruned = fopru.FoPru(0.25).prune(model, inputs)
    assert pruned["attention_mask"].sum(1).tolist() == [16 + 3, 5]
    expected = reference.masked_logits(model, inputs, pruned, "reindex")
    logits = model(**pruned).logits
    for row, want in enumerate(expected):
        assert (logits[row, pruned["attention_mask"][row].bool()] - want).abs().max() < 1e-4


def test_labels_are_compacted_with_the_ids():
    model, inputs = tiny.model(), batch("llava", "right")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE_TOKEN_ID, -100)
    pruned = fopru.FoPru(0.25).prune(model, {**inputs, "labels": labels})
    kept = pruned["labels"] != -100
    assert torch.equal(pruned["labels"][kept], pruned["input_ids"][kept])
    assert kept.sum() == (labels * inputs["attention_mask"] > 0).sum()
    assert model(**pruned).loss.isfinite()


def test_the_number_of_kept_tokens_is_known_from_sizes_alone():
    model, pruner = tiny.model("llava_next"), fopru.FoPru(0.15)
    inputs = batch("llava_next")
    from fopru.families import Family

    sizes_only = {"image_sizes": inputs["image_sizes"]}
    expected = [pruner.n_keep(grid) for grid in Family.of(model).grids(sizes_only)]
    assert [image.n_kept for image in pruner.prune(model, inputs).images] == expected


def test_pruned_inputs_are_a_mapping_that_moves():
    pruned = fopru.FoPru().prune(tiny.model(), tiny.inputs())
    assert {*pruned} == {"input_ids", "attention_mask", "mm_encoder_outputs"}
    assert len(pruned) == 3
    moved = pruned.to("cpu", torch.bfloat16)
    assert moved.features[0].dtype == torch.bfloat16
    assert moved["input_ids"].dtype == torch.int64
    assert moved.images is pruned.images
    assert "16 of 64" in repr(pruned)


# Bad input


@pytest.mark.parametrize("retention", [0, -0.1, 1.0001, float("nan"), "0.25", True, None.__class__])
def test_bad_retention(retention):
    with pytest.raises(ValueError, match=r"retention=.*must be a number in \(0, 1\]"):
        fopru.FoPru(retention=retention)


def test_papers_keep_the_same_number_of_every_tile():
    tiles = [fopru.budgets.PAPERS["llava_next"].retentions, (128, 64, 32)]
    for share, kept in zip(*tiles, strict=True):
        for n in (3, 5):
            assert fopru.FoPru(share).budgets(Grid((View(24, 24),) * n)) == [kept] * n
    for tokens in fopru.budgets.PAPERS["llava_next"].tokens:
        assert fopru.FoPru(tokens=tokens).budgets(Grid((View(24, 24),) * 5)) == [tokens // 5] * 5
    llava = fopru.budgets.PAPERS["llava"]
    for tokens, share in zip(llava.tokens, llava.retentions, strict=True):
        assert fopru.FoPru(share).budgets(Grid((View(24, 24),))) == [tokens]


def test_both_retention_and_tokens():
    with pytest.raises(ValueError, match="retention=0.5 and tokens=3: give one"):
        fopru.FoPru(retention=0.5, tokens=3)


@pytest.mark.parametrize("tokens", [0, -1, 2.0, "3", True])
def test_bad_tokens(tokens):
    with pytest.raises(ValueError, match="tokens=.*must be an integer of at least 1"):
        fopru.FoPru(tokens=tokens)


def test_tokens_beyond_the_picture():
    with pytest.raises(
        ValueError, match=r"tokens=65: a picture of 64 visual tokens in 1 view\(s\)"
    ):
        fopru.FoPru(tokens=65).prune(tiny.model(), tiny.inputs())


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("strategy", "column", "'rank', 'row'"),
        ("axis", "both", "'variance', 'received', 'given'"),
        ("scores", "softmax", "'probabilities', 'logits'"),
        ("positions", "keep", "'reindex', 'preserve'"),
    ],
)
def test_unknown_choices_name_the_allowed_ones(argument, value, allowed):
    with pytest.raises(ValueError, match=f"{argument}='{value}': must be one of .*{allowed}"):
        fopru.FoPru(**{argument: value})


@pytest.mark.parametrize("layer", [1.0, "last", True])
def test_bad_layer(layer):
    with pytest.raises(ValueError, match="layer=.*must be an integer"):
        fopru.FoPru(layer=layer)


@pytest.mark.parametrize("method", sorted(fopru.METHODS))
def test_layer_is_for_methods_that_read_a_block(method):
    reads = fopru.METHODS[method].needs - {"vision", "text", "grid", "layers", "pixels"}
    if reads:
        assert fopru.METHODS[method](layer=2).layer == 2
    else:
        with pytest.raises(ValueError, match=f"layer=2: method '{method}' reads no block"):
            fopru.METHODS[method](layer=2)


@pytest.mark.parametrize(
    "method", [m for m, cls in sorted(fopru.METHODS.items()) if cls.selects() and cls.budgeted]
)
def test_a_pruner_is_replaced_as_if_it_were_written_anew(method):
    """The default retention is not there as if it had been given."""
    kind = fopru.METHODS[method]
    assert replace(kind(), tokens=10) == kind(tokens=10)
    assert replace(kind(tokens=10), tokens=None, retention=0.5) == kind(0.5)
    assert replace(kind(), weights="mass") == kind(weights="mass")
    assert (kind().share, kind(0.5).share, kind(tokens=3).share) == (0.25, 0.5, None)
    grid = Grid((View(8, 8),), video=True)
    assert kind().budgets(grid) == kind(0.25).budgets(grid)
    with pytest.raises(ValueError, match="retention=0.5 and tokens=3: give one"):
        replace(kind(0.5), tokens=3)


def test_position_ids_cannot_be_reindexed():
    inputs = tiny.inputs()
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    with pytest.raises(ValueError, match="positions='reindex' would number the tokens anew"):
        fopru.FoPru(positions="reindex").prune(tiny.model(), {**inputs, "position_ids": positions})


def test_an_attention_mask_of_another_shape():
    inputs = {**tiny.inputs(), "attention_mask": torch.ones(1, 1, 5, 5)}
    with pytest.raises(ValueError, match=r"attention_mask of shape \(1, 1, 5, 5\)"):
        fopru.FoPru().prune(tiny.model(), inputs)


def test_a_name_belongs_to_one_class():
    with pytest.raises(ValueError, match="'fopru': FoPru of fopru.methods.fopru has that"):
        type("Other", (fopru.Pruner,), {}, name="fopru")


def test_a_class_that_is_defined_again_replaces_itself():
    """As when a notebook's cell runs twice."""

    def cell(share):
        @dataclass(frozen=True)
        class Mine(fopru.Pruner, name="mine"):
            spread: float = share

        return Mine

    try:
        for share in (0.1, 0.2):
            assert cell(share) is fopru.METHODS["mine"]
            assert fopru.METHODS["mine"]().spread == share
        with pytest.raises(ValueError, match="name='mine': .*Mine of .* has that name already"):
            type("Yours", (fopru.Pruner,), {}, name="mine")
    finally:
        del fopru.METHODS["mine"]


def test_an_unknown_method():
    with pytest.raises(KeyError, match="no method is called 'divprun'. Did you mean 'divprune'"):
        fopru.METHODS["divprun"]
    assert "divprun" not in fopru.METHODS
    assert fopru.METHODS.get("divprun") is None


def test_a_method_without_a_name_is_called_by_its_class():
    class Mine(fopru.FoPru):
        pass

    assert (Mine.name, fopru.FoPru.name) == ("Mine", "fopru")
    assert Mine not in fopru.METHODS.values()


def test_every_method_is_a_public_name():
    public = [getattr(fopru, name) for name in methods.__all__]
    assert all(cls in public for cls in fopru.METHODS.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_cannot_be_ranked(value):
    class Mine(fopru.Pruner):
        def score(self, image):
            return torch.ones(image.grid.n_tokens).index_fill(0, torch.tensor([3]), value)

    with pytest.raises(ValueError, match="Mine.score gave NaN or infinity for 1 of 64 visual"):
        Mine().prune(tiny.model(), tiny.inputs())


def test_scores_of_another_shape():
    class Mine(fopru.Pruner):
        def score(self, image):
            return torch.ones(3)

    with pytest.raises(ValueError, match="Mine.score must return one value for each of 64"):
        Mine().prune(tiny.model(), tiny.inputs())


def test_a_method_that_does_nothing():
    class Mine(fopru.Pruner):
        pass

    with pytest.raises(NotImplementedError, match="Mine must override one of `score`, `select`"):
        Mine().prune(tiny.model(), tiny.inputs())


@pytest.mark.parametrize(
    "merged",
    [
        ([0, 1], 3, [0, 1] + [-1] * 62),
        ([0, 1], 2, [0, 2] + [-1] * 62),
        ([0, 1], 2, [0, 1] + [-2] * 62),
        ([0, 1], 2, [0, 1]),
    ],
)
def test_a_merging_method_that_breaks_its_promise_is_told(merged):
    kept, n, owner = merged

    class Broken(fopru.Pruner):
        def merge(self, image, k):
            return Merged(torch.tensor(kept), image.features[:n], torch.tensor(owner))

    with pytest.raises(ValueError, match="Broken.merge must return 2 tokens, and for each of 64"):
        Broken(tokens=2).prune(tiny.model(), tiny.inputs())


def test_pictures_are_compared_and_shown_as_things():
    """By identity and in one line, though they hold tensors."""
    model, inputs = tiny.model(), tiny.inputs()
    encoded = fopru.encode(model, inputs, [fopru.FoPru()])
    again = fopru.encode(model, inputs, [fopru.FoPru()])
    (image,), (other,) = fopru.FoPru().compact(encoded).images, fopru.FoPru().compact(again).images
    for one, two in ((encoded, again), (encoded.images[0], again.images[0]), (image, other)):
        assert one == one and one != two and len({one, two}) == 2
    assert repr(image) == "PrunedImage(16 of 64 visual tokens, row 0)"
    assert repr(encoded.images[0]) == "EncodedImage(64 visual tokens, row 0)"
    assert repr(encoded) == "Encoded(LLaVA-1.5, 1 picture(s))"


@pytest.mark.parametrize("chosen", [[3, 1], [0, 0], [0, 64], [0], [-1, 2]])
def test_a_method_that_breaks_its_promise_is_told(chosen):
    class Broken(fopru.Pruner):
        def select(self, image, k):
            return torch.tensor(chosen)

    with pytest.raises(
        ValueError, match="Broken.select must return 2 sorted, distinct indices below 64"
    ):
        Broken(tokens=2).prune(tiny.model(), tiny.inputs())
