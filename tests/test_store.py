import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image
from test_evaluation import examples

import fopru
from fopru.evaluation import evaluate, read_jsonl, read_rows, statistics
from fopru.evaluation.controls import Later
from fopru.evaluation.metrics import anls, relaxed
from fopru.evaluation.runner import COLUMNS
from fopru.evaluation.store import Store, provenance, weights_hash
from fopru.evaluation.tasks import Example
from fopru.pictures import load_image

SETTINGS = dict(methods=("fopru", "random"), retentions=(0.5, 0.25), max_new_tokens=1, batch_size=2)


def in_order(frame):
    cell = ["id", "method", "retention", "seed"]
    return frame.sort_values(cell).reset_index(drop=True)


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
    assert len(evaluate(model, processor, examples(2), **SETTINGS, out=out)) == 2 * 13
    few = {**SETTINGS, "retentions": (0.5,)}
    assert len(evaluate(model, processor, examples(), **few, out=out)) == 5 * 7
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
        with (tmp_path / "errors.txt").open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-c", KILLED, str(out), here],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert child.stdout.readline() == b"ready\n", (tmp_path / "errors.txt").read_text()
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
    store.add({str(i): {"text": "x" * 500} for i in range(200)})
    store.close()
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:8192] + b"\xff" * 4096 + whole[12288:], b"no"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"answers\.sqlite is damaged or no results file"):
            Store(path, manifest())


def test_a_row_that_was_changed_is_noticed(tmp_path):
    path = tmp_path / "answers.sqlite"
    store = Store(path, manifest())
    store.add({str(i): {"prediction": "seventeen"} for i in range(3)})
    assert store.rows({"0", "2", "9"}).keys() == {"0", "2"}
    store.close()
    path.write_bytes(path.read_bytes().replace(b"seventeen", b"seventeem", 1))
    with pytest.raises(ValueError, match=r"answers\.sqlite is damaged: row \d is not what was"):
        Store(path, manifest()).rows({"0"})


def test_rows_are_added_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path / "answers.sqlite", manifest())
    with pytest.raises(ValueError, match=r"answers\.sqlite .*NOT NULL"):
        store.add({"good": {}, None: {}})
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
        ("{", "line 2: is no JSON"),
        ("[]", "line 2: must be an object"),
        ('{"question": "a", "answers": ["b"]}', "line 2: field 'image' is missing"),
        ('{"image": "", "question": "a", "answer": "b"}', "line 2: field 'image' is missing"),
        ('{"image": null, "question": "a", "answer": "b"}', "line 2: field 'image' is missing"),
        ('{"image": "a.png", "question": null, "answer": "b"}', "line 2: field 'question'"),
        ('{"image": "a.png", "question": "a"}', "line 2: field 'answer' is missing"),
        ('{"image": "a.png", "question": "a", "answer": 5}', "line 2: field 'answer' .* a text"),
        ('{"image": "a.png", "question": "a", "answer": null}', "line 2: field 'answer'"),
        (
            '{"image": "a.png", "question": "a", "answer": " "}',
            "line 2: the right answer is an emp",
        ),
        ('{"image": "a.png", "question": "a", "answers": "b"}', "line 2: field 'answers' is not a"),
        ('{"image": "a.png", "question": "a", "answers": ["b", 5]}', "line 2: field 'answers'"),
        ('{"image": "a.png", "question": "a", "answers": []}', "line 2: field 'answers'"),
        ('{"image": "a.png", "question": "a", "answer": "b", "id": 1.5}', "line 2: field 'id' is"),
        ('{"image": "a.png", "question": "a", "answer": "b", "id": ""}', "line 2: field 'id' is"),
        (
            '{"image": "a.png", "question": "a", "answer": "b", "id": 7}',
            "line 2: field 'id' .* bef",
        ),
        (
            '{"image": "b.png", "question": "a", "answer": "b", "image_id": "a"}',
            "line 2: field 'ima",
        ),
        (
            '{"image": "a.png", "question": "a", "answer": "b", "choices": "ab"}',
            "line 2: field 'ch",
        ),
        (
            '{"image": "a.png", "question": "a", "answer": "b", "metric": "bleu"}',
            "line 2: field 'metric' is 'bleu', not one of accuracy, f1, anls, relaxed",
        ),
        (
            '{"image": "a.png", "question": "a", "answer": "b", "evidence": [[5, 0, 5, 9]]}',
            "line 2: field 'evidence' holds",
        ),
        (
            '{"image": "a.png", "question": "a", "answer": "b", "evidence": 5}',
            "line 2: field 'evidence' is 5",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    first = {"image": "a.png", "question": "a", "answer": "b", "id": "7", "image_id": "a"}
    path.write_text(json.dumps(first) + "\n" + line + "\n")
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
    assert relaxed("nan", "nan") == relaxed("infinity", "infinity") == 1
    assert relaxed("nan", "100") == 0
    assert relaxed("46%", "45%") == relaxed("0.45", "45%") == relaxed("49%", "50%") == 1
    assert relaxed("50%", "45%") == relaxed("45", "45%") == 0
    e = Example("1", "t", tiny.image(), "?", "yes", also=("yeah",))
    assert (e.score("yeah"), e.score("yep")) == (1, 0)
    assert Example("1", "t", tiny.image(), "?", " Red ").score("red") == 1


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
        ({"answers": []}, "row 1: field 'answers' is not a list"),
        ({"image": tiny.image(seed=9)}, "row 1: field 'image_id' is 'a' as in row 0, on another"),
        ({"question": 3}, "row 1: field 'question' is missing or not a text"),
    ):
        with pytest.raises(ValueError, match=message):
            read_rows([rows[0], {**rows[1], **change}])
    for refused, message in (([], "rows: there are none"), (rows[0], "rows: must be a list")):
        with pytest.raises(ValueError, match=message):
            read_rows(refused)
    with pytest.raises(ValueError, match="row 0: is str, not a mapping"):
        read_rows(["image"])


