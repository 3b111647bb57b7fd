import pytest
import reference
import tiny
import torch
import zoo
from transformers import LlavaNextForConditionalGeneration

import fopru
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
        Family.of(LlavaNextForConditionalGeneration(config))


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
