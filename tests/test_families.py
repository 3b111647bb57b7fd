import pytest
import reference
import tiny
import torch
import transformers as hf
import zoo

import fopru
from fopru import tapping
from fopru.families import Family, Grid, View

ODD_SIZES = [(337, 801), (801, 337), (1000, 200), (200, 1000), (50, 50), (64, 64), (3, 200)]


def test_a_grid_places_every_token():
    grid = Grid((View(2, 2), View(1, 3, newline=True)))
    assert grid.n_tokens == 8
    assert grid.view.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert grid.rows.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert grid.columns.tolist() == [0, 1, 0, 1, 0, 1, 2, -1]


@pytest.mark.parametrize("size", ODD_SIZES)
def test_llava_next_grids_count_what_the_processor_counts(size):
    model, inputs = tiny.model("llava_next"), tiny.inputs("llava_next", [tiny.image(*size)])
    (grid,) = Family.of(model).grids(inputs)
    assert grid.n_tokens == int((inputs["input_ids"] == tiny.IMAGE_TOKEN_ID).sum())
    assert grid.views[0] == View(8, 8)
    assert grid.views[1].newline


@pytest.mark.parametrize("size", ODD_SIZES)
def test_llava_next_scores_follow_tokens_through_unpadding(size):
    """Find each token's patch by its feature, and expect that patch's score."""
    model, inputs = tiny.model("llava_next"), tiny.inputs("llava_next", [tiny.image(*size)])
    encoded = fopru.encode(model, inputs, [fopru.FoPru()])
    (image,) = encoded.images

    pixels = inputs["pixel_values"][0][: Family.of(model).tile_counts(inputs)[0]]
    tower = model.model.vision_tower
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = model.model.multi_modal_projector(states).flatten(0, 1)  # (tiles * 64, d)
    distance = torch.cdist(image.features.double(), features.double())
    source = distance.argmin(1)
    newline = image.grid.columns < 0
    assert distance.min(1).values[~newline].max() < 1e-4
    assert torch.equal(image.features[newline], model.model.image_newline.expand(newline.sum(), -1))

    scores = reference.received(reference.eager_attention(model, pixels, 2)).flatten()
    found = image.tap("received").double()
    torch.testing.assert_close(found[~newline], scores[source[~newline]], atol=1e-7, rtol=0)
    canvas = image.grid.views[1]
    rows = found[64:].view(canvas.height, canvas.row_width)
    means = rows[:, :-1].sum(1) / max(canvas.width, 1)  # unpadding can leave nothing but newlines
    torch.testing.assert_close(rows[:, -1], means, atol=1e-7, rtol=0)


def test_pixtral_towers_that_get_tiles_are_refused():
    config = zoo.config("llava_next")
    config.vision_config = zoo.config("llava/pixtral").vision_config
    with pytest.raises(fopru.UnsupportedModelError, match="Pixtral.* LLaVA-NeXT cuts"):
        Family.of(hf.LlavaNextForConditionalGeneration(config))


def test_a_second_adapter_for_a_type_is_refused_and_the_same_class_again_is_not(monkeypatch):
    monkeypatch.setattr(Family, "registry", dict(Family.registry))
    with pytest.raises(ValueError, match=r"llava\.Llava is the adapter for 'llava'"):

        class Mine(Family, model_types=("mine", "llava")):
            pass

    assert "mine" not in Family.registry

    def cell():
        class Cell(Family, model_types=("cell",)):
            pass

        return Cell

    assert cell() is not (again := cell())
    assert Family.registry["cell"] is again


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(800, 8), (8, 800), (793, 10), (400, 20)])
def test_pictures_that_unpadding_leaves_no_row_of(family, size):
    model = zoo.model(family)
    inputs = zoo.inputs(family, [tiny.image(*size)], "USER: <image> w1 ASSISTANT:")
    (grid,) = Family.of(model).grids(inputs)
    assert grid.n_tokens == int((inputs["input_ids"] == tiny.IMAGE_TOKEN_ID).sum())
    with torch.no_grad():
        expected = model(**inputs).logits
        with fopru.FoPru(1.0)(model):
            assert torch.equal(model(**inputs).logits, expected)
        pruner = fopru.FoPru(0.25)
        assert pruner.prune(model, inputs).images[0].n_kept == pruner.n_keep(grid)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_sizes_of_pictures_may_be_a_list(family):
    model = zoo.model(family)
    inputs = zoo.inputs(family, [tiny.image(60, 44)], "USER: <image> w1 ASSISTANT:")
    listed = {**inputs, "image_sizes": [tuple(size) for size in inputs["image_sizes"].tolist()]}
    pruner = fopru.FoPru(0.25)
    expected, found = pruner.prune(model, inputs), pruner.prune(model, listed)
    assert torch.equal(expected.images[0].kept, found.images[0].kept)
    assert torch.equal(expected.features[0], found.features[0])