def test_none_in_a_row_is_a_field_that_is_missing():
    row = {"image": tiny.image(), "question": "w1", "answers": None, "answer": "W2"}
    optional = ("id", "task", "choices", "evidence", "metric", "image_id")
    (e,) = read_rows([{**row, **dict.fromkeys(optional)}])
    assert (e.id, e.task, e.answer, e.metric) == ("0", "questions", "w2", "accuracy")
    assert (e.choices, e.evidence, e.scene) == (None, (), {"image_id": "row 0"})


def ask(question, image=None, answer="w7", **more):
    """One question of the default id, as the first of any set has it."""
    image = tiny.image(40, 40) if image is None else image
    return read_rows([{"image": image, "question": question, "answer": answer, **more}])


@pytest.mark.parametrize(
    "change",
    [
        {"question": "w20 w21"},
        {"image": tiny.image(40, 40, seed=5)},
        {"answer": "w30"},
        {"metric": "anls"},
        {"evidence": [(0, 0, 9, 9)]},
        {"task": "others"},
    ],
)
def test_a_file_does_not_answer_for_other_questions(tmp_path, change):
    """The id is the same; the row is the one of a file of its own."""
    model, processor, out = tiny.model(), tiny.processor(), tmp_path / "a.sqlite"
    arguments = {"methods": ("fopru",), "retentions": (0.5,), "max_new_tokens": 2}
    first = evaluate(model, processor, ask("w1 w2"), out=out, **arguments)
    asked = ask(**{"question": "w1 w2", **change})
    found = evaluate(model, processor, asked, out=out, **arguments)
    pd.testing.assert_frame_equal(found, evaluate(model, processor, asked, **arguments))
    again = evaluate(model, processor, ask("w1 w2"), out=out, **arguments)
    pd.testing.assert_frame_equal(again, first)


