"""From saved folders with real processors to answers, evaluations and measurements."""

import json

import folders
import numpy as np
import pytest
import tiny
import torch
import transformers
import zoo
from transformers import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
from typer.testing import CliRunner

import fopru
from fopru.cli import app
from fopru.evaluation import Example, chat

RETENTION = 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def of(family):
        folders.skip_without(family)
        if family not in made:
            made[family] = folders.save(family, tmp_path_factory.mktemp(family.replace("/", "_")))
        return made[family]

    return of


def asked(processor, *questions):
    """One picture and question a row."""
    chats = [chat(question) for question in questions]
    return processor(
        images=[[tiny.image(60, 40, seed)] for seed in range(len(chats))],
        text=processor.apply_chat_template(chats, add_generation_prompt=True),
        padding=True,
        return_tensors="pt",
    )


def examples():
    picture = tiny.image(60, 40)
    return [Example(f"q{i}", "words", picture, f"w{i} w9", f"w{i + 20}") for i in range(2)]


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_folder_loads_with_its_own_processor_and_pil(family, folder):
    model, processor = fopru.load(folder(family))
    assert model.config.model_type == family.split("/")[0] and not model.training
    named = zoo.example(family).processor
    kind = getattr(transformers, named) if named else PROCESSOR_MAPPING[type(model.config)]
    assert isinstance(processor, kind) and type(processor).__name__ == kind.__name__
    assert type(processor.image_processor).__name__.endswith("Pil")
    expected = zoo.model(family).state_dict()
    found = model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "USER: " in processor.apply_chat_template(chat("w1"), add_generation_prompt=True)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_folder_prepares_what_the_zoo_prepares(family, folder):
    """The zoo writes its inputs by hand, the processor is transformers' own."""
    _, processor = fopru.load(folder(family))
    found = asked(processor, "w1 w2", "w3 w4 w5 w6")
    by_hand = zoo.inputs(
        family,
        [tiny.image(60, 40, seed) for seed in range(2)],
        [f"USER: <image> {text} ASSISTANT:" for text in ("w1 w2", "w3 w4 w5 w6")],
    )
    assert set(found) - {"attention_mask", "labels"} == set(by_hand) - {"attention_mask"}
    for name in set(by_hand) - {"input_ids", "attention_mask"}:
        if found[name].shape == by_hand[name].shape:  # texts around tiles differ
            torch.testing.assert_close(found[name], by_hand[name])
    count = (found["input_ids"] == zoo.IMAGE_TOKEN_ID).sum(1)
    assert torch.equal(count, (by_hand["input_ids"] == zoo.IMAGE_TOKEN_ID).sum(1))


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_generation_from_a_folder(family, folder):
    model, processor = fopru.load(folder(family))
    inputs = asked(processor, "w1 w2", "w3 w4 w5 w6")
    told = dict(max_new_tokens=4, do_sample=False)
    expected = model.generate(**inputs, **told)
    with fopru.FoPru(1.0)(model):
        assert torch.equal(model.generate(**inputs, **told), expected)
    pruner = fopru.FoPru(RETENTION)
    with pruner(model) as run:
        out = model.generate(**inputs, **told)
    assert out.shape[0] == 2
    counts = [(image.n_kept, pruner.n_keep(image.grid)) for image in run.last.images]
    assert all(kept == want for kept, want in counts)
    total = sum(image.n_full for image in run.last.images)
    assert total == int((inputs["input_ids"] == zoo.IMAGE_TOKEN_ID).sum())
    assert sum(kept for kept, _ in counts) <= RETENTION * total


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_evaluation_from_a_folder(family, folder):
    model, processor = fopru.load(folder(family))
    found = fopru.evaluate(
        model, processor, examples(), ["fopru"], [RETENTION], max_new_tokens=2, batch_size=2
    )
    assert sorted(found.method) == ["fopru", "fopru", "full", "full"]
    assert np.isfinite(found.loglik).all() and found.error.isna().all()
    alone = fopru.evaluate(
        model, processor, examples()[1:], ["fopru"], [RETENTION], max_new_tokens=2
    )
    both = found[found.id == "q1"].sort_values("method").loglik
    np.testing.assert_allclose(both, alone.sort_values("method").loglik, atol=1e-4)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_measurement_from_a_folder(family, folder):
    model, processor = fopru.load(folder(family))
    found = fopru.measure(
        model, asked(processor, "w1 w2"), [fopru.FoPru(RETENTION)], new_tokens=3, turns=1
    )
    assert {"full", "fopru"} == set(found.method)
    assert {"vision", "prefill", "decode"} <= set(found.stage)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_processor_that_was_loaded_can_be_saved_and_loaded_again(family, folder, tmp_path):
    model, processor = fopru.load(folder(family))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = fopru.load(tmp_path)[1]
    expected, found = asked(processor, "w1 w2"), asked(again, "w1 w2")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed here")
@pytest.mark.parametrize("family", [*zoo.VIDEO, "internvl", "smolvlm"])
def test_a_video_without_torchvision_is_refused_in_one_sentence(family, folder):
    _, processor = fopru.load(folder(family))
    name = getattr(processor, "video_token", "<video>")
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    with pytest.raises(ImportError, match="videos need torchvision.*pip install torchvision"):
        processor(videos=[[frames]], text=[f"USER: {name} w1"], return_tensors="pt")


