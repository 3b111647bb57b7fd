"""What chapters build and claim: against the package, on other models, and under other weights."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tiny
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import fopru
from fopru import checking
from fopru.encoding import EncodedImage
from fopru.families import Grid, View

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SWITCH = 'MODEL = "pocket"'


def chapter(number):
    (path,) = (ROOT / "notebooks").glob(f"{number:02}_*.ipynb")
    return path


def cells(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]


def built(number, *names):
    """Functions as a chapter defines them."""
    path = chapter(number)
    there = {"torch": torch, "np": np}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "%pip" not in source:
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef) and node.name in names:
                    exec(compile(ast.Module([node], []), path.name, "exec"), there)
    return [there[name] for name in names]


def test_chapter_3_builds_the_packages_significance():
    assert fopru.check("significance", *built(3, "significance")).passed


def test_chapter_4_builds_the_packages_strategies():
    names = ("n_keep", "rank", "row")
    for name, mine in zip(names, built(4, *names), strict=True):
        assert fopru.check(name, mine).passed, name


def test_chapter_2_builds_the_packages_method():
    _, significance, rank, row = built(2, "floor_share", "significance", "rank", "row")
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        height, width = (int(torch.randint(2, 12, (), generator=draw)) for _ in range(2))
        n = height * width
        attention = torch.randn(2, n + 1, n + 1, generator=draw).softmax(-1)  # CLS comes first
        scores = significance(attention)
        assert torch.allclose(scores, checking.significance(attention[:, 1:, 1:]), atol=1e-6)
        grid = Grid((View(height, width),))
        image = EncodedImage(None, 0, torch.zeros(n, 1), grid, {}, significance=scores)
        for r in (0.05, 0.29, 0.5, 1.0):
            for strategy, mine in (("rank", rank(scores, r)), ("row", row(scores, r, width))):
                pruner = fopru.FoPru(r, strategy)
                assert torch.equal(pruner.select(image, pruner.n_keep(grid)), mine)


def run(path, old, new):
    """Run a chapter with its source changed; all that it printed."""
    text = path.read_text()
    old, new = (json.dumps(t)[1:-1] for t in (old, new))
    assert old in text
    notebook = nbformat.reads(text.replace(old, new, 1), 4)
    there = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    here = {"metadata": {"path": path.parent}}
    client = NotebookClient(notebook, timeout=300, resources=here)
    client.execute(env={**os.environ, **there})
    outputs = (o for cell in notebook.cells for o in cell.get("outputs", ()))
    return "".join(o.get("text", "") for o in outputs)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder with a LLaVA that is not pocket."""
    folder = tmp_path_factory.mktemp("llava")
    tiny.model().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in CHAPTERS if any(SWITCH in c for c in cells(p))], ids=lambda p: p.stem
)
def test_a_chapter_runs_on_another_model(path, llava):
    run(path, SWITCH, f'MODEL = "{llava}"')


@pytest.mark.slow
def test_a_model_that_cannot_be_had_costs_one_sentence():
    said = run(chapter(15), f"{SWITCH}\n", 'MODEL = "nobody/no-such-llava"\n')
    assert "nobody/no-such-llava cannot be loaded, so this goes on with pocket: " in said
    model, _ = fopru.load("pocket")
    assert f"pocket: {model.num_parameters():,} parameters on " in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3, 16])
def test_claims_are_not_true_of_any_weights(number, tmp_path):
    """The tower's last blocks drawn anew: the chapter's checks notice."""
    model, processor = fopru.load("pocket")
    tower = model.model.vision_tower
    torch.manual_seed(0)
    for name, parameter in tower.named_parameters():
        if "layers.3." in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "weights")
    processor.save_pretrained(tmp_path / "weights")
    path = chapter(number)
    used = next(  # a live figure loads pocket for itself
        u for u in ("fopru.load(MODEL)", 'fopru.load("pocket")') if u in "".join(cells(path))
    )
    with pytest.raises(CellExecutionError, match="AssertionError"):
        run(path, used, f'fopru.load("{tmp_path / "weights"}")')


@pytest.fixture
def book(tmp_path):
    """The book with one short notebook and no front end of its own."""
    for name in ("_config.yml", "_ext", "references.bib"):
        source, target = ROOT / "book" / name, tmp_path / "book" / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    ignored = shutil.ignore_patterns("vendor")
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static", ignore=ignored)
    (tmp_path / "book" / "_toc.yml").write_text("format: jb-book\nroot: notebooks/short\n")
    (tmp_path / "notebooks").mkdir()

    def build(code):
        source = {"cell_type": "code", "id": "b", "metadata": {}, "outputs": []}
        title = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Short\n\n$x$"}
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = {
            "cells": [title, {**source, "execution_count": None, "source": code}],
            "metadata": {"kernelspec": kernel},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (tmp_path / "notebooks" / "short.ipynb").write_text(json.dumps(notebook))
        make = (ROOT / "Makefile").read_text().split("jupyter-book build . ")[1]
        flags = make.split("\n\t@echo")[0].replace("\\\n", " ").split()
        command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", *flags]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return build


@pytest.mark.slow
def test_an_error_in_a_notebook_fails_the_build(book):
    done = book("1 / 0")
    assert done.returncode != 0 and "ZeroDivisionError" in done.stdout + done.stderr


@pytest.mark.slow
def test_without_npm_pages_take_mathjax_and_widgets_from_a_cdn_and_the_build_says_so(
    book, tmp_path
):
    done = book("import ipywidgets\nipywidgets.IntSlider()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pages load MathJax and widgets from CDNs" in done.stdout
    page = (tmp_path / "book" / "_build" / "html" / "notebooks" / "short.html").read_text()
    for name in ("mathjax", "html-manager"):
        (link,) = {part for part in page.split('"') if name in part and part.startswith("http")}
        assert link.startswith(("https://cdn.jsdelivr.net/", "https://unpkg.com/"))
