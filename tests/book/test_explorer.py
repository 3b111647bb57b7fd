"""The explorer: its Python half, and its page's half in a browser, without a built site."""

import base64
import io
import json
import subprocess
import sys

import folders
import pytest
import tiny
import torch
from PIL import Image

import fopru
from fopru.evaluation import Example
from fopru.evaluation.asking import inputs_of
from fopru.plots import LOOKS
from fopru.widgets import Explorer
from fopru.widgets.explorer import RETENTIONS, packed, page_source


@pytest.fixture(scope="module")
def pocket():
    return fopru.load("pocket")


@pytest.fixture(scope="module")
def examples():
    return [fopru.pocket.sample(task, n=1, seed=3)[0] for task in ("reading", "charts")]


@pytest.fixture(scope="module")
def made(pocket, examples):
    return Explorer(*pocket, examples, ["fopru", "fopru-row", "random", "divprune"])


@pytest.fixture
def explorer(made):
    scenes, made.sent = list(made.scenes), []
    made.send = made.sent.append
    yield made
    made.scenes = scenes


def told(explorer, **message):
    explorer._message(explorer, message, [])
    return explorer.sent.pop()


def unpacked(scene):
    return torch.frombuffer(bytearray(base64.b64decode(scene["maps"])), dtype=torch.float32)


def test_importing_fopru_needs_no_anywidget():
    code = "import sys, fopru; assert 'anywidget' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_state_is_what_pruners_and_evaluate_say(explorer, pocket, examples):
    model, processor = pocket
    example, scene = examples[0], explorer.scenes[0]
    question = [{"type": "image"}, {"type": "text", "text": example.question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    inputs = processor(images=example.image, text=prompt, return_tensors="pt")
    blocks, heads, axes = explorer.layout_of_maps
    maps = unpacked(scene).view(blocks, heads, axes, -1)
    (image,) = fopru.FoPru(0.25).prune(model, inputs).images
    assert torch.equal(maps[-1, 0, explorer.axes.index(scene["criterion"])], image.significance)
    (image,) = fopru.CLS(layer=1).prune(model, inputs).images
    assert torch.equal(maps[1, 0, explorer.axes.index("cls")], image.significance)
    assert torch.allclose(maps[:, 1:].mean(1), maps[:, 0], atol=1e-7)
    rows = fopru.evaluate(model, processor, [example], ["divprune"], [0.25], max_new_tokens=8)
    stop = RETENTIONS.index(0.25)
    for method, row in zip(("full", "divprune"), rows.itertuples(), strict=True):
        said = scene["answers"][method][stop if method == "divprune" else 0]
        assert said["text"] == row.prediction and said["right"] == row.exact
        assert (said["begins"], said["formed"]) == (row.begins, row.formed)
        assert said["knows"] == row.choice
        assert said["p"] == pytest.approx(torch.tensor(row.loglik).exp().item(), rel=1e-4)


def test_colours_are_those_of_the_books_figures(explorer):
    assert {m["name"]: m["color"] for m in explorer.methods} == {
        name: LOOKS[name][0] for name in ("fopru", "fopru-row", "random", "divprune")
    }


def test_state_is_small_and_plain(explorer):
    assert len(json.dumps(explorer.scenes)) < 100_000 * len(explorer.scenes)


def test_a_kernel_answers_for_any_tokens(explorer, examples):
    stop = RETENTIONS.index(0.25)
    kept = explorer.scenes[1]["kept"]["divprune"][stop]
    said = told(explorer, kind="ask", token=7, scene=1, kept=kept)
    known = explorer.scenes[1]["answers"]["divprune"][stop]
    assert said["kind"] == "said" and said["token"] == 7 and said["text"] == known["text"]
    assert said.pop("p") == pytest.approx(known.pop("p"), rel=1e-4)
    assert known.items() <= said.items() and isinstance(known["knows"], bool)
    for kept in ([3, 2], [], [0, 256], ["a"]):
        assert told(explorer, kind="ask", token=8, scene=1, kept=kept)["kind"] == "error"


def picture(mode, size):
    data = io.BytesIO()
    Image.new(mode, size, "red").save(data, format="png")
    return base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize(("mode", "size"), [("RGBA", (300, 120)), ("L", (90, 200))])
def test_a_picture_of_ones_own(explorer, mode, size):
    said = told(explorer, kind="own", image=picture(mode, size), question="what color is it?")
    assert said == {"kind": "added", "scene": 2}
    scene = explorer.scenes[2]
    shown = Image.open(io.BytesIO(base64.b64decode(scene["image"].split(",")[1])))
    assert shown.size == (224, 224) and shown.mode == "RGB"
    assert scene["answer"] == scene["answers"]["full"][0]["text"]
    assert scene["evidence"] == [] and scene["assumed"]
    answers = [a for found in scene["answers"].values() for a in found]
    assert all(a["knows"] is None and a["formed"] is None for a in answers)
    assert not explorer.scenes[0]["assumed"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"image": "%%", "question": "what?"}, "did not arrive whole"),
        ({"image": "aGVsbG8=", "question": "what?"}, "your picture: cannot be read as a picture"),
        ({"image": picture("RGB", (2, 2)), "question": "what?"}, "2 x 2 pixels; at least 8"),
        ({"image": picture("RGB", (20, 20)), "question": " "}, "question=' '"),
    ],
)
def test_what_cannot_be_shown_is_said(explorer, message, reason):
    said = told(explorer, kind="own", **message)
    assert said["kind"] == "error" and reason in said["text"] and "/tmp" not in said["text"]
    assert len(explorer.scenes) == 2


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        (torch.full((1, 2, 3, 4), torch.nan), "24 values that are not finite"),
        (torch.zeros(1, 2, 3, 0), r"shape \(1, 2, 3, 0\): there are no visual tokens"),
    ],
)
def test_maps_that_show_nothing(maps, reason):
    with pytest.raises(ValueError, match=reason):
        packed(maps)


