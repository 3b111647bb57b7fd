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
from fopru.choosing import pruned_images
from fopru.encoding import EncodedImage, run_tower
from fopru.evaluation.asking import answer, inputs_of
from fopru.evaluation.batch import Batch
from fopru.evaluation.settings import Setting
from fopru.families import Family, Grid, UnsupportedModelError, View
from fopru.methods import FoPru
from fopru.pictures import load_image
from fopru.pocket.answers import asked
from fopru.widgets import Explorer
from fopru.widgets.explorer import Everywhere, axes_of, head_maps, page_source
from fopru.widgets.export import export

ROOT = Path(__file__).parents[2]
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


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


@pytest.mark.slow
def test_the_eye_sees_what_the_tower_does(pocket, sessions):
    model, processor = pocket
    axes = tuple(axes_of(Family.of(model)))
    for example in fopru.pocket.sample(n=20, seed=4):
        inputs = inputs_of(processor, [example])
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
        encoded = fopru.encode(model, inputs_of(processor, [example]), [pruner])
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
    for example in fopru.pocket.sample(n=100, seed=6, world=world):
        assert asked(example.question) == example.choices, example.question
    assert asked("who painted it?") is None


def test_other_models_are_refused(tmp_path):
    for family, reason in (("llava_next", "does not run in a page"), ("llava", "WordPiece")):
        with pytest.raises(UnsupportedModelError, match=reason):
            export(tiny.model(family), tiny.processor(family), tmp_path / "none")
    model, processor = fopru.load("pocket", dtype="bfloat16")
    with pytest.raises(ValueError, match="bfloat16"):
        export(model, processor, tmp_path / "none")
    processor.image_processor.resample = Image.Resampling.BILINEAR
    with pytest.raises(UnsupportedModelError, match="resample=2"):
        export(model.float(), processor, tmp_path / "none")
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
    few = fopru.pocket.sample(n=n // 8, seed=8, world="second")  # of up to 900 legal answers
    for i, example in enumerate([*few, *fopru.pocket.sample(n=n - len(few), seed=8)]):
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
            encoded = fopru.encode(model, inputs_of(processor, [example]), [pruner])
            kept[example.id] = pruned_images(pruner, encoded)[0][0].kept.tolist()
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
    pixels = inputs_of(processor, [example])["pixel_values"][0]
    images = processor.image_processor
    mean, std = (torch.tensor(x)[:, None, None] for x in (images.image_mean, images.image_std))
    return ((pixels * std + mean) * 255).round().byte().numpy().tobytes()


@pytest.mark.slow
def test_the_page_reads_words_as_the_tokenizer_does(pocket, node):
    tokenizer = pocket[1].tokenizer
    texts = [e.question for e in fopru.pocket.sample(n=40, seed=9)]
    texts += [
        "",
        "  ",
        "What COLOR\tis\nthe Zebra?!",
        "7 70 007 7x",
        "top-left",
        "ÉTÉ \u2013 …",
        "a" * 300,
    ]
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


# The widget, with the model in its page


PAGE = """<!doctype html><html lang="en" data-content_root="./"><title>t</title>
<link rel="icon" href="data:,"><div id="here"></div>
<script type="module">
import { default as widget } from "./page.js";
const state = await (await fetch("state.json")).json();
const model = { get: (name) => state[name], on() {}, send() {} };
widget.render({ model, el: document.getElementById("here") });
</script></html>"""


@pytest.fixture(scope="module")
def site(pocket, folder, serving, tmp_path_factory):
    """A page with the widget and what it loads, as a site has them; its address."""
    root = tmp_path_factory.mktemp("site")
    examples = [fopru.pocket.sample(task, n=1, seed=3)[0] for task in ("reading", "attributes")]
    widget = Explorer(*pocket, examples, live="vendor")
    names = ("scenes", "methods", "retentions", "axes", "layout_of_maps", "colors", "live")
    state = {name: getattr(widget, name) for name in names}
    (root / "state.json").write_text(json.dumps(state))
    (root / "page.js").write_text(page_source())
    (root / "index.html").write_text(PAGE)
    shutil.copytree(folder, root / "vendor" / "pocket")
    shutil.copytree(
        ROOT / "node_modules" / "onnxruntime-web" / "dist",
        root / "vendor" / "ort",
        ignore=shutil.ignore_patterns(
            "*.map", "*webgpu*", "*jsep*", "*jspi*", "*async*", "*webgl*"
        ),
    )
    with serving(root) as address:
        yield f"{address}/index.html"


@pytest.fixture
def visit(site, browser):
    """Open the page; nothing may go wrong in it, and nothing leave this machine."""
    contexts, problems = [], []
    here = site.removesuffix("index.html")

    def open_page(address="", change=None, width=1280, told=True):
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)

        def guard(route):
            page.asked.append(route.request.url)
            if route.request.url.startswith((here, "data:", "blob:")):
                return route.continue_()
            problems.append(f"asked for {route.request.url}")
            return route.abort()

        context.route("**/*", guard)
        page = context.new_page()
        page.asked = []
        if change:
            change(context)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: told and m.type == "error" and problems.append(m.text))
        page.goto(site + address)
        page.locator(".fopru-explorer").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def opened(page):
    page.locator("summary", has_text="picture of your own").click()
    return page