def test_a_file_does_not_answer_for_other_settings(tmp_path):
    model, processor, out = tiny.model(), tiny.processor(), tmp_path / "a.sqlite"
    common = {"methods": ("fopru",), "retentions": (0.5,), "max_new_tokens": 1}

    def check(**changes):
        arguments = {**common, **changes}
        found = evaluate(model, processor, ask("w1 w2"), out=out, **arguments)
        pd.testing.assert_frame_equal(
            found, evaluate(model, processor, ask("w1 w2"), **arguments), check_dtype=False
        )
        return found

    (one,) = {len(said.split()) for said in check().prediction}
    (three,) = {len(said.split()) for said in check(max_new_tokens=3).prediction}
    assert (one, three) == (1, 3)
    named = [check(methods={"mine": fopru.FoPru(layer=layer)}) for layer in (0, 2)]
    assert named[0].loglik[1] != named[1].loglik[1]
    check(positions="preserve")
    counted = [check(retentions=None, tokens=(n,)).kept[1] for n in (9, 16)]
    assert counted == [9, 16]
    looked = [check(methods={"mine": fopru.CLS(attention=a)}) for a in ("cls", "received")]
    assert [table.attention[1] for table in looked] == ["cls", "received"]
    assert looked[0].loglik[1] != looked[1].loglik[1]
    said = check().prediction[0]
    model.generation_config.suppress_tokens = [tiny.WORDS.index(said), tiny.IMAGE_TOKEN_ID]
    assert check().prediction[0] != said
    model.generation_config.suppress_tokens = [tiny.IMAGE_TOKEN_ID]
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    check()
    processor.chat_template = processor.chat_template.replace("USER:", "USER: w9")
    check()


def test_what_another_question_decides_depends_on_it(tmp_path):
    model, processor, out = tiny.model(layers=4), tiny.processor(), tmp_path / "a.sqlite"
    arguments = {"methods": [Later(fopru.METHODS["fastv"]())], "retentions": (0.25,)}
    image = tiny.image(40, 40)
    for other in ("w3 w4", "w5 w6 w8"):
        rows = [
            {"image": image, "question": q, "answer": "w7", "image_id": "a"} for q in ("w1", other)
        ]
        asked = read_rows(rows)
        found = evaluate(model, processor, asked, out=out, max_new_tokens=1, **arguments)
        fresh = evaluate(model, processor, asked, max_new_tokens=1, **arguments)
        pd.testing.assert_frame_equal(found, fresh)


def test_a_picture_that_was_repaired_is_asked(tmp_path):
    model, processor, out = tiny.model(), tiny.processor(), tmp_path / "a.sqlite"
    asked = read_rows(
        [{"image": tmp_path / f"{i}.png", "question": "w1", "answer": "w7"} for i in range(2)]
    )
    tiny.image().save(tmp_path / "0.png")
    arguments = {"methods": (), "out": out, "max_new_tokens": 1}
    first = evaluate(model, processor, asked, **arguments)
    assert first.error.notna().tolist() == [False, True]
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert "cannot be read" in evaluate(model, processor, asked, **arguments).error[1]
    tiny.image(seed=3).save(tmp_path / "1.png")
    mended = evaluate(model, processor, asked, **arguments)
    assert mended.error.isna().all() and mended.prediction.notna().all()
    (tmp_path / "0.png").unlink()
    assert evaluate(model, processor, asked, **arguments).error.notna().tolist() == [True, False]


def test_no_picture_can_be_read():
    asked = read_rows([{"image": "nowhere.png", "question": "w1", "answer": "w7"}])
    found = evaluate(tiny.model(), tiny.processor(), asked, ("uniform",), (0.5,))
    assert "nowhere.png: no such file" in found.error[0]
    assert list(found) == list(COLUMNS)
    with pytest.raises(ValueError, match="results: no question was answered"):
        statistics.accuracy(found)