def test_bad_arguments(pocket, examples):
    with pytest.raises(ValueError, match="examples="):
        Explorer(*pocket, [])
    with pytest.raises(ValueError, match=r"methods='fopro'.*Did you mean 'fopru'"):
        Explorer(*pocket, examples, ["fopro"])
    with pytest.raises(ValueError, match="methods='fastv'"):
        Explorer(*pocket, examples, ["fastv"])
    with pytest.raises(ValueError, match="several parts"):
        Explorer(
            tiny.model("llava_next"),
            tiny.processor("llava_next"),
            [Example("a", "b", Image.new("RGB", (40, 30)), "what", "that")],
        )


@pytest.fixture
def page(browser, explorer):
    """The widget's page's half on the widget's state, and what it sends."""
    context = browser.new_context(viewport={"width": 700, "height": 900})
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    names = ("scenes", "methods", "retentions", "axes", "layout_of_maps", "colors", "live")
    state = {name: getattr(explorer, name) for name in names}
    page.set_content("<div id=here></div>")
    page.evaluate(
        """async ([source, state]) => {
          const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
          window.explorer = await import(url);
          window.sent = [];
          window.heard = {};
          window.state = state;
          const model = {
            get: (name) => state[name],
            on: (name, listener) => { window.heard[name] = listener; },
            send: (message) => window.sent.push(message),
          };
          explorer.default.render({ model, el: document.getElementById("here") });
        }""",
        [page_source(), state],
    )
    page.wait_for_timeout(200)
    yield page
    context.close()
    assert problems == []


@pytest.mark.slow
def test_the_page_keeps_what_the_pruners_keep(page, pocket, examples):
    model, processor = pocket
    prompt = processor.apply_chat_template(
        fopru.evaluation.chat(examples[0].question), add_generation_prompt=True
    )
    inputs = processor(images=examples[0].image, text=prompt, return_tensors="pt")
    slider, table = page.locator("input[type=range]"), page.locator("tbody tr")
    for stop in (0, 7, 10, 17):
        slider.fill(str(stop))
        for i, method in enumerate(("fopru", "fopru-row", "random", "divprune")):
            (image,) = fopru.METHODS[method](RETENTIONS[stop]).prune(model, inputs).images
            assert table.nth(i).locator("td").first.inner_text() == str(image.n_kept)
            page.locator("input[type=radio]").nth(i).check()
            assert f"{image.n_kept} of 256 patches stay" in (
                page.locator("figcaption").first.inner_text()
            )


@pytest.mark.slow
def test_what_is_said_and_what_is_known_stand_beside_each_other(page):
    yes, no = "It knows the answer: ", "It does not know the answer: "
    none = "The question names no legal answers"
    cases = [  # right, begins, formed, knows
        (True, True, True, True, "right", "yes", yes),
        (True, True, None, None, "right", "no choices", none),
        (False, True, False, True, "begins right, runs on", "yes", yes),
        (False, True, None, None, "begins right, runs on", "no choices", none),
        (False, True, True, False, "wrong", "no", no),
        (False, False, True, False, "wrong", "no", no),
        (False, False, None, None, "wrong", "no choices", none),
        (False, False, False, True, "no legal answer", "yes", yes),
    ]
    stop, slider = RETENTIONS.index(0.25), page.get_by_role("slider", name="retention")
    row = page.locator("tbody tr").first.locator("td")
    for *said, verdict, known, whether in cases:
        answer = dict(zip(("right", "begins", "formed", "knows"), said, strict=True))
        page.evaluate(
            "([stop, said]) => Object.assign(state.scenes[0].answers.fopru[stop], said)",
            [stop, {"text": "84 lamp", **answer}],
        )
        slider.fill("0")
        slider.fill(str(stop))
        assert row.nth(2).inner_text() == f"84 lamp {verdict}"
        assert row.nth(3).inner_text() == known
        assert f"“84 lamp”: {verdict}. {whether}" in page.locator(".answer").inner_text()


