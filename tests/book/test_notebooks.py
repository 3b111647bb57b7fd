import json
import tomllib
from pathlib import Path

import pytest
import yaml

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


def test_code_comes_in_short_cells(cells):
    lengths = sorted(len(cell["source"]) for cell in code(cells))
    assert lengths[-1] <= 30
    assert lengths[len(lengths) // 2] <= 12


def test_the_first_code_cell_installs_this_repository_in_one_line(cells):
    (line,) = code(cells)[0]["source"]
    assert line.startswith('!{__import__("sys").executable} -c "import fopru" 2>&- || pip install')
    assert line.endswith(f"pip install -q git+{PROJECT['urls']['Repository']}")


def test_the_table_of_contents_names_every_notebook():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    listed = {chapter["file"] for chapter in toc["chapters"]}
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
