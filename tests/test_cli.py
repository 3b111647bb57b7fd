import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from test_loading import bad_files
from typer.testing import CliRunner

import fopru
from fopru.cli import app
from fopru.pocket import pocketbench

QUESTION = "what number is on the sign?"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    fopru.pocket.sample("reading", n=1, seed=3)[0].image.resize((300, 260)).save(path)
    return path


def fopru_cli(*arguments, **options):
    return CliRunner().invoke(app, [str(a) for a in arguments], **options)


def test_ask_prints_both_answers_and_what_they_cost(picture):
    result = fopru_cli("ask", picture, QUESTION)
    assert result.exit_code == 0, result.output
    for word in ("all tokens", "fopru 0.25", "256", "64", "prefill", "total", "times in all"):
        assert word in result.stdout
    answer = json.loads(fopru_cli("ask", picture, QUESTION, "--json").stdout)["full"]["answer"]
    assert answer in result.stdout  # in a console of 80 columns, too
    assert result.stderr == ""


def test_ask_json_and_overlay(picture, tmp_path):
    overlay = tmp_path / "kept.png"
    result = fopru_cli(
        "ask",
        picture,
        QUESTION,
        "--json",
        "--method",
        "fopru-row",
        "--retention",
        0.5,
        "--overlay",
        overlay,
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["method"] == "fopru-row"
    assert found["full"]["visual_tokens"] == 256
    assert found["pruned"]["visual_tokens"] == 128
    for way in (found["full"], found["pruned"]):
        parts = sum(way[f"{stage}_ms"] for stage in ("vision", "prefill", "decode"))
        assert way["total_ms"] == pytest.approx(parts, abs=0.1)
    speed = found["full"]["total_ms"] / found["pruned"]["total_ms"]
    assert found["times_faster"]["total_ms"] == pytest.approx(speed, abs=0.01)
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
    told = ("ask", picture, QUESTION, "--tokens")
    refused(fopru_cli(*told, 9, "--retention", 0.5), "retention=0.5 and tokens=9: give one")
    refused(fopru_cli(*told, 300), "tokens=300: a picture of 256 visual tokens in 1 view(s)")
    refused(fopru_cli(*told, 9, "--method", "fastv"), "tokens=9: methods inside")
    refused(
        fopru_cli("ask", picture, QUESTION, "--overlay", tmp_path / "no" / "a.png"), "no folder"
    )
    refused(fopru_cli("ask", picture, QUESTION, "--overlay", "a.tiff"), ".png")
    ask = ("ask", picture, QUESTION)
    refused(fopru_cli(*ask, "--model", tmp_path / "nowhere"), "model=", "no such folder")
    refused(fopru_cli(*ask, "--model", "poket"), "model='poket'", "Did you mean 'pocket'?")
    refused(fopru_cli(*ask, "--method", "divprun"), "method='divprun'", "Did you mean 'divprune'?")
    refused(fopru_cli(*ask, "--method", "fastv", "--weights", "mass"), "weights='mass'", "FastV")
    refused(fopru_cli(*ask, "--device", "gpu"), "device='gpu'", "it has cpu")
    refused(fopru_cli(*ask, "--device", "cuda:77"), "device='cuda:77'")
    refused(fopru_cli("ask", picture, " "), "question=' '", "ask something")
    refused(fopru_cli("ask", picture, "what is in <image>?"), "<image> stands for the picture")
    (tmp_path / "empty").mkdir()
    refused(fopru_cli(*ask, "--model", tmp_path / "empty"), "holds no model")


def test_every_command_says_in_one_line_which_model_it_cannot_load(picture, tmp_path):
    out = tmp_path / "out.parquet"
    for command in (
        ("ask", picture, QUESTION),
        ("evaluate", "reading", "--limit", 1, "--out", out),
        ("measure",),
    ):
        refused(fopru_cli(*command, "--model", "poket"), "Did you mean 'pocket'?")


@pytest.mark.parametrize(
    "method",
    [n for n, cls in sorted(fopru.METHODS.items()) if cls.budgeted and "view" in cls.shares],
)
def test_every_method_can_be_asked(picture, method):
    if "view" not in fopru.METHODS[method].shares:
        refused(fopru_cli("ask", picture, QUESTION, "--method", method), "takes videos")
        return
    result = fopru_cli(
        "ask", picture, QUESTION, "--method", method, "--json", "--max-new-tokens", 2
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 0 < found["pruned"]["visual_tokens"] < found["full"]["visual_tokens"] == 256
    assert found["method"] == method


def test_weights_positions_and_dtypes_reach_the_model(picture):
    def said(*options):
        result = fopru_cli("ask", picture, QUESTION, "--retention", 0.05, "--json", *options)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    model, processor = fopru.load("pocket")
    (prompt,) = processor.apply_chat_template(
        [fopru.evaluation.chat(QUESTION)], add_generation_prompt=True
    )
    image = fopru.pictures.load_image(picture)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    for options in ({"weights": "mass"}, {"weights": "restore"}, {"positions": "preserve"}):
        with fopru.FoPru(0.05, **options)(model):
            out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        expected = processor.decode(
            out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        ((name, value),) = options.items()
        assert said(f"--{name}", value)["pruned"]["answer"] == expected.strip()
    assert said("--dtype", "bfloat16", "--device", "cpu")["pruned"]["visual_tokens"] == 12


def test_a_picture_of_what_was_kept_is_drawn_for_methods_without_scores_too(picture, tmp_path):
    overlay = tmp_path / "kept.png"
    result = fopru_cli("ask", picture, QUESTION, "--method", "random", "--overlay", overlay)
    assert result.exit_code == 0, result.output
    with Image.open(overlay) as drawn:
        assert 500 < drawn.width < 1000
    overlay.unlink()
    result = fopru_cli("ask", picture, QUESTION, "--method", "fastv", "--overlay", overlay)
    assert result.exit_code == 0 and overlay.exists()


def test_words_that_the_model_does_not_know_are_named(picture):
    result = fopru_cli("ask", picture, "is the elephant wearing a hat?", "--json")
    assert result.exit_code == 0
    assert "does not know the words elephant, wearing, hat." in result.stderr
    json.loads(result.stdout)


def test_a_picture_on_standard_input(picture):
    result = fopru_cli("ask", "-", QUESTION, "--json", input=Path(picture).read_bytes())
    assert result.exit_code == 0, result.output
    expected = json.loads(fopru_cli("ask", picture, QUESTION, "--json").stdout)
    assert json.loads(result.stdout)["pruned"]["answer"] == expected["pruned"]["answer"]
    refused(fopru_cli("ask", "-", QUESTION, input=b""), "-: cannot be read", "the file is empty")


def test_help_versions_and_mistyped_names_do_not_wait_for_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from fopru.cli import app\n"
        "found = CliRunner().invoke(app, sys.argv[1:])\n"
        "print(found.exit_code, {'torch', 'transformers'} & sys.modules.keys(), found.output)"
    )
    for arguments, words in (
        (["--help"], "0 set()"),
        (["--version"], f"0 set() fopru {fopru.__version__}"),
        (["aks"], "2 set()"),
        *[([command, "--help"], "0 set()") for command in ("ask", "evaluate", "measure")],
        (["ask", "nowhere.png", "what?"], "2 set() fopru: nowhere.png: no such file."),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
        assert words in done.stdout.decode(), done.stderr.decode()
    done = subprocess.run([sys.executable, "-m", "fopru", "--version"], capture_output=True)
    assert done.stdout.decode().strip() == f"fopru {fopru.__version__}"


def test_what_help_says_of_a_command_is_what_the_command_says():
    from fopru.cli import COMMANDS

    for name, text in COMMANDS.items():
        assert text in " ".join(fopru_cli(name, "--help").stdout.split())


def test_a_console_that_lacks_letters_gets_the_answer_all_the_same(picture):
    done = subprocess.run(
        [sys.executable, "-m", "fopru", "ask", str(picture), "日本語 number?"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert b"all tokens" in done.stdout


def test_an_animation_is_noted_on_stderr(tmp_path):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = fopru_cli("ask", tmp_path / "a.gif", QUESTION, "--json")
    assert result.exit_code == 0
    assert "first of 2 frames" in result.stderr
    assert json.loads(result.stdout)["pruned"]["visual_tokens"] == 64


def test_evaluate_writes_a_table_and_goes_on_from_its_file(tmp_path):
    out = tmp_path / "found.parquet"
    options = ("--limit", 4, "--retention", 0.25, "--seeds", 2, "--out", out)
    result = fopru_cli("evaluate", "reading", "charts", *options)
    assert result.exit_code == 0, result.output
    found = pd.read_parquet(out)
    assert len(found) == 2 * 4 * (1 + 1 + 1 + 2)
    assert json.loads(out.with_suffix(".json").read_text())["torch"]
    assert "fopru-row" in result.stdout
    result = fopru_cli("evaluate", "reading", "charts", *options, "--blind", "grey")
    assert result.exit_code == 0, result.output
    assert len(pd.read_parquet(out)) == len(found) + 8


@pytest.mark.slow
def test_two_processes_give_the_same_table_as_one(tmp_path):
    folder = Path(sys.executable).parent
    options = ["--limit", "9", "--retention", "0.25", "--seeds", "2", "--batch-size", "4"]
    tables = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.parquet"
        launch = [folder / "torchrun", "--nproc-per-node", str(processes)]
        asked = [folder / "fopru", "evaluate", "reading", "presence", *options, "--out", out]
        done = subprocess.run(
            [*launch, *asked],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("answers: ") == 1
        tables.append(pd.read_parquet(out))
    assert len(tables[0]) == 2 * 9 * (1 + 1 + 1 + 2)
    measured = ["loglik", "kl"]
    pd.testing.assert_frame_equal(*(table.drop(columns=measured) for table in tables))
    assert (tables[0][measured] - tables[1][measured]).abs().max().max() < 1e-4


def test_evaluate_on_questions_of_ones_own(tmp_path, picture):
    lines = [
        {"image": str(picture), "question": QUESTION, "answer": "12"},
        {"image": "nowhere.png", "question": QUESTION, "answer": "12"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "found.parquet"
    result = fopru_cli("evaluate", tmp_path / "mine.jsonl", "--method", "cls", "--out", out)
    assert result.exit_code == 1
    assert "nowhere.png: no such file" in result.stderr
    assert pd.read_parquet(out).error.notna().sum() == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("readin", "--out", "x.parquet"), "task 'readin': .* Did you mean 'reading'?"),
        (
            ("counting", "--out", "x.parquet", "--split", "combinations"),
            "task 'counting': .* split 'combinations', one of presence,",
        ),
        (("reading", "--out", "x.csv"), r"out x.csv: must end in \.parquet"),
        (("none.jsonl", "--out", "x.parquet"), r"there is no file none\.jsonl"),
        (
            ("reading", "--out", "x.parquet", "--method", "fopru-rows"),
            "methods='fopru-rows': there is no such method. Did you mean 'fopru-row'?",
        ),
        (
            ("reading", "--out", "x.parquet", "--method", "fastv", "--weights", "mass"),
            "weights='mass': FastV drops tokens",
        ),
        (("reading", "--out", "x.parquet", "--weights", "mas"), "weights='mas': must be one of"),
        (("reading", "--out", "x.parquet", "--blind", "dark"), "blind='dark': must be one of"),
        (
            ("reading", "--out", "x.parquet", "--tokens", "9", "--retention", "0.5"),
            r"retentions=\[0.5\] and tokens=\[9\]: give one of them",
        ),
        (("reading", "--out", "no/x.parquet"), "out no/x.parquet: there is no folder no"),
        (
            ("reading", "--out", "x.parquet", "--retention", "0.5", "--retention", "0.5"),
            r"retentions=\[0.5, 0.5\]: each may stand there once",
        ),
    ],
)
def test_evaluate_says_what_is_wrong_in_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fopru_cli("evaluate", *arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def questions(folder, n=1, **fields):
    """A file of the first questions of pocket's reading task, with their pictures beside it."""
    lines = []
    for i, e in enumerate(fopru.pocket.sample("reading", n=n, seed=3)):
        e.image.save(folder / f"p{i}.png")
        lines.append({"image": f"p{i}.png", "question": e.question, "answer": e.answer, **fields})
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path, lines


QUICK = ("--method", "uniform", "--retention", 0.25)


def test_evaluate_leaves_files_of_others_alone(tmp_path):
    asked, _ = questions(tmp_path)
    (tmp_path / "a.json").write_text('{"annotations": [1, 2, 3]}')
    (tmp_path / "b.sqlite").write_bytes(b"SQLite format 3\x00" + bytes(84))
    pd.DataFrame({"image": [1]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_text("no table")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name, words in (
        ("a", ("a.json is there and is not of fopru",)),
        ("b", ("b.sqlite is a database of something else",)),
        ("c", ("c.parquet: is there and holds other things",)),
        ("d", ("d.parquet: is there and holds other things",)),
    ):
        refused(fopru_cli("evaluate", asked, *QUICK, "--out", tmp_path / f"{name}.parquet"), *words)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tables_of_two_commands_do_not_mix(tmp_path):
    asked, _ = questions(tmp_path)
    answers, times = tmp_path / "answers.parquet", tmp_path / "times.parquet"
    assert fopru_cli("evaluate", asked, *QUICK, "--out", answers).exit_code == 0
    measured = ("measure", *QUICK, "--turns", 1, "--new-tokens", 2, "--out")
    for _ in range(2):
        result = fopru_cli(*measured, times)
        assert result.exit_code == 0, result.output
    table = pd.read_parquet(times)
    assert table.method.value_counts().to_dict() == {"full": 2 * 4, "uniform": 2 * 8}
    assert "uniform" in result.stdout
    before = answers.read_bytes(), times.read_bytes()
    refused(fopru_cli(*measured, answers), "answers.parquet: is there and holds other things")
    refused(fopru_cli("evaluate", asked, *QUICK, "--out", times), "times.parquet: is there")
    assert (answers.read_bytes(), times.read_bytes()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "oracle"), ("methods='oracle': there is no such method",)),
        (("--method", "smaller"), ("methods='smaller': there is no such method",)),
        (("--method", "fopru-shuffled"), ("methods='fopru-shuffled': there is no such method",)),
        (
            ("--method", "divprun"),
            ("methods='divprun': there is no such method. Did you mean 'd",),
        ),
        (("--weights", "mas"), ("weights='mas'",)),
        (("--turns", 0), ("turns=0",)),
        (("--out", "no/x.parquet"), ("there is no folder no",)),
        (("--out", "x.csv"), ("must end in .parquet",)),
    ],
)
def test_measure_says_what_is_wrong_in_one_sentence(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(fopru_cli("measure", *arguments), *words)


def test_measure_says_what_attention_is_not_installed():
    result = fopru_cli("measure", "--attention", "flash_attention_2")
    assert result.exit_code == 2
    assert "fopru: attention='flash_attention_2': " in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_measure_says_what_it_would_run():
    kinds = ("--weights", "none", "--weights", "mass", "--weights", "restore")
    result = fopru_cli("measure", "--dry-run", *kinds)
    assert result.exit_code == 0, result.output
    assert "batch 1: full, fopru, fopru-mass, fopru-restore at 0.5, 0.25, 0.1" in result.stdout
    result = fopru_cli("measure", "--dry-run", "--tokens", 64, "--tokens", 9)
    assert "batch 1: full, fopru at 64 tokens, 9 tokens" in result.stdout


def test_a_number_of_tokens_is_asked_and_told(picture, tmp_path):
    told = ("--method", "cls", "--tokens", 20)
    result = fopru_cli("ask", picture, QUESTION, *told, "--json", "--max-new-tokens", 2)
    found = json.loads(result.stdout)
    assert found["pruned"]["visual_tokens"] == found["tokens"] == 20 and found["retention"] is None
    assert found["attention"] == "cls"
    result = fopru_cli("ask", picture, QUESTION, *told, "--max-new-tokens", 2)
    assert "cls 20 tokens" in " ".join(result.stdout.split())
    asked, _ = questions(tmp_path)
    out = tmp_path / "found.parquet"
    result = fopru_cli("evaluate", asked, *told, "--tokens", 300, "--out", out)
    assert result.exit_code == 1  # 300 of 256: the other answers are there
    assert "fopru: tokens=300: a picture of 256 visual tokens" in result.stderr
    table = pd.read_parquet(out)
    assert table.kept.dropna().tolist() == [256, 20] and table.budget.tolist()[1:] == [20, 300]
    for command in ("ask", "evaluate", "measure"):
        said = " ".join(re.findall(r"[\w,.;'-]+", fopru_cli(command, "--help").stdout))
        assert "192, 128, 64 of LLaVA-1.5's 576; 640, 320, 160 of LLaVA-NeXT's 2880." in said


def test_several_metrics_in_one_task_are_shown(tmp_path):
    asked, lines = questions(tmp_path, 3)
    for line, metric in zip(lines, ("relaxed", "accuracy", "anls"), strict=True):
        line["metric"] = metric
    asked.write_text("\n".join(map(json.dumps, lines)))
    result = fopru_cli("evaluate", asked, *QUICK, "--out", tmp_path / "found.parquet")
    assert result.exit_code == 0, result.output
    for metric in ("relaxed", "accuracy", "anls"):
        assert re.search(rf"{metric}\s+\d+\.0", result.stdout)


def test_one_picture_has_no_interval(tmp_path):
    asked, _ = questions(tmp_path)
    result = fopru_cli("evaluate", asked, *QUICK, "--out", tmp_path / "found.parquet")
    assert "one picture" in result.stdout and "nan" not in result.stdout


def test_no_picture_that_can_be_read(tmp_path):
    asked, _ = questions(tmp_path, 2)
    for i in range(2):
        (tmp_path / f"p{i}.png").unlink()
    result = fopru_cli("evaluate", asked, *QUICK, "--out", tmp_path / "found.parquet")
    assert result.exit_code == 1
    for i in range(2):
        assert f"p{i}.png: no such file" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_stopped_run_says_that_it_goes_on(tmp_path, monkeypatch):
    asked, _ = questions(tmp_path)
    options = ("evaluate", asked, *QUICK, "--out", tmp_path / "found.parquet")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fopru.evaluation.runner.Batch", stop)
        result = fopru_cli(*options)
    assert result.exit_code == 130
    assert "fopru: stopped; the same command goes on." in result.stderr
    assert fopru_cli(*options).exit_code == 0


def test_warnings_come_after_the_progress(tmp_path):
    asked, lines = questions(tmp_path)
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    asked.write_text(json.dumps({**lines[0], "image": "a.gif"}))
    result = fopru_cli("evaluate", asked, *QUICK, "--out", tmp_path / "found.parquet")
    assert result.exit_code == 0, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("fopru: ") and last.endswith("a.gif: the first of 2 frames is taken.")


def test_known_and_said_stand_side_by_side_where_there_are_legal_answers(tmp_path):
    asked, lines = questions(tmp_path, n=2)
    with_choices = [{**lines[0], "task": "chosen", "choices": [lines[0]["answer"], "no"]}]
    asked.write_text("\n".join(map(json.dumps, [*with_choices, {**lines[1], "task": "free"}])))
    result = fopru_cli("evaluate", asked, *QUICK, "--out", tmp_path / "found.parquet")
    assert result.exit_code == 0, result.output
    free = [line for line in result.stdout.splitlines() if "free" in line]
    assert "known" in result.stdout and "malformed" in result.stdout
    assert free and all(line.count("-") >= 2 for line in free)


def test_evaluate_takes_weights_device_and_dtype(tmp_path):
    asked, _ = questions(tmp_path)
    out = tmp_path / "found.parquet"
    options = ("--weights", "none", "--weights", "mass", "--device", "cpu", "--dtype", "bfloat16")
    result = fopru_cli("evaluate", asked, *QUICK, *options, "--out", out)
    assert result.exit_code == 0, result.output
    assert pd.read_parquet(out).method.tolist() == ["full", "uniform", "uniform-mass"]


def test_sample_writes_more_questions(tmp_path):
    out = tmp_path / "more.parquet"
    result = fopru_cli("pocket", "sample", out, "--task", "charts", "--n", 5, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert [e.task for e in pocketbench.read(out)] == ["charts"] * 5
    result = fopru_cli("pocket", "sample", out, "--task", "poetry")
    assert result.exit_code == 2
    assert "task='poetry': must be one of" in result.stderr
    found = tmp_path / "found.parquet"
    result = fopru_cli("evaluate", out, "--method", "uniform", "--out", found)
    assert result.exit_code == 0, result.output
    assert "relaxed" in result.stdout
    assert len(pd.read_parquet(found)) == 5 * 4


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_names_are_imported_when_they_are_used():
    code = (
        "import sys, fopru\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'pandas'} & sys.modules.keys()\n"
        "assert set(fopru.__all__) <= set(dir(fopru))\n"
        "from fopru.evaluation import evaluate\n"
        "from fopru.pruner import METHODS\n"
        "assert len(METHODS) == len(fopru.METHODS) > 15\n"
        "values = [getattr(fopru, name) for name in fopru.__all__]\n"
        "assert fopru.evaluate is evaluate and fopru.plots.overlay and fopru.widgets.Explorer\n"
        "try: fopru.prun\n"
        "except AttributeError as error: print(error)"
    )
    done = in_a_new_process(code)
    assert done.stdout == "module 'fopru' has no attribute 'prun'\n", done.stderr


def test_what_serving_needs_brings_no_tables_and_no_plots():
    """Each process of a server imports it: beside transformers nothing heavy may come along."""
    code = (
        "import sys, transformers.modeling_utils\n"
        "before = set(sys.modules)\n"
        "import fopru.pruner, fopru.methods, fopru.significance, fopru.choosing\n"
        "found = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(found & {'pandas', 'scipy', 'matplotlib', 'pyarrow', 'typer', 'rich'}))\n"
        "print(sorted({'pandas', 'matplotlib', 'pyarrow', 'typer'} & sys.modules.keys()))"
    )
    done = in_a_new_process(code)
    assert done.stdout == "[]\n[]\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pocket", "nowhere.png"), ["nowhere.png: no such file"]),
        (("pocket", "PICTURE", "--method", "tome"), ["method 'tome' cannot be served"]),
        (("pocket", "PICTURE", "--retention", 2), ["retention=2.0: must be a number"]),
    ],
)
def test_serve_check_says_what_is_wrong_in_one_sentence(arguments, words, picture):
    arguments = [picture if word == "PICTURE" else word for word in arguments]
    refused(fopru_cli("serve-check", *arguments), *words)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_serve_check_needs_vllm(picture):
    refused(fopru_cli("serve-check", "pocket", picture), "vLLM is not installed", "fopru[vllm]")
