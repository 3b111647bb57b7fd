"""What makes the pocket model is run from a checkout, and is in no wheel."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hatchling.builders.wheel import WheelBuilder
from making.commands import app
from typer.testing import CliRunner

import fopru

ROOT = Path(__file__).parents[2]


def test_the_wheel_carries_the_weights_and_not_what_makes_them():
    builder = WheelBuilder(str(ROOT))
    files = [*builder.recurse_included_files()]
    files += builder.recurse_forced_files(builder.config.get_force_include())
    names = {file.distribution_path for file in files}
    assert {
        "fopru/pocket/scenes.py",
        "fopru/pocket/data/pocket/model.safetensors",
        "fopru/pocket/data/pocket-first/model.safetensors",
        "fopru/pocket/data/pocketbench/test.parquet",
    } <= names
    made_by = {path.name for path in ROOT.glob("data/making/*.py")} - {"__init__.py", "__main__.py"}
    assert made_by and not {name for name in names if "making" in name}
    assert not {f"fopru/pocket/{name}" for name in made_by} & names


def test_nothing_in_the_package_needs_it():
    for path in ROOT.glob("fopru/**/*.py"):
        assert not re.search(r"^\s*(from|import) making", path.read_text(), re.M), path


def test_it_runs_from_the_folder():
    told = [sys.executable, ROOT / "data" / "making", "--help"]
    said = subprocess.run(told, capture_output=True, text=True, check=True).stdout
    assert "python data/making" in said and "train" in said and "score" in said


def refused(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fopru: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_bad_input_ends_in_a_sentence(tmp_path):
    assert "Did you mean 'pocket'?" in refused("score", "--n", 4, "poket")
    assert "world='third'" in refused("score", "--n", 4, "--world", "third")
    assert "must end in .parquet" in refused("score", "--out", tmp_path / "out.csv")
    assert "device='cuda:77'" in refused("train", tmp_path, "--device", "cuda:77")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_card_of_a_few_questions_leaves_out_what_they_do_not_hold(tmp_path):
    out = tmp_path / "scores.parquet"
    two = [str(fopru.pocket.folder()), "pocket"]
    result = CliRunner().invoke(app, ["score", *two, "--n", "4", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "| training 1 |" in result.stdout and "nan" not in result.stdout
    assert set(pd.read_parquet(out).training) == {0, 1}
