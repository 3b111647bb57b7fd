"""The built pages in a browser; `make book` comes first."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "book" / "_build" / "html"
PAGES = [
    "book/index.html",
    *(f"notebooks/{path.stem}.html" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))),
    *(
        f"book/{path.stem}.html"
        for path in sorted((ROOT / "book").glob("*.md"))
        if path.stem != "index"
    ),
    "search.html",
    "genindex.html",
]
LIVE = (
    "03_attention_significance",
    "04_rank_and_row",
    "05_order_and_position",
    "06_known_and_said",
    "07_redundancy",
    "10_efficiency",
)
"""The chapters with a figure that the reader moves."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(serving):
    if not (SITE / "index.html").is_file():
        pytest.fail("there is no built site: run `make book` before the slow tests")
    with serving(SITE) as address:
        yield address


@pytest.fixture
def visit(address, browser):
    """Open a page; on leaving, nothing may have gone wrong and nothing left this machine."""
    contexts, problems = [], []

    def open_page(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)

        def guard(route):
            if route.request.url.startswith((address, "data:", "blob:")):
                route.continue_()
            else:
                problems.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", guard)
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status} {r.url}"))
        page.goto(f"{address}/{path}", wait_until="load")
        page.wait_for_timeout(300)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_and_fits(visit, path, width, scheme):
    page = visit(path, width, scheme)
    assert page.locator("h1").count() >= 1
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["book/index", "notebooks/explorer", "notebooks/04_rank_and_row"])
def test_everybody_can_read_a_page(visit, path, scheme):
    axe = ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core comes from npm: `npm ci`")
    page = visit(f"{path}.html", scheme=scheme)
    page.locator(".fopru-explorer, .fopru-live").first.wait_for(timeout=20_000)
    page.evaluate(axe.read_text("utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    themes = (".search-button-field", ".theme-switch-button")  # named otherwise than they read
    faults = [
        (fault["id"], node["target"], node["html"])
        for fault in found
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical") and node["target"][0] not in themes
    ]
    assert faults == []


def test_the_first_page_shows_the_thing_itself(visit):
    page = visit("book/index.html")
    slider = page.get_by_role("slider", name="retention")
    slider.wait_for(timeout=20_000)
    assert slider.evaluate("input => input.getBoundingClientRect().bottom") < 800
    assert page.locator("dl.numbers dt").count() == 3
    assert "right" in page.locator(".fopru-explorer .says").inner_text()
    row = page.locator(".fopru-explorer tbody tr", has_text="random")
    assert "wrong" in row.inner_text() or "no legal" in row.inner_text()
    shared = page.locator("meta[property='og:image']").get_attribute("content")
    assert (SITE / "_static" / shared.rpartition("/")[2]).stat().st_size < 60_000
    assert "visual tokens" in page.locator("meta[name=description]").get_attribute("content")


@pytest.mark.parametrize("chapter", LIVE)
def test_a_live_figure_moves_without_a_kernel(visit, chapter):
    page = visit(f"notebooks/{chapter}.html", width=390, scheme="dark")
    figure = page.locator(".fopru-live")
    figure.wait_for(timeout=20_000)
    before = figure.inner_text()
    assert figure.locator(".sentence").inner_text()
    figure.locator("input").last.focus()
    page.keyboard.press("ArrowLeft" if chapter.startswith("10") else "Space")
    if figure.inner_text() == before:
        figure.locator("input").first.press("ArrowLeft")
    assert figure.inner_text() != before
    state = page.locator("script[type='application/vnd.jupyter.widget-state+json']")
    assert len(state.inner_text()) < 120_000


def test_formulas_are_set(visit):
    page = visit("notebooks/02_from_scratch.html")
    page.wait_for_selector("mjx-container", timeout=10_000)
    assert page.locator("mjx-container").count() > 10
    assert page.locator("mjx-merror").count() == 0


def test_search_finds_the_row_strategy(visit):
    page = visit("search.html?q=row+strategy")
    page.wait_for_selector("ul.search li a", timeout=10_000)
    found = page.locator("ul.search li a").all_inner_texts()
    assert any("Quickstart" in text for text in found)


def test_the_explorer_works_without_a_kernel(visit):
    page = visit("notebooks/explorer.html", width=390, scheme="dark")
    slider = page.get_by_role("slider", name="retention")
    slider.wait_for(timeout=20_000)
    caption = page.locator(".fopru-explorer figcaption").first
    assert "FoPru, rank: 64 of 256 patches stay, 3 of 3 of the evidence" in caption.inner_text()
    kept = page.locator(".fopru-explorer canvas").first
    page.wait_for_function(
        "document.querySelector('.fopru-explorer canvas').getContext('2d')"
        ".getImageData(168, 168, 1, 1).data[3] === 255"
    )
    before = kept.evaluate("canvas => canvas.toDataURL()")
    answer = page.locator(".fopru-explorer .answer")
    assert "“294”: right. It knows the answer" in answer.inner_text()
    for _ in range(4):
        slider.press("ArrowLeft")
    assert "FoPru, rank: 25 of 256 patches stay" in caption.inner_text()
    assert kept.evaluate("canvas => canvas.toDataURL()") != before
    assert "“226”" in answer.inner_text() and "“294”" not in answer.inner_text()
    page.get_by_role("radio", name="divprune").check()
    assert "“294”" in answer.inner_text()
    page.get_by_role("radio", name="FoPru, rank").check()
    page.get_by_role("combobox").first.select_option("2")
    for _ in range(5):
        slider.press("ArrowLeft")
    assert ": begins right, runs on. It knows the answer" in answer.inner_text()
    page.get_by_role("combobox").first.select_option("4")
    assert "bar" in page.locator(".fopru-explorer .question").inner_text()


def test_the_explorer_runs_the_model_when_asked(visit):
    page = visit("notebooks/explorer.html")
    loaded = []
    page.on("request", lambda request: loaded.append(request.url.rpartition("/")[2]))
    run = page.get_by_role("button", name="Run the model in this page")
    run.wait_for(timeout=20_000)
    assert not [name for name in loaded if name.endswith((".wasm", ".onnx"))]
    run.click()
    page.wait_for_selector(".fopru-explorer .bar.right", timeout=60_000)
    assert {"ort-wasm-simd-threaded.wasm", "eye.onnx", "mouth.onnx"} <= set(loaded)
    assert "294" in page.locator(".fopru-explorer .bar.right").inner_text()


def test_the_colab_button_opens_the_notebook(visit):
    page = visit("notebooks/01_quickstart.html")
    links = page.eval_on_selector_all("a[href*='colab']", "links => links.map(a => a.href)")
    assert links
    assert links[0].endswith("/fopru/fopru/blob/main/notebooks/01_quickstart.ipynb")


def test_links_inside_the_site_resolve(visit, address):
    todo, seen = ["book/index.html"], set()
    page = visit("book/index.html")
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert (SITE / path).is_file(), path
        if path.endswith(".html"):
            page.goto(f"{address}/{path}", wait_until="domcontentloaded")
            for link in page.eval_on_selector_all("a[href]", "links => links.map(a => a.href)"):
                bare = link.split("#")[0].split("?")[0]
                if bare.startswith(address) and bare.rstrip("/") != address:
                    todo.append(bare.removeprefix(address + "/"))
    assert set(PAGES) - {"search.html", "genindex.html"} <= seen


def test_pages_stay_small():
    assert all(p.stat().st_size < 1_500_000 for p in SITE.rglob("*.html"))
    assert sum(p.stat().st_size for p in SITE.rglob("*") if p.is_file()) < 60_000_000
