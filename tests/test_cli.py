import json

import pytest
from PIL import Image
from test_loading import bad_files
from typer.testing import CliRunner

import fopru
from fopru.cli import app

QUESTION = "what number is on the sign?"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    fopru.pocket.sample("reading", n=1, seed=3)[0].image.resize((300, 260)).save(path)
    return path


def fopru_cli(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_ask_prints_both_answers_and_what_they_cost(picture):
    result = fopru_cli("ask", picture, QUESTION)
    assert result.exit_code == 0, result.output
    for word in ("all tokens", "FoPru rank 0.25", "256", "64", "prefill ms"):
        assert word in result.stdout


def test_ask_json_and_overlay(picture, tmp_path):
    overlay = tmp_path / "kept.png"
    result = fopru_cli(
        "ask",
        picture,
        QUESTION,
        "--json",
        "--strategy",
        "row",
        "--retention",
        0.5,
        "--overlay",
        overlay,
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["strategy"] == "row"
    assert found["full"]["visual_tokens"] == 256
    assert found["pruned"]["visual_tokens"] == 128
    assert {"answer", "vision_ms", "prefill_ms", "decode_ms"} <= found["pruned"].keys()
    with Image.open(overlay) as drawn:
        assert drawn.width > 1000
    assert [p.name for p in tmp_path.iterdir()] == ["kept.png"]


def test_retention_one_gives_the_same_answer(picture):
    found = json.loads(fopru_cli("ask", picture, QUESTION, "--retention", 1, "--json").stdout)
    assert found["full"]["answer"] == found["pruned"]["answer"]


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_bad_pictures_end_with_one_sentence(tmp_path):
    for name in bad_files(tmp_path):
        overlay = tmp_path / "out.png"
        refused(fopru_cli("ask", tmp_path / name, QUESTION, "--overlay", overlay), name)
        assert not overlay.exists()


def test_bad_options_end_with_one_sentence(picture, tmp_path):
    refused(fopru_cli("ask", picture, QUESTION, "--retention", 0), "retention=0.0", "(0, 1]")
    refused(fopru_cli("ask", picture, QUESTION, "--retention", "nan"), "retention=nan")
    refused(
        fopru_cli("ask", picture, QUESTION, "--overlay", tmp_path / "no" / "a.png"), "no folder"
    )
    refused(fopru_cli("ask", picture, QUESTION, "--overlay", "a.tiff"), ".png")
    refused(
        fopru_cli("ask", picture, QUESTION, "--model", tmp_path / "nowhere"),
        "--model",
        "nowhere cannot be loaded",
    )


def test_an_animation_is_noted_on_stderr(tmp_path):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = fopru_cli("ask", tmp_path / "a.gif", QUESTION, "--json")
    assert result.exit_code == 0
    assert "first of 2 frames" in result.stderr
    assert json.loads(result.stdout)["pruned"]["visual_tokens"] == 64