def heard(page, where, text):
    """Wait until this text stands there."""
    page.wait_for_function(
        "([where, text]) => document.querySelector(where).innerText.includes(text)",
        arg=[where, text],
    )


def ask(page, question, number):
    """Ask, and wait for the scene of this number."""
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function(f"document.querySelector('select').value === '{number}'")
    page.wait_for_function("!document.querySelector('.readings').innerText.includes('…')")


@pytest.mark.slow
def test_the_reader_asks_about_a_picture(visit, pocket, tmp_path):
    model, processor = pocket
    page = opened(visit(width=390))
    example = fopru.pocket.sample("attributes", n=1, seed=21)[0]
    turned = example.image.resize((300, 240)).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[274] = 6  # to be turned back
    turned.save(tmp_path / "turned.png", exif=exif)
    clear = example.image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size).point(lambda v: 255 * (v > 99)))
    clear.save(tmp_path / "clear.png")
    page.get_by_label("Your question").focus()
    page.wait_for_timeout(300)
    assert not any(address.endswith((".wasm", ".onnx")) for address in page.asked)
    for number, (name, note) in enumerate(
        [("turned.png", "300 x 240 pixels"), ("clear.png", "transparent parts are on white")], 2
    ):
        page.get_by_label("Your question").fill("")
        page.get_by_label("Your picture").set_input_files(tmp_path / name)
        page.wait_for_function(
            "t => document.querySelector('.brought').innerText.includes(t)", arg=note
        )
        ask(page, example.question, number)
        mine = replace(example, image=load_image(tmp_path / name), evidence=())
        full = next(iter(answer(model, processor, [mine])))
        assert f"With all 256 tokens: {full}" in page.locator(".question").inner_text()
        table = page.locator("tbody tr")
        for i, pruner in enumerate(
            (FoPru(), FoPru(strategy="row"), fopru.Random(), fopru.DivPrune())
        ):
            with replace(pruner, retention=0.25)(model):
                said = next(iter(answer(model, processor, [mine], max_new_tokens=8)))
            page.wait_for_function(
                f"!document.querySelectorAll('tbody tr')[{i}].innerText.includes('\u2013\\t\u2013')"
            )
            assert table.nth(i).locator("td").nth(2).inner_text().startswith(said)
    assert any(address.endswith(".wasm") for address in page.asked)