# Pictures that share one sequence (Pixtral)


def test_break_tokens_stay_where_their_row_ended_and_are_no_text():
    model, words = zoo.model("mistral3"), tiny.WORDS
    pictures = [tiny.image(64, 40), tiny.image(24, 64, seed=1)]
    inputs = zoo.inputs("mistral3", pictures, "USER: <image> w1 <image> w2 ASSISTANT:")
    pruner = fopru.FoPru(0.1)
    encoded = fopru.encode(model, inputs, [pruner])
    pruned = pruner.compact(encoded)
    left = [words[i] for i in pruned["input_ids"][0]]
    expected = ["USER:"]
    for image, word in zip(pruned.images, ("w1", "w2"), strict=True):
        (view,) = image.grid.views
        rows = image.rows[image.kept].tolist()
        assert len(set(rows)) < view.height  # some rows lose all of their tokens
        for row in range(view.height):
            expected += ["<image>"] * rows.count(row)
            expected += ["w52" if row < view.height - 1 else "w54"]
        expected += [word]
    assert left == [*expected, "ASSISTANT:"]
    told = torch.tensor([words.index(word) for word in ("USER:", "w1", "w2", "ASSISTANT:")])
    assert torch.equal(encoded.text(0), model.get_input_embeddings()(told))


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_picture_is_scored_as_if_it_were_alone_in_its_sequence(layer):
    config = zoo.config("mistral3")
    config.vision_feature_layer = layer
    torch.manual_seed(0)
    model = hf.Mistral3ForConditionalGeneration(config).eval()
    tiny.shake(model)
    pictures = [tiny.image(64, 40), tiny.image(24, 64, seed=1)]
    inputs = zoo.inputs("mistral3", pictures, "USER: <image> w1 <image> w2 ASSISTANT:")
    inputs["image_sizes"] = inputs["image_sizes"].tolist()
    pruner = fopru.FoPru(0.25, axis="variance", scores="logits")
    both = fopru.encode(model, inputs, [pruner]).images
    with torch.no_grad():
        plain = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    for picture, found, features in zip(pictures, both, plain.pooler_output, strict=True):
        one = zoo.inputs("mistral3", [picture], "<image>")
        (alone,) = fopru.encode(model, one, [pruner]).images
        assert torch.equal(found.features, features)
        assert alone.scores.keys() == found.scores.keys()
        for tap, scores in alone.scores.items():
            torch.testing.assert_close(found.learned[tap], scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "groups, lengths",
    [
        ("aaaaa", [5]),
        ("aabbb", [2, 3]),
        ("abbbc", [1, 3, 1]),
        ("abab", []),  # not one after the other
        ("aab ", []),  # padding
    ],
)
@pytest.mark.parametrize("added", [True, False])
def test_lengths_of_pictures_that_a_mask_keeps_apart(groups, lengths, added):
    letters = torch.tensor([ord(letter) for letter in groups])
    shown = (letters[:, None] == letters) & (letters != ord(" "))
    mask = shown.expand(2, 1, -1, -1)
    if added:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    shown = tapping._shown(mask)
    assert tapping._lengths(shown) == lengths
    assert tapping._lengths(shown.tril()) == []  # causal
