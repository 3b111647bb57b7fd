import json
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import fopru

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    return json.loads(request.param.read_text())["cells"]


def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_no_outputs_are_committed(cells):
    assert all(not c["outputs"] and c["execution_count"] is None for c in code(cells))


def test_cell_ids_are_unique(cells):
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)


def test_the_commit_hook_takes_out_outputs_and_leaves_the_rest(tmp_path):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (options,) = (h["entry"].split()[1:] for h in hooks if h["id"] == "nbstripout")
    copies = [tmp_path / path.name for path in NOTEBOOKS]
    for path, copy in zip(NOTEBOOKS, copies, strict=True):
        ran = json.loads(path.read_text())
        said = {"name": "stdout", "output_type": "stream", "text": ["1"]}
        code(ran["cells"])[0]["outputs"] = [said]
        copy.write_text(json.dumps(ran))
    nbstripout = Path(sys.executable).with_name("nbstripout")
    subprocess.run([nbstripout, *options, *copies], check=True)
    for path, copy in zip(NOTEBOOKS, copies, strict=True):
        assert json.loads(copy.read_text()) == json.loads(path.read_text())


def test_code_comes_in_short_cells(cells):
    assert max(len(cell["source"]) for cell in code(cells)) <= 30
    lines = [sum(map(bool, map(str.strip, cell["source"]))) for cell in code(cells)]
    assert statistics.median(lines) <= 8


def test_little_code_is_open(cells):
    folded = {"hide-input", "hide-cell"}
    shown = [c for c in code(cells) if not folded & set(c["metadata"].get("tags", []))]
    assert sum(bool(line.strip()) for cell in shown for line in cell["source"]) <= 60


def test_folded_code_says_what_it_is_the_code_of(cells):
    """What is folded has a name; one that names a table or a figure names the next one."""
    texts = ["".join(cell["source"]) for cell in cells]
    for i, cell in enumerate(cells):
        if "hide-input" in cell["metadata"].get("tags", []):
            name = cell["metadata"]["mystnb"]["code_prompt_show"]
            following = re.search(r'"((?:Table|Figure) \w+\.\d+)\. ', "".join(texts[i:]))
            if name.startswith(("Code of Table", "Code of Figure")):
                assert name.removesuffix(", continued") == f"Code of {following[1]}"


def test_the_first_code_cell_installs_this_repository_where_it_is_absent(cells):
    *_, guard, install = code(cells)[0]["source"]
    assert guard == 'if importlib.util.find_spec("fopru") is None:\n'
    assert install.strip().removesuffix(" anywidget") == (
        f"%pip install -q git+{PROJECT['urls']['Repository']}"
    )


def test_the_table_of_contents_names_every_notebook():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    listed = {page["file"] for part in toc["parts"] for page in part["chapters"]}
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= listed


def test_the_repositorys_slug_is_the_same_everywhere():
    url = PROJECT["urls"]["Repository"]
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert config["repository"]["url"] == citation["repository-code"] == url
    assert f"git clone {url} " in (ROOT / "book" / "index.md").read_text()


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readmes_code_runs():
    text = (ROOT / "README.md").read_text()
    source = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(source, "README.md", "exec"), names)
    assert names["answer"]
    assert names["run"].last.images[0].n_kept == 64


def test_the_recipe_for_a_method_works():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    source = text.split("```python\n")[1].split("```")[0]
    before = dict(fopru.METHODS)
    try:
        exec(compile(source, "CONTRIBUTING.md", "exec"), {"__name__": "fopru.methods.glance"})
        model, processor = fopru.load("pocket")
        (example,) = fopru.pocket.sample("reading", n=1)
        inputs = processor(images=example.image, text="<image>", return_tensors="pt")
        (image,) = fopru.METHODS["glance"](0.25).prune(model, inputs).images
        assert image.n_kept == image.n_full // 4
    finally:
        fopru.METHODS.clear()
        fopru.METHODS.update(before)
