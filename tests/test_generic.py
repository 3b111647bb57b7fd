"""Models without an adapter of their own: nothing changes at retention 1, the masked oracle below
it, and what cannot be done is refused in words."""

from pathlib import Path

import folders
import others
import pytest
import reference
import tiny
import torch
import transformers as hf
import zoo
from test_pruner import SIZES, TEXTS, answers
from typer.testing import CliRunner

import fopru
from fopru.cli import app
from fopru.evaluation import Example
from fopru.evaluation.controls import Oracle, Smaller
from fopru.evaluation.evidence import cover
from fopru.families import Family, Generic, Grid, View, coverage, generic
from fopru.versions import INSTALLED, LISTS, PROVEN

pytestmark = pytest.mark.filterwarnings("ignore:fopru has no adapter")

TYPES = [name for name in others.EXAMPLES if name not in ("idefics2", *Family.registry)]
METHODS = sorted(name for name, m in fopru.METHODS.items() if m.needs <= {"text"})
REPO = Path(__file__).parents[1]


def pictures():
    return [tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES)]


def batch(kind, padding_side="left"):
    return zoo.inputs(kind, pictures(), TEXTS, padding_side)


@pytest.mark.parametrize("kind", TYPES)
def test_retention_one_is_token_identical(kind):
    model, inputs = zoo.model(kind), batch(kind)
    expected = answers(model, inputs)
    for name in METHODS:
        pruned = fopru.METHODS[name](1.0).prune(model, inputs)
        assert isinstance(pruned.family, Generic)
        assert torch.equal(answers(model, pruned), expected)
    with fopru.DivPrune(1.0)(model):
        assert torch.equal(answers(model, inputs), expected)
        beams = answers(model, inputs, num_beams=2)
    if zoo.beams(kind):
        assert torch.equal(answers(model, inputs, num_beams=2), beams)
    assert torch.equal(answers(model, inputs), expected)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", TYPES)
def test_logits_equal_the_full_length_run_with_dropped_columns_masked(kind, padding_side):
    model, inputs = zoo.model(kind), batch(kind, padding_side)
    pruner = fopru.DivPrune(0.25, positions="preserve")
    pruned = pruner.prune(model, inputs)
    with torch.no_grad():
        logits = model(**pruned).logits
    for row, want in enumerate(reference.masked_logits(model, inputs, pruned)):
        found = logits[row, pruned["attention_mask"][row].bool()]
        assert found.shape == want.shape
        assert (found - want).abs().max() < 1e-4
    assert [image.n_kept for image in pruned.images] == [
        pruner.n_keep(grid) for grid in Family.of(model).grids(inputs)
    ]


@pytest.mark.parametrize("kind", TYPES)
def test_a_batch_equals_singles_with_beams_too(kind):
    model, images, pruner = zoo.model(kind), pictures(), fopru.DivPrune(0.3)
    together = pruner.prune(model, batch(kind))
    alone = zoo.inputs(kind, images[:1], TEXTS[:1]), zoo.inputs(kind, images[1:], TEXTS[1:])
    singles = [pruner.prune(model, inputs) for inputs in alone]
    kept = [image.kept for single in singles for image in single.images]
    assert all(torch.equal(p.kept, k) for p, k in zip(together.images, kept, strict=True))
    for options in ({}, {"num_beams": 3}):
        both = answers(model, together, **options)
        for row, single in enumerate(singles):
            assert torch.equal(both[row : row + 1], answers(model, single, **options))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("weights", ["none", "mass"])
def test_steps_on_a_pruned_cache_are_those_of_a_prompt_read_again(kind, weights):
    model, inputs = zoo.model(kind), zoo.inputs(kind, pictures()[:1], TEXTS[:1])
    with fopru.DivPrune(0.3, weights=weights)(model), torch.no_grad():
        new = answers(model, inputs)
        cached = model.generate(
            **inputs,
            max_new_tokens=len(new[0]),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], new], 1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        again = model(**longer).logits[0, -len(new[0]) - 1 : -1]
    torch.testing.assert_close(torch.cat(cached), again, atol=1e-4, rtol=1e-4)


# What is refused


