"""The live figures: what they tell is what the package says, and a page moves them."""

import json

import pytest
from tiny import image as tiny_image

import fopru
from fopru import widgets
from fopru.evaluation import Example
from fopru.widgets.explorer import page_source


@pytest.fixture(scope="module")
def pocket():
    return fopru.load("pocket")


def drawn(task, n):
    return fopru.pocket.sample(task, n=n, seed=11)


@pytest.fixture(scope="module")
def sink(pocket):
    return widgets.sink(*pocket, drawn("reading", 1)[0])


@pytest.fixture(scope="module")
def paid():
    return widgets.break_even({"7B": fopru.pocket.results("efficiency/cpu-7b")})


def test_without_a_sink_fopru_keeps_what_it_keeps(pocket, sink):
    model, processor = pocket
    (example,) = drawn("reading", 1)
    inputs = fopru.prepare(processor, example.image, example.question)
    for strategy in ("rank", "row"):
        (image,) = fopru.FoPru(0.25, strategy=strategy).prune(model, inputs).images
        assert sink.data["kept"][strategy][0] == image.kept.tolist()
    shares = sink.data["drawn"]
    assert shares == sorted(shares) and shares[0] < 1 / 256 and shares[-1] > 0.5
    assert sink.data["place"] in sink.data["kept"]["rank"][-1]
    assert len(sink.data["received"]) == len(shares) == len(sink.data["strengths"])


def test_times_are_those_of_the_table(paid):
    table = fopru.pocket.results("efficiency/cpu-7b")
    (start,) = paid.data["starts"]
    assert (start["visual"], start["text"], start["answer"]) == (576, 44, 4)
    full = table[table.method == "full"].set_index("stage").seconds
    assert [start[s] for s in ("vision", "prefill", "decode")] == [
        full[s] for s in ("vision", "prefill", "decode")
    ]
    assert 0 < start["overhead"] < 0.01 * start["prefill"]


def test_where_no_question_tells_the_story_it_is_said(pocket):
    none = [Example("q", "words", tiny_image(60, 60), "what?", "this")]
    for figure in (widgets.rank_and_row, widgets.two_duplicates):
        with pytest.raises(ValueError, match="examples: there is none"):
            figure(*pocket, none)


@pytest.mark.slow
def test_stories_are_what_evaluate_says(pocket):
    model, processor = pocket
    figures = [
        widgets.rank_and_row(model, processor, drawn("reading", 40)),
        widgets.order_and_position(model, processor, drawn("documents", 40)),
        widgets.two_duplicates(model, processor, drawn("attributes", 60)),
        widgets.known_and_said(model, processor, drawn("attributes", 60)),
    ]
    for figure in figures:
        assert len(json.dumps([figure.data, figure.caption])) < 60_000
    rows, order, pair, known = (figure.data for figure in figures)
    assert rows["answers"]["rank"][3]["right"] and not rows["answers"]["row"][3]["right"]
    assert sum(rows["held"]) == pytest.approx(1, abs=1e-4)
    assert sorted(rows["order"]) == list(range(256)) and sorted(rows["rows"]) == list(range(16))
    assert order["answers"]["0.1 preserve order"]["right"]
    assert not order["answers"]["0.1 reindex order"]["right"]
    assert not pair["answers"]["none"]["right"] and pair["cosine"] > 0.98
    assert not set(pair["pair"]) & set(pair["rest"])
    told = known["answers"][known["counts"].index(25)]
    assert told["knows"] and not told["right"]
    likeliest = max(told["choices"], key=lambda choice: choice[1])
    assert likeliest[0] == known["answer"]


@pytest.fixture
def show(browser):
    contexts, problems = [], []

    def open_figure(figure, width=700):
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.set_content("<main id=here></main>")
        page.add_style_tag(content=figure._css)
        page.evaluate(
            """async ([source, state]) => {
              const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
              const { default: widget } = await import(url);
              const model = { get: (name) => state[name] };
              widget.render({ model, el: document.getElementById("here") });
            }""",
            [
                page_source(("parts.js", "live.js")),
                {name: getattr(figure, name) for name in ("kind", "data", "caption")},
            ],
        )
        return page

    yield open_figure
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.slow
def test_keys_move_a_figure_and_screen_readers_hear_it(show, sink):
    page = show(sink, width=390)
    slider = page.get_by_role("slider", name="Strength of the sink")
    assert slider.get_attribute("aria-valuetext") == "2"
    before = page.locator(".sentence").inner_text()
    slider.press("Home")
    assert "0 of 64 kept places are others" in page.locator(".sentence").inner_text()
    page.wait_for_function("document.querySelectorAll('canvas')[1].ariaLabel?.includes('64')")
    slider.press("End")
    assert page.locator(".sentence").inner_text() != before
    page.get_by_role("radio", name="row").check()
    assert "row: 64 patches stay" in page.locator(".under").last.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_the_page_counts_as_latency_does(show, paid):
    page = show(paid)
    said = page.locator(".sentence").inner_text()
    start = paid.data["starts"][0]
    base = start["vision"] + 3 * start["decode"]
    full = base + start["prefill"]
    pruned = base + start["prefill"] * (144 + 44) / 620 + start["overhead"]
    share = float(said.split("saves ")[1].split(" %")[0])
    assert share == pytest.approx(100 * (1 - pruned / full), abs=2)  # a slider has stops
    page.get_by_role("slider", name="Overhead of pruning").press("End")
    assert "loses" in page.locator(".sentence").inner_text()
    assert page.locator(".stacks i").count() == 8
