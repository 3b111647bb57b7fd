import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny
from test_evaluation import examples

from fopru.evaluation import evaluate, read_jsonl, read_rows
from fopru.evaluation.store import KEY, Store, provenance, weights_hash
from fopru.evaluation.tasks import Example, anls, relaxed

SETTINGS = dict(methods=("fopru", "random"), retentions=(0.5, 0.25), max_new_tokens=1, batch_size=2)


def in_order(frame):
    return frame.sort_values(list(KEY)).reset_index(drop=True)


def same(a, b):
    a, b = in_order(a), in_order(b)
    measured = ["loglik", "kl"]
    pd.testing.assert_frame_equal(a.drop(columns=measured), b.drop(columns=measured))
    assert (a[measured] - b[measured]).abs().max().max() < 1e-4


def manifest(**changes):
    return {**provenance(), "weights": weights_hash(tiny.model()), **changes}


def test_a_run_goes_on_from_its_file_and_asks_nothing_twice(tmp_path, monkeypatch):
    model, processor = tiny.model(), tiny.processor()
    whole = evaluate(model, processor, examples(), **SETTINGS)
    out = tmp_path / "answers.sqlite"
    evaluate(model, processor, examples(2), **SETTINGS, out=out)
    few = {**SETTINGS, "retentions": (0.5,)}
    evaluate(model, processor, examples(), **few, out=out)
    same(evaluate(model, processor, examples(), **SETTINGS, out=out), whole)

    def never(*args, **kwargs):
        raise AssertionError("asked again")

    monkeypatch.setattr(model, "generate", never)
    monkeypatch.setattr(model.model.vision_tower, "forward", never)
    same(evaluate(model, processor, examples(), **SETTINGS, out=out), whole)


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
import tiny
from test_evaluation import examples
from test_store import SETTINGS
from fopru.evaluation import evaluate
print("ready", flush=True)
evaluate(tiny.model(), tiny.processor(), examples(), **SETTINGS, out=sys.argv[1])
"""


@pytest.mark.slow
def test_killed_twenty_times_the_table_is_the_same(tmp_path):
    whole = evaluate(tiny.model(), tiny.processor(), examples(), **SETTINGS)
    out, rng, kills = tmp_path / "answers.sqlite", random.Random(0), 0
    here = str(Path(__file__).parent)
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(out), here],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 1.0))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
        if kills % 5 == 4 and out.exists():
            out.unlink()  # and from the beginning again
            for beside in tmp_path.glob("answers.sqlite-*"):
                beside.unlink()
    assert kills >= 5
    same(evaluate(tiny.model(), tiny.processor(), examples(), **SETTINGS, out=out), whole)


def test_results_of_another_model_or_version_do_not_mix(tmp_path):
    path = tmp_path / "answers.sqlite"
    Store(path, manifest()).close()
    with pytest.raises(
        ValueError, match=r"answers\.sqlite holds results with weights '.*do not mix"
    ):
        evaluate(tiny.model(seed=1), tiny.processor(), examples(2), **SETTINGS, out=path)
    with pytest.raises(ValueError, match=r"holds results with torch '2.*this run has '9'"):
        Store(path, manifest(torch="9"))
    Store(path, manifest(date="1999-12-31", machine="other")).close()


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "answers.sqlite"
    store = Store(path, manifest())
    store.add([{**dict.fromkeys(KEY, i), "text": "x" * 500} for i in range(200)])
    store.close()
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:8192] + b"\xff" * 4096 + whole[12288:], b"no"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"answers\.sqlite is damaged or no results file"):
            Store(path, manifest())


def test_a_row_that_was_changed_is_noticed(tmp_path):
    path = tmp_path / "answers.sqlite"
    store = Store(path, manifest())
    store.add([{**dict.fromkeys(KEY, i), "prediction": "seventeen"} for i in range(3)])
    assert len(store.frame()) == 3
    store.close()
    for beside in tmp_path.glob("answers.sqlite-*"):
        beside.unlink()
    path.write_bytes(path.read_bytes().replace(b"seventeen", b"seventeem", 1))
    with pytest.raises(ValueError, match=r"answers\.sqlite is damaged: row \d is not what was"):
        Store(path, manifest()).frame()


def test_rows_are_added_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path / "answers.sqlite", manifest())
    good = dict.fromkeys(KEY, 1)
    with pytest.raises((sqlite3.Error, KeyError)):
        store.add([good, {**good, "id": None}])
    assert store.done() == set()


def test_an_unreadable_picture_is_a_row_with_its_reason(tmp_path):
    tiny.image().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    lines = [
        {"image": f"{name}.png", "question": "w1 w2", "answers": ["W7", "w8"], "id": i}
        for i, name in enumerate(["good", "bad", "good", "missing"])
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    asked = read_jsonl(path)
    assert (asked[0].answer, asked[0].also) == ("w7", ("w8",))
    found = evaluate(
        tiny.model(), tiny.processor(), asked, ("random",), (0.5,), seeds=(0,), max_new_tokens=1
    )
    assert len(found) == 8
    errors = found.set_index("id").error.dropna()
    assert set(errors.index) == {"1", "3"}
    assert "bad.png: cannot be read as a picture" in errors["1"].iloc[0]
    assert "missing.png: no such file" in errors["3"].iloc[0]
    assert found[found.error.isna()].prediction.notna().all()


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: "),
        ("[]", "line 2: must be an object"),
        ('{"question": "a", "answers": ["b"]}', "line 2: field 'image' is missing"),
        ('{"image": "a.png", "question": "a"}', "line 2: field 'answers' is missing"),
        ('{"image": "a.png", "question": "a", "answers": []}', "line 2: field 'answers'"),
        (
            '{"image": "a.png", "question": "a", "answer": "b", "metric": "bleu"}',
            "line 2: field 'metric' is 'bleu', not one of accuracy, f1, anls, relaxed",
        ),
        (
            '{"image": "a.png", "question": "a", "answer": "b", "evidence": [[5, 0, 5, 9]]}',
            "line 2: field 'evidence' holds",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"image": "a.png", "question": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"mine\.jsonl, {message}"):
        read_jsonl(path)


def test_metrics_of_the_benchmarks():
    assert anls("milk", "milk") == 1
    assert anls("mild", "milk") == 0.75
    assert anls("tea", "milk") == 0
    assert anls("", "") == 1
    assert anls("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert relaxed("95", "100") == 1
    assert relaxed("94", "100") == 0
    assert relaxed("red", "red") == 1
    assert relaxed("red", "100") == 0
    e = Example("1", "t", tiny.image(), "?", "yes", also=("yeah",))
    assert (e.score("yeah"), e.score("yep")) == (1, 0)


def test_rows_of_a_dataset_become_questions():
    rows = [
        {"image": tiny.image(), "question": "w1", "answers": ["W2", "w3"], "image_id": "a"},
        {"image": tiny.image(), "question": "w4", "answer": "w5", "image_id": "a"},
        {"image": "somewhere.png", "question": "w4", "answer": "w5", "metric": "anls"},
    ]
    first, second, third = read_rows(rows)
    assert first.image is second.image
    assert (first.answer, first.also, first.id) == ("w2", ("w3",), "0")
    assert third.image == Path("somewhere.png") and third.metric == "anls"
    for change, message in (
        ({"image": None}, "row 1: field 'image' is missing, or neither"),
        ({"answers": []}, "row 1: field 'answers' is missing or not a list"),
        ({"question": 3}, "row 1: field 'question' is missing or not a text"),
    ):
        with pytest.raises(ValueError, match=message):
            read_rows([rows[0], {**rows[1], **change}])