@pytest.mark.parametrize(
    "method,what",
    [
        ("fopru", "the attention of its vision tower"),
        ("fopru-row", "the attention of its vision tower"),
        ("cls", "the attention of its vision tower"),
        ("vispruner", "the attention of its vision tower"),
        ("dart", "the keys of its vision tower"),
        ("pool", "where in the picture a token sits"),
        ("fastv", "the layers of its language model"),
        ("pyramiddrop", "the layers of its language model"),
        ("sparsevlm", "the layers of its language model"),
    ],
)
def test_methods_that_read_more_are_refused_with_those_that_work(method, what):
    model, inputs = zoo.model("vipllava"), batch("vipllava")
    said = f"model type 'vipllava'.* does not know {what}.*work that read the visual tokens"
    with pytest.raises(fopru.UnsupportedModelError, match=said):
        fopru.METHODS[method](0.25)(model)
    if method not in ("fastv", "pyramiddrop", "sparsevlm"):
        with pytest.raises(fopru.UnsupportedModelError, match=said):
            fopru.METHODS[method](0.25).prune(model, inputs)


def test_methods_of_tokens_alone_are_served():
    assert {"cdpruner", "divprune", "dpp", "random", "tome", "uniform"} <= set(METHODS)


def test_the_generic_adapter_is_announced_once_a_type(monkeypatch):
    monkeypatch.setattr(generic, "_TOLD", set())
    model = zoo.model("vipllava")
    with pytest.warns(UserWarning, match="no adapter for model type 'vipllava'.*dpp") as told:
        Family.of(model)
        Family.of(model)
    assert len(told) == 1


