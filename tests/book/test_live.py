"""The model in the page: its files, against the package."""

import base64
import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fopru
from fopru.choosing import choose
from fopru.encoding import EncodedImage, run_tower
from fopru.evaluation.asking import prepare, prompts
from fopru.evaluation.batch import Batch
from fopru.evaluation.settings import Setting
from fopru.families import Family, Grid, UnsupportedModelError, View
from fopru.methods import FoPru
from fopru.pocket.answers import asked
from fopru.widgets.explorer import Everywhere, axes_of, head_maps
from fopru.widgets.export import export

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pocket():
    return fopru.load("pocket")


@pytest.fixture(scope="module")
def folder(pocket, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    export(*pocket, folder)
    return folder


@pytest.fixture(scope="module")
def sessions(folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
        for name in ("eye", "mouth")
    }


def inputs_of(processor, example):
    return prepare(processor, [example], prompts(processor, [example]))


@pytest.mark.slow
def test_the_eye_sees_what_the_tower_does(pocket, sessions):
    model, processor = pocket
    axes = tuple(axes_of(Family.of(model)))
    for example in fopru.pocket.sample(n=20, seed=4):
        inputs = inputs_of(processor, example)
        tower = run_tower(model, inputs, [Everywhere(axes)])
        features, maps = sessions["eye"].run(None, {"pixels": inputs["pixel_values"].numpy()})
        encoded = tower.scored()
        wanted = encoded.images[0].features
        assert (torch.from_numpy(features) - wanted).abs().max() < 1e-4 * wanted.abs().max()
        assert (torch.from_numpy(maps) - head_maps(tower, axes)).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["none", "mass"])
@pytest.mark.parametrize("positions", ["reindex", "preserve"])
def test_the_mouth_speaks_as_the_model_does(pocket, sessions, weights, positions):
    model, processor = pocket
    for i, example in enumerate(fopru.pocket.sample(n=8, seed=5)):
        tokens = (1, 2, 25, 64, 100, 200, 255, 256)[i]
        pruner = FoPru(tokens=tokens, weights=weights, positions=positions)
        encoded = fopru.encode(model, inputs_of(processor, example), [pruner])
        with pruner(model) as session, torch.no_grad():
            inputs = session.arguments(encoded)
            wanted = model(**inputs).logits[0]
        ids, (image,) = inputs["input_ids"][0], inputs.images
        visual = (ids == model.config.image_token_id).nonzero().flatten()
        before, after = ids[: visual[0]], ids[visual[-1] + 1 :]
        places = torch.cat([torch.arange(len(before)), image.kept + len(before)])
        rest = torch.arange(len(after)) + len(before) + image.n_full
        whole = torch.cat([places, rest])
        given = {
            "before": before[None],
            "features": encoded.images[0].features[image.kept][None],
            "after": after[None],
            "positions": (whole if positions == "preserve" else torch.arange(len(whole)))[None],
            "weights": image.mass.log().float() if weights == "mass" else torch.zeros(tokens),
        }
        (logits,) = sessions["mouth"].run(None, {name: x.numpy() for name, x in given.items()})
        assert (torch.from_numpy(logits) - wanted[visual[-1] + 1 :]).abs().max() < 1e-4


@pytest.mark.parametrize("world", ["first", "second", "combinations"])
def test_a_question_names_its_legal_answers(world):
    for example in fopru.pocket.sample(n=200, seed=6, world=world):
        assert asked(example.question) == example.choices, example.question
    assert asked("who painted it?") is None