@pytest.mark.slow
def test_dots_are_where_the_answer_is_known(page):
    found = page.evaluate(
        """() => {
          const { answers } = state.scenes[0];
          const known = state.methods.flatMap(({ name }) => answers[name].filter((a) => a.knows));
          return [known.length, document.querySelectorAll("circle[fill]").length];
        }"""
    )
    assert found[0] == found[1] > 18


@pytest.mark.slow
def test_keys_move_the_slider_and_screen_readers_hear_it(page):
    slider = page.get_by_role("slider", name="retention")
    assert slider.get_attribute("aria-valuetext") == "25 %, 64 of 256 tokens"
    before = page.evaluate("document.querySelector('canvas').toDataURL()")
    slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "20 %, 51 of 256 tokens"
    assert page.evaluate("document.querySelector('canvas').toDataURL()") != before
    page.get_by_role("radio", name="random").press("Space")
    patches = page.get_by_role("application", name="patches stay")
    assert "random: 51 of 256" in patches.get_attribute("aria-label")


@pytest.mark.slow
def test_other_maps_want_a_kernel_and_get_one(page):
    page.locator("summary", has_text="Which attention?").click()
    page.get_by_label("Head").select_option("1")
    assert "needs a kernel" in page.locator(".answer").inner_text()
    assert page.locator(".yours").is_hidden()
    page.evaluate("heard['msg:custom']({ kind: 'live' })")
    assert page.locator(".yours").is_visible()
    page.get_by_label("Head").select_option("2")
    page.wait_for_function("sent.length > 1")
    asked = page.evaluate("sent.at(-1)")
    assert asked["kind"] == "ask" and len(asked["kept"]) == 64
    reply = {"kind": "said", "token": asked["token"], "text": "<b>12", "p": 0.25}
    reply |= {"right": False, "begins": False, "formed": False, "knows": True}
    page.evaluate("(reply) => heard['msg:custom'](reply)", {**reply, "token": asked["token"] - 1})
    assert "is being asked" in page.locator(".answer").inner_text()
    page.evaluate("(reply) => heard['msg:custom'](reply)", reply)
    assert "“<b>12”" in page.locator(".answer").inner_text()
    page.evaluate("heard['msg:custom']({ kind: 'error', text: 'no such thing' })")
    assert page.get_by_role("alert").inner_text() == "no such thing"


@pytest.mark.slow
def test_a_picture_is_sent_and_shown(page, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "mine.png")
    page.evaluate("heard['msg:custom']({ kind: 'live' })")
    page.locator("summary", has_text="picture of your own").click()
    page.get_by_label("Your picture").set_input_files(tmp_path / "mine.png")
    page.get_by_label("Your question").fill("what?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("sent.at(-1).kind === 'own'")
    sent = page.evaluate("sent.at(-1)")
    assert sent["question"] == "what?"
    assert base64.b64decode(sent["image"]) == (tmp_path / "mine.png").read_bytes()
    page.evaluate(
        """() => {
          state.scenes = [...state.scenes, { ...state.scenes[0], question: "<i>what?" }];
          heard["change:scenes"]();
        }"""
    )
    assert "<i>what?" in page.locator(".question").inner_text()


def test_a_file_can_be_added_and_what_is_wrong_with_it_is_said(explorer, tmp_path):
    Image.new("RGB", (120, 90), "red").save(tmp_path / "photo.png")
    explorer.add(str(tmp_path / "photo.png"), "what color is it?", "red")
    assert explorer.scenes[2]["answer"] == "red"
    with pytest.raises(ValueError, match="nowhere.jpg: no such file"):
        explorer.add("nowhere.jpg", "what color is it?")


def test_without_anywidget_the_extra_is_named():
    code = "import sys; sys.modules['anywidget'] = None; from fopru.widgets import Explorer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ModuleNotFoundError: fopru.widgets needs anywidget, which is not installed: "
        'pip install "fopru[widgets]".'
    )


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5", "gemma4", "idefics3"])
def test_models_of_other_families(family, tmp_path):
    """Also where blocks attend within windows; a picture that is cut into parts is refused."""
    model, processor = fopru.load(folders.save(family, tmp_path))
    asked = [Example("q", "words", tiny.image(60, 40), "w1 w2", "w3")]
    if family == "idefics3":
        with pytest.raises(ValueError, match="sees a picture in several parts"):
            Explorer(model, processor, asked, ["fopru"])
        return
    (scene,) = Explorer(model, processor, asked, ["fopru"]).scenes
    encoded = fopru.encode(model, inputs_of(processor, asked), [fopru.FoPru()])
    (image,) = encoded.images
    maps = unpacked(scene).view(-1, len(image.features))
    received = image.tap("received").float()
    assert (maps - received).abs().amax(1).min() < 1e-6  # what FoPru ranks by is among them