@pytest.mark.parametrize(
    "config,why",
    [
        (hf.BlipConfig, "takes no pictures that are encoded already"),
        (hf.MllamaConfig, "takes no pictures that are encoded already"),
        (hf.Florence2Config, "an encoder and a decoder"),
        (hf.InstructBlipConfig, "an encoder and a decoder"),
        (hf.Ernie4_5_VLMoeConfig, "position ids are places in the picture"),
        (hf.Granite4VisionConfig, "deepstack"),
        (hf.FuyuConfig, "(reads last_hidden_state|takes no pictures by a usual name)"),
        (hf.Ovis2Config, "reads pooler_output, visual_indicator_features"),
        (hf.BertConfig, "no model of its type that answers questions about pictures"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_the_reason(config, why):
    with pytest.raises(fopru.UnsupportedModelError, match=f"the generic one does not fit: .*{why}"):
        Family.kind(config())


def test_a_model_of_text_is_refused():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**others.TEXT))
    with pytest.raises(fopru.UnsupportedModelError, match="takes no pictures that are encoded"):
        fopru.DivPrune()(model)


def test_a_configuration_without_a_placeholder_is_refused():
    with pytest.raises(fopru.UnsupportedModelError, match="names no image_token_id"):
        Family.kind(hf.ChameleonConfig())


def test_a_picture_split_by_text_is_refused():
    model, inputs = zoo.model("vipllava"), zoo.inputs("vipllava", pictures()[:1], TEXTS[:1])
    ids = inputs["input_ids"]
    at = int((ids[0] == tiny.IMAGE_TOKEN_ID).nonzero()[10])
    inputs["input_ids"] = torch.cat([ids[:, :at], ids[:, :1], ids[:, at:]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(
        fopru.UnsupportedModelError, match="of 64 .* split by text into runs of 10, 54"
    ):
        fopru.DivPrune(0.5).prune(model, inputs)


@pytest.mark.skipif(INSTALLED < LISTS, reason=f"tiles come apart before transformers {LISTS}")
def test_pictures_that_are_encoded_together_with_text_between_them_are_refused():
    model, inputs = zoo.model("idefics2"), batch("idefics2")
    with pytest.raises(fopru.UnsupportedModelError, match="of 16, 32 .* into runs of 16, 16, 16"):
        fopru.DivPrune(0.5).prune(model, inputs)
    one = zoo.inputs("idefics2", pictures()[:1], TEXTS[:1])
    expected = answers(model, one)
    assert torch.equal(answers(model, fopru.DivPrune(1.0).prune(model, one)), expected)


@pytest.mark.parametrize("kind", ["vipllava", "video_llama_3"])
def test_placeholders_that_are_more_or_fewer_than_features_are_refused(kind):
    model, inputs = zoo.model(kind), zoo.inputs(kind, pictures()[:1], TEXTS[:1])
    n = int((inputs["input_ids"] == tiny.IMAGE_TOKEN_ID).sum())
    first = int((inputs["input_ids"][0] == tiny.IMAGE_TOKEN_ID).nonzero()[0])
    fewer = {
        k: torch.cat([v[:, :first], v[:, first + 1 :]], 1)
        for k, v in inputs.items()
        if v.dim() == 2 and v.shape == inputs["input_ids"].shape
    }
    with pytest.raises(ValueError, match=rf"have {n} visual tokens, but input_ids hold {n - 1} "):
        fopru.DivPrune(0.5).prune(model, {**inputs, **fewer})
    none = {**inputs, "input_ids": torch.ones(1, 8).long(), "attention_mask": torch.ones(1, 8)}
    with pytest.raises(ValueError, match="no image placeholder"):
        fopru.DivPrune(0.5).prune(model, none)
    without = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with pytest.raises(ValueError, match="hold no images"):
        fopru.DivPrune(0.5).prune(model, without)


def test_videos_are_refused():
    model, inputs = zoo.model("video_llama_3"), batch("video_llama_3")
    del inputs["pixel_values"]
    with pytest.raises(fopru.UnsupportedModelError, match="hold videos; .*Qwen2-VL"):
        fopru.DivPrune().prune(model, {**inputs, "pixel_values_videos": torch.ones(1)})


def test_where_a_token_sits_is_not_made_up():
    model, inputs = zoo.model("vipllava"), zoo.inputs("vipllava", pictures()[:1], TEXTS[:1])
    (image,) = fopru.DivPrune(0.25).prune(model, inputs).images
    assert image.grid == Grid((View(1, 64),), flat=True)
    with pytest.raises(ValueError, match="where in the picture a token sits"):
        image.box(3)
    with pytest.raises(ValueError, match="so the kept ones cannot be drawn"):
        fopru.plots.overlay(pictures()[0], image, tiny.processor("llava"))
    with pytest.raises(ValueError, match="leave the evidence of the questions out"):
        cover(image.grid, (0, 0, 8, 8), [(0, 0, 1, 1)])
    assert cover(image.grid, (0, 0, 8, 8), []).sum() == 0
    for control in (Oracle(), Smaller()):
        with pytest.raises(fopru.UnsupportedModelError, match="where in the picture"):
            control(model)


def test_uniform_keeps_evenly_spaced_tokens_in_reading_order():
    model, inputs = zoo.model("vipllava"), zoo.inputs("vipllava", pictures()[:1], TEXTS[:1])
    (image,) = fopru.Uniform(tokens=8).prune(model, inputs).images
    assert image.kept.tolist() == [4, 12, 20, 28, 36, 44, 52, 60]


def test_a_saved_folder_is_loaded_evaluated_and_asked(tmp_path):
    folder, photo = folders.save("vipllava", tmp_path), tmp_path / "photo.png"
    picture = pictures()[0]
    picture.save(photo)
    model, processor = fopru.load(folder)
    questions = [Example(f"q{i}", "words", picture, f"w{i} w9", "w20") for i in range(2)]
    asked = dict(methods=["dpp"], retentions=[0.25], max_new_tokens=2)
    both = fopru.evaluate(model, processor, questions, batch_size=2, **asked)
    alone = fopru.evaluate(model, processor, questions[1:], **asked)
    both = both[both.id == "q1"].sort_values("method")
    torch.testing.assert_close(
        torch.tensor(both.loglik.tolist()),
        torch.tensor(alone.sort_values("method").loglik.tolist()),
        atol=1e-4,
        rtol=1e-4,
    )
    told = ["ask", str(photo), "w1 w2", "--model", str(folder), "--method"]
    assert CliRunner().invoke(app, [*told, "dpp"]).exit_code == 0
    refused = CliRunner().invoke(app, [*told, "fopru"])
    assert refused.exit_code == 2 and "Methods work that read" in " ".join(refused.output.split())


# The whole table


@pytest.mark.slow  # it imports all of transformers' models
@pytest.mark.skipif(
    not PROVEN.endswith(".".join(hf.__version__.split(".")[:2])),
    reason="the book's table is of the newest transformers",
)
def test_the_book_says_what_is_done_with_each_type():
    page = (REPO / "book" / "models.md").read_text()
    assert coverage.table() in page, "run: " + COMMAND
    tested = ", ".join(f"`{name}`" for name in sorted(others.EXAMPLES))
    assert tested in page.replace("\n", " ")
    found = coverage.coverage()
    assert {name for name, (kind, _) in found.items() if kind == "own"} <= set(Family.registry)
    for name in others.EXAMPLES:
        assert found[name][0] == "generic"


COMMAND = "PYTHONPATH=tests python -c 'import zoo; zoo.write_models()'"