def test_files_of_others_are_left_as_they_are(tmp_path):
    path = tmp_path / "mine.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE rows (id TEXT, v INT)")
    (tmp_path / "notes.txt").write_text("notes")
    old = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(old)) as database, database:
        database.execute("CREATE TABLE manifest (json TEXT)")
    for name, message in (
        ("mine.sqlite", r"mine\.sqlite is a database of something else, or of an earlier fopru"),
        ("old.sqlite", "of an earlier fopru"),
        ("notes.txt", r"notes\.txt is damaged or no results file"),
    ):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=message):
            evaluate(tiny.model(), tiny.processor(), examples(2), (), out=tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    for out, message in (("no/a.sqlite", "there is no folder .*no"), (".", "is a folder")):
        with pytest.raises(OSError, match=message):
            evaluate(tiny.model(), tiny.processor(), examples(2), (), out=tmp_path / out)


def test_two_threads_write_one_file(tmp_path):
    whole = evaluate(tiny.model(), tiny.processor(), examples(), **SETTINGS)
    out, found, models = tmp_path / "answers.sqlite", {}, [tiny.model(), tiny.model()]

    def run(i):
        found[i] = evaluate(models[i], tiny.processor(), examples(), **SETTINGS, out=out)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for table in (found[0], found[1]):
        same(table, whole)


@pytest.mark.slow
def test_two_processes_write_one_file(tmp_path):
    """Each on its own, not started together: neither stops over the other."""
    whole = evaluate(tiny.model(), tiny.processor(), examples(), **SETTINGS)
    out, here = tmp_path / "answers.sqlite", str(Path(__file__).parent)
    children = [subprocess.Popen([sys.executable, "-c", KILLED, str(out), here]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    same(evaluate(tiny.model(), tiny.processor(), examples(), **SETTINGS, out=out), whole)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_only_line_feeds_end_lines(tmp_path, sign):
    rows = [{"image": "a.png", "question": f"what is{sign}written?", "answer": "a"}] * 2
    path = tmp_path / "mine.jsonl"
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(text.encode())
    first, second = read_jsonl(path)
    assert first.question == rows[0]["question"]
    assert (first.id, second.id) == ("mine.jsonl:1", "mine.jsonl:2")


def test_byte_order_marks_and_other_encodings(tmp_path):
    path = tmp_path / "mine.jsonl"
    text = json.dumps({"image": "a.png", "question": "w1", "answer": "w2"})
    path.write_text(text, encoding="utf-8-sig")
    assert len(read_jsonl(path)) == 1
    for encoding in ("utf-16", "utf-16-le"):
        path.write_text(text, encoding=encoding)
        with pytest.raises(ValueError, match=r"mine\.jsonl"):
            read_jsonl(path)


def test_two_files_of_questions_have_ids_of_their_own(tmp_path):
    line = json.dumps({"image": "a.png", "question": "w1", "answer": "w2"})
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(line)
    ids = {e.id for name in ("a.jsonl", "b.jsonl") for e in read_jsonl(tmp_path / name)}
    assert ids == {"a.jsonl:1", "b.jsonl:1"}


def test_a_picture_is_the_same_from_a_file_and_in_memory(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64, dtype=np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    clear = Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    clear.paste((255, 0, 0, 0), (32, 0, 64, 64))
    clear.save(tmp_path / "clear.png")
    clear.convert("P").save(tmp_path / "palette.png", transparency=0)
    turned = Image.new("RGB", (64, 32), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for path in tmp_path.iterdir():
        (row,) = read_rows([{"image": Image.open(path), "question": "w1", "answer": "w2"}])
        assert np.array_equal(row.image, load_image(path)), path.name
        found = [
            evaluate(tiny.model(), tiny.processor(), [replace(row, image=image)], ())
            for image in (str(path), Image.open(path))
        ]
        pd.testing.assert_frame_equal(*found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": 5}, "image=5: must be a PIL image, the path of a file, or a fopru.Video"),
        ({"question": None}, "question=None: must be a text"),
        ({"answer": 5}, "answer=5: must be a text"),
        ({"metric": "bleu"}, "metric='bleu': must be one of accuracy, f1, anls, relaxed"),
    ],
)
def test_bad_examples(changes, message):
    arguments = {"id": "1", "task": "t", "image": "a.png", "question": "?", "answer": "b"}
    with pytest.raises(ValueError, match=message):
        Example(**{**arguments, **changes})