def test_other_models_are_refused(tmp_path):
    for family, reason in (("llava_next", "does not run in a page"), ("llava", "WordPiece")):
        with pytest.raises(UnsupportedModelError, match=reason):
            export(tiny.model(family), tiny.processor(family), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# The same in JavaScript


@pytest.fixture(scope="module")
def node(folder):
    """The page's own code in node: cases to answers."""
    runtime = ROOT / "node_modules" / "onnxruntime-web" / "dist" / "ort.wasm.min.mjs"
    if shutil.which("node") is None or not runtime.is_file():
        pytest.fail("these tests need node and onnxruntime-web: run `make assets` before them")
    code = ROOT / "fopru" / "widgets" / "model.js"

    def answers(cases):
        command = ["node", ROOT / "tests" / "book" / "live.mjs", code, runtime, folder]
        done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return answers


METHODS = {
    "fopru": FoPru(tokens=25),
    "fopru-row": FoPru(tokens=32, strategy="row"),
    "random": fopru.Random(tokens=25),
    "divprune": fopru.DivPrune(tokens=25),
    "cls": fopru.CLS(tokens=25),
    "full": fopru.Random(1.0),
    "fopru, weighed": FoPru(tokens=25, weights="mass", positions="preserve"),
    "divprune, weighed": fopru.DivPrune(tokens=25, weights="mass", positions="preserve"),
}


def drawn(n):
    """Questions on pictures of many sizes, some as the model knows them."""
    draw = np.random.default_rng(7)
    worlds = [fopru.pocket.sample(n=n // 2, seed=8, world=w) for w in ("first", "second")]
    for i, example in enumerate(e for pair in zip(*worlds, strict=True) for e in pair):
        image = example.image
        if i % 3 == 1:
            image = image.resize(draw.integers(60, 900, 2).tolist(), Image.Resampling.BICUBIC)
        elif i % 3 == 2:
            sides = draw.integers(20, 400, 2).tolist()
            image = Image.fromarray(draw.integers(0, 256, (*sides, 3), dtype=np.uint8))
        yield replace(example, id=str(i), image=image, evidence=())


@pytest.mark.slow
def test_page_and_package_answer_alike(pocket, node):
    model, processor = pocket
    examples = list(drawn(200))
    cases, rows, kept = {}, {}, {}
    for place, (name, pruner) in enumerate(METHODS.items()):
        some = examples[place :: len(METHODS)]
        method, _, weighed = name.partition(", ")
        setting = Setting(name, pruner, pruner.retention)
        with torch.no_grad():
            answered = Batch(model, processor, some, [setting]).rows(setting, max_new_tokens=8)
            rows |= {example.id: row for example, row in zip(some, answered, strict=True)}
        for example in some:
            encoded = fopru.encode(model, inputs_of(processor, example), [pruner])
            kept[example.id] = choose(pruner, encoded)[0][0].kept.tolist()
            cases[example.id] = {
                "kind": "ask",
                "pixels": base64.b64encode(example.image.convert("RGBA").tobytes()).decode(),
                "width": example.image.width,
                "height": example.image.height,
                "question": example.question,
                "right": example.answer,
                "methods": [["random" if method == "full" else method, pruner.tokens or 256]],
                "options": {"weighed": bool(weighed), "placed": bool(weighed)},
            }
    answers = dict(zip(cases, node(list(cases.values())), strict=True))
    for example in examples:
        said, row = answers[example.id], rows[example.id]
        assert base64.b64decode(said["seen"]) == bytes_of(processor, example)
        assert tuple(said["legal"]) == example.choices
        ((_, found),) = said["methods"].items()
        assert found["kept"] == kept[example.id]
        assert found["text"] == row["prediction"]
        assert found["p"] == pytest.approx(math.exp(row["loglik"]), abs=1e-4)
        told = [found[name] for name in ("right", "begins", "formed", "knows")]
        assert told == [row[name] for name in ("exact", "begins", "formed", "choice")]
        likely = dict(found["choices"])
        wrong = max(p for choice, p in likely.items() if choice != example.answer)
        if example.answer in likely:
            margin = math.log(likely[example.answer]) - math.log(wrong)
            assert margin == pytest.approx(row["margin"], abs=1e-3)


def bytes_of(processor, example):
    """What the tower sees of a picture, before it is scaled."""
    pixels = inputs_of(processor, example)["pixel_values"][0]
    images = processor.image_processor
    mean, std = (torch.tensor(x)[:, None, None] for x in (images.image_mean, images.image_std))
    return ((pixels * std + mean) * 255).round().byte().numpy().tobytes()


@pytest.mark.slow
def test_the_page_reads_words_as_the_tokenizer_does(pocket, node):
    tokenizer = pocket[1].tokenizer
    texts = [e.question for e in fopru.pocket.sample(n=40, seed=9)]
    texts += ["", "  ", "What COLOR\tis\nthe Zebra?!", "7 70 007 7x", "top-left", "ÉTÉ – …", "a" * 300]
    ids = np.random.default_rng(0).integers(0, len(tokenizer), (40, 6)).tolist()
    cases = [{"kind": "read", "text": text} for text in texts]
    answers = node(cases + [{"kind": "decode", "ids": some} for some in ids])
    for text, said in zip(texts, answers, strict=False):
        assert said["ids"] == tokenizer(text, add_special_tokens=False).input_ids, text
    assert answers[42]["unknown"] == ["zebra", "!"]
    for some, said in zip(ids, answers[len(texts) :], strict=True):
        assert said == tokenizer.decode(some, skip_special_tokens=True).strip().lower()


@pytest.mark.slow
def test_the_page_says_what_is_wrong_with_a_question(node):
    wrong = {
        " ": "is empty",
        "zebra yak": "knows no word",
        "where is <image> ?": "holds <image>",
        "is </s> there?": "holds </s>",
        "where is the zebra?": None,
    }
    said = node([{"kind": "refuse", "question": question} for question in wrong])
    for reason, sentence in zip(wrong.values(), said, strict=True):
        assert sentence is None if reason is None else reason in sentence


@pytest.mark.slow
def test_the_page_chooses_as_the_package_does(node):
    draw = torch.Generator().manual_seed(0)
    cases, expected = [], []
    for i in range(100):
        height, width = (int(torch.randint(1, 30, (), generator=draw)) for _ in range(2))
        scores = torch.rand(height * width, generator=draw)
        if i % 3 == 0:
            scores = (scores * 4).floor()  # ties
        elif i % 3 == 1:  # ties but for rounding
            scores = (scores * 4).ceil() * (1 + 2**-22 * torch.randn(len(scores), generator=draw))
        k = int(torch.randint(1, height * width + 1, (), generator=draw))
        rows = int(torch.randint(1, height + 1, (), generator=draw))
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0)).tolist()
        told = {"scores": scores.tolist(), "k": k, "width": width, "rows": rows, "order": order}
        cases.append({"kind": "choose", **told})
        grid = Grid((View(height, width),))
        image = EncodedImage(None, 0, torch.zeros(len(scores), 1), grid, {}, significance=scores)
        pruners = ((FoPru(), k), (FoPru(strategy="row"), rows * width), (fopru.Random(), k))
        expected.append([pruner.select(image, k).tolist() for pruner, k in pruners])
    assert node(cases) == expected