@pytest.mark.slow
def test_bad_input_is_said_and_the_last_good_state_stays(visit, tmp_path):
    page = opened(visit())
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (3, 30)).save(tmp_path / "small.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    before = page.locator(".readings").inner_text()
    for name, reason in (
        ("text.png", "text.png: cannot be read as a picture"),
        ("empty.png", "the file is empty"),
        ("small.png", "3 x 30 pixels; at least 8"),
        ("huge.png", "9000 x 9000 pixels are too many"),
    ):
        page.get_by_label("Your picture").set_input_files(tmp_path / name)
        page.wait_for_function(
            "t => document.querySelector('.alert').innerText.includes(t)", arg=reason
        )
    for question, reason in (
        ("  ", "The question is empty"),
        ("zebra yak", "knows no word"),
        ("is <image> red?", "holds <image>"),
    ):
        page.get_by_label("Your question").fill(question)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_function(
            "t => document.querySelector('.alert').innerText.includes(t)", arg=reason
        )
    page.get_by_label("Your question").fill("what color is the Zebra?")
    assert "Not known" in page.locator(".words").inner_text()
    assert page.locator("mark").all_inner_texts() == ["zebra"]
    assert page.locator(".readings").inner_text().splitlines()[:3] == before.splitlines()[:3]


@pytest.mark.slow
def test_where_the_model_cannot_run_what_was_computed_ahead_stays(visit):
    def missing(context):
        context.route("**/eye.onnx", lambda route: route.fulfill(status=404, body=""))

    def other(context):
        context.route("**/mouth.onnx", lambda route: route.fulfill(body="no graph"))

    for change, reason in (
        (lambda context: context.add_init_script("delete window.WebAssembly"), "no WebAssembly"),
        (missing, "is not there (404)"),
        (other, "Can't create a session"),
    ):
        page = visit(change=change, told=False)
        page.get_by_role("button", name="Run the model").click()
        page.wait_for_function("document.querySelector('.alert').innerText")
        assert reason in page.locator(".alert").inner_text()
        assert page.get_by_role("button", name="Run the model").is_enabled()
        page.get_by_role("slider", name="retention").press("ArrowLeft")
        assert "20 %, 51 of 256" in page.locator("output").inner_text()


@pytest.mark.slow
def test_the_reader_chooses_tokens_by_keys_and_the_address_tells_them(visit):
    page = visit()
    page.get_by_role("slider", name="retention").fill("6")
    page.get_by_role("button", name="Choose your own 25 tokens").click()
    assert "No patch is chosen yet" in page.locator(".answer").inner_text()
    patches = page.get_by_role("application", name="patches stay")
    for key in ("ArrowUp", " ", "ArrowRight", " ", "ArrowLeft", " "):
        patches.press(key)
    assert "2 of 256" not in patches.get_attribute("aria-label")
    assert "your own choice: 1 of 256 patches stay" in patches.get_attribute("aria-label")
    assert page.url.endswith("method=own&retention=0.1&kept=121")
    page.get_by_role("button", name="Run the model").click()
    page.wait_for_function("document.querySelectorAll('tbody tr')[4].innerText.includes('%')")
    again = visit("#" + page.url.partition("#")[2])
    assert "your own choice: 1 of 256" in again.locator("figcaption").first.inner_text()
    for address in ("#retention=9&picture=77&method=x&kept=a.-1.900", "#somewhere"):
        assert "FoPru, rank: 64 of 256" in visit(address).locator("figcaption").first.inner_text()


@pytest.mark.slow
def test_what_is_drawn_is_asked_about(visit):
    page = opened(visit())
    page.locator("summary", has_text="Draw one").click()
    page.get_by_label("Color", exact=True).select_option("blue")
    page.get_by_label("Tool", exact=True).select_option("star")
    pad = page.get_by_role("application", name="Drawing")
    pad.press(" ")
    page.get_by_role("button", name="Use this drawing").click()
    heard(page, ".brought", "your drawing")
    ask(page, "what color is the star?", 2)
    assert "With all 256 tokens: blue" in page.locator(".question").inner_text()