def test_with_torchvision_the_video_processor_is_transformers_own(folder, monkeypatch):
    """torchvision does not load beside torch's CPU build: its presence and part are played here."""
    asked_for = []

    class Videos:
        @staticmethod
        def from_pretrained(source, **kwargs):
            asked_for.append((source, kwargs))
            return None

    class Kept:
        @staticmethod
        def get_attributes():
            return ["image_processor", "tokenizer", "video_processor"]

        @staticmethod
        def from_args_and_dict(parts, settings):
            return [type(part).__name__ for part in parts]

        def __init__(self, image_processor, tokenizer, video_processor):
            pass

    config = transformers.AutoConfig.from_pretrained(folder("qwen2_vl"))
    monkeypatch.setattr(fopru.loading, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(fopru.loading, "AutoVideoProcessor", Videos)
    monkeypatch.setattr(fopru.loading, "_kind", lambda *_: Kept)
    parts = fopru.loading._processor(folder("qwen2_vl"), config, {"revision": "main"})
    assert parts[0] == "Qwen2VLImageProcessorPil" and len(parts) == 3
    assert asked_for == [(folder("qwen2_vl"), {"revision": "main"})]


# What cannot be loaded


def refused(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_names_that_no_model_can_have(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(fopru.loading.huggingface_hub, "get_session", never)
    with pytest.raises(ValueError) as error:
        fopru.load("poket")
    refused(error, "model='poket'", "a folder", "slash", "Did you mean 'pocket'?")
    with pytest.raises(ValueError) as error:
        fopru.load("llava-1.5-7b-hf")
    refused(error, "slash")
    assert "Did you mean" not in str(error.value)
    with pytest.raises(ValueError) as error:
        fopru.load(tmp_path)
    refused(error, str(tmp_path), "holds no model (config.json)")
    for name in (tmp_path / "nowhere", "./nowhere/at/all", "a/b/c"):
        with pytest.raises(ValueError) as error:
            fopru.load(name)
        refused(error, str(name), "no such folder")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    calls = []

    class Session:
        def head(self, *args, **kwargs):
            calls.append(args)
            raise ConnectionError

    monkeypatch.setattr(fopru.loading.huggingface_hub, "get_session", Session)
    with pytest.raises(OSError) as error:
        fopru.load("nobody/knows-this-one")
    refused(error, "model='nobody/knows-this-one'", "configuration cannot be loaded")
    assert len(calls) == 1


@pytest.mark.parametrize(
    "missing, words",
    [
        (("model.safetensors",), "its weights cannot be loaded"),
        (
            ("processor_config.json", "preprocessor_config.json"),
            "neither processor_config.json nor preprocessor_config.json",
        ),
        (("preprocessor_config.json",), "its processor cannot be loaded"),
        (("tokenizer.json", "tokenizer_config.json"), "its processor cannot be loaded"),
    ],
)
def test_a_folder_without_one_of_its_files(missing, words, tmp_path):
    folders.save("llava", tmp_path)
    for file in missing:
        (tmp_path / file).unlink()
    with pytest.raises(OSError) as error:
        fopru.load(tmp_path)
    refused(error, str(tmp_path), words)


def test_weights_that_are_damaged(tmp_path):
    folders.save("llava", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError) as error:
        fopru.load(tmp_path)
    refused(error, str(tmp_path), "its weights cannot be loaded")


def test_types_without_an_adapter_are_refused_before_their_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2"}))
    with pytest.raises(fopru.UnsupportedModelError, match="'blip-2', and the generic .* gemma3"):
        fopru.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never-heard"}))
    with pytest.raises(OSError) as error:
        fopru.load(tmp_path)
    refused(error, "its configuration cannot be loaded", "never-heard")


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_folder_can_be_asked_from_the_command_line(family, folder, tmp_path):
    tiny.image(60, 40).save(tmp_path / "a.png")
    told = ["--model", str(folder(family)), "--max-new-tokens", "3", "--json"]
    overlay = ["--overlay", str(tmp_path / "kept.png")]
    result = CliRunner().invoke(app, ["ask", str(tmp_path / "a.png"), "w1 w2", *told, *overlay])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 0 < found["pruned"]["visual_tokens"] < found["full"]["visual_tokens"]
    assert (tmp_path / "kept.png").stat().st_size > 1000
    tokenizer = fopru.load(folder(family))[1].tokenizer
    token = tokenizer.convert_ids_to_tokens(zoo.IMAGE_TOKEN_ID)
    result = CliRunner().invoke(app, ["ask", str(tmp_path / "a.png"), f"{token} w2", *told])
    assert result.exit_code == 2 and f"{token} stands for the picture" in result.stderr


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_is_in_the_cache_loads_without_a_network(family, tmp_path, monkeypatch):
    """As huggingface_hub lays a downloaded model out."""

    class Session:
        def head(self, *args, **kwargs):
            raise ConnectionError

    monkeypatch.setattr(fopru.loading.huggingface_hub, "get_session", Session)
    repository, commit = tmp_path / "models--some--tiny-one", "c" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    folders.save(family, repository / "snapshots" / commit)
    model, processor = fopru.load("some/tiny-one", cache_dir=tmp_path)
    with fopru.FoPru(RETENTION)(model) as run:
        model.generate(**asked(processor, "w1 w2"), max_new_tokens=2)
    assert run.last.images[0].n_kept < run.last.images[0].n_full
