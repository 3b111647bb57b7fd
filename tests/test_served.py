"""Evaluation of a server, against one in this process that answers from a table."""

import importlib.util
import json
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import tiny
from stub import TOKENS, Stub, serving, text
from test_cli import fopru_cli, refused

import fopru
from fopru.evaluation import Example, read_jsonl, served, statistics
from fopru.evaluation.server import LARGEST, Server, ServerError, Unanswered


def questions(n=4):
    """Two on each picture."""
    pictures = [tiny.image(40, 32, seed) for seed in range((n + 1) // 2)]
    return [
        Example(f"q{i}", "words", pictures[i // 2], f"what is {i}?", f"w{i}", choices=("w0", "no"))
        if i == 0
        else Example(f"q{i}", "words", pictures[i // 2], f"what is {i}?", f"w{i}")
        for i in range(n)
    ]


def stub(examples, **options):
    """A server that knows all answers but the last."""
    right = {e.question: f" {e.answer.upper()}\n" for e in examples}
    return Stub(right | {examples[-1].question: "other"}, **options)


def test_the_table_holds_what_the_server_says():
    asked = questions()
    known = stub(asked)
    with serving(known) as url:
        table = fopru.evaluate_server(
            url, asked, [1.0, 0.25], max_new_tokens=5, add_special_tokens=True, api_key="secret"
        )
    assert table.id.tolist() == [e.id for e in asked for _ in range(2)]
    assert table.retention.tolist() == [1.0, 0.25] * 4
    assert table.prediction.tolist()[:2] == ["w0", "w0"]
    assert table.exact.tolist() == [True] * 6 + [False] * 2
    assert table.prompt_tokens.tolist() == [11 + TOKENS, 11 + TOKENS // 4] * 4
    assert (table.seconds > 0).all() and table.error.isna().all()
    assert table.formed.tolist()[:3] == [True, True, None]
    assert table.finish.eq("stop").all() and table.answer_tokens.eq(2).all()
    assert table[["choice", "loglik", "kl", "kept", "found"]].isna().all().all()
    assert table.columns[: len(fopru.evaluation.runner.COLUMNS)].tolist() == [
        *fopru.evaluation.runner.COLUMNS
    ]
    assert len(known.asked) == 8 + 2  # and the two that try out whether it prunes
    for request, header, picture in zip(known.asked, known.headers, known.pictures, strict=True):
        assert request["model"] == "pocket" and request["temperature"] == 0
        assert request["add_special_tokens"] is True and request["max_tokens"] in (1, 5)
        assert set(request["mm_processor_kwargs"]) == {"fopru"}
        assert header["Authorization"] == "Bearer secret"
        shown = next(e.image for e in asked if e.question == text(request))
        assert np.array_equal(np.asarray(picture), np.asarray(shown))
    cells = statistics.accuracy(table)
    assert cells["mean"].tolist() == [0.75, 0.75] and cells.n.tolist() == [4, 4]


def test_without_shares_the_server_is_asked_as_it_is():
    asked = questions()
    known = stub(asked, prunes=False)
    with serving(known) as url:
        table = fopru.evaluate_server(f"{url}/v1/", asked)
    assert all(r.keys() == {"model", "temperature", "max_tokens", "messages"} for r in known.asked)
    assert table.retention.isna().all() and table.method.eq("server").all()
    (cell,) = statistics.accuracy(table).itertuples()
    assert (cell.n, cell.mean) == (4, 0.75)
    assert statistics.scores(table).score.tolist() == [0.75]
    assert statistics.per_question(table).shape == (4, 1)


def test_as_many_are_asked_at_a_time_as_wanted():
    """No question is answered before three are asked."""
    asked, three = questions(9), threading.Barrier(3)
    known = stub(asked, tricks={e.question: three for e in asked})
    with serving(known) as url:
        fopru.evaluate_server(url, asked, concurrency=3)
    assert known.most == 3


def test_a_run_goes_on_from_its_file_and_asks_nothing_twice(tmp_path):
    asked, out = questions(), tmp_path / "answers.sqlite"
    broken = stub(asked, tricks={"what is 2?": (500, {"detail": "out of \x1b[31mmemory"})})
    with serving(broken) as url:
        first = fopru.evaluate_server(url, asked, out=out)
        (why,) = first.error.dropna()
        assert why == "the server answers 500: out of [31mmemory"
        assert statistics.accuracy(first).n.tolist() == [3]
        broken.tricks, broken.asked = {}, []
        second = fopru.evaluate_server(url, asked, out=out)
        assert broken.questions() == ["what is 2?"]
        broken.asked = []
        third = fopru.evaluate_server(url, asked, out=out)
        assert broken.asked == []
        pd.testing.assert_frame_equal(second, third)
        for changed in ({"max_new_tokens": 3}, {"concurrency": 2}, {"retentions": [0.5]}):
            broken.asked = []
            fopru.evaluate_server(url, asked, out=out, **changed)
            assert len(broken.questions()) == 4
        broken.model = "another"
        with pytest.raises(ValueError, match="holds results with weights"):
            fopru.evaluate_server(url, asked, out=out)


def cut(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def half(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    cut(handler)


def drip(handler):
    """A byte at a time, each of them in time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


NO_TEXT = json.dumps({"choices": [{"message": {"content": None}}]}).encode()


@pytest.mark.parametrize(
    "trick, why",
    [
        ((400, {"error": {"message": "no such picture"}}), "answers 400: no such picture"),
        ((400, {"error": "bad"}), "answers 400: bad"),
        ((422, b"\xff plain words"), "answers 422: . plain words"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "is no chat completion"),
        (b'{"choices": []}', "is no chat completion"),
        (NO_TEXT, "holds NoneType and no text"),
        (b" " * (LARGEST + 1), "larger than 1,048,576 bytes"),
        (1.0, "no answer within 0.2 seconds"),
        (drip, "no answer within 0.2 seconds"),
        (cut, "broke off the connection"),
        (half, "broke off|cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)[:40]),
)
def test_a_question_without_an_answer_says_why_and_the_others_are_answered(trick, why):
    asked = questions()
    known = stub(asked, tricks={"what is 1?": trick})
    with serving(known) as url:
        table = fopru.evaluate_server(url, asked, timeout=0.2, concurrency=1)
    found = table.set_index("id")
    assert found.error.notna().tolist() == [False, True, False, False]
    assert re.search(why, found.error["q1"])
    assert "\n" not in found.error["q1"] and len(found.error["q1"]) < 400
    assert found.exact.tolist()[0] is True and found.exact["q1"] is None


def test_a_server_that_does_not_prune_is_found_out():
    asked = questions()
    with (
        serving(stub(asked, prunes=False)) as url,
        pytest.raises(ValueError, match="267 tokens at retention 1 and 267 at 0.5: it does not"),
    ):
        fopru.evaluate_server(url, asked, [0.25])


def test_a_server_that_counts_nothing_is_told_of():
    asked = questions()
    known = stub(asked)
    whole = known.completion
    known.completion = lambda request: (200, {"choices": whole(request)[1]["choices"]})
    with serving(known) as url, pytest.warns(UserWarning, match="does not count the tokens"):
        table = fopru.evaluate_server(url, asked, [0.25])
    assert table.prompt_tokens.isna().all() and table.exact.sum() == 3


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_what_no_question_can_mend_stops_the_run_and_loses_nothing(tmp_path):
    asked, out = questions(40), tmp_path / "answers.sqlite"
    known = stub(asked)
    port = free_port()
    nowhere = f"http://127.0.0.1:{port}"
    with pytest.raises(ServerError, match=rf"{nowhere}/v1: cannot be reached \(.*refused"):
        fopru.evaluate_server(nowhere, asked)
    known.tricks = {e.question: cut for e in asked[20:]}
    with serving(known, port) as url:
        with pytest.raises(
            OSError, match=f"{served.PATIENCE} questions in a row: the server broke off"
        ):
            fopru.evaluate_server(url, asked, out=out, concurrency=1)
        assert (
            len(known.questions()) <= 20 + 2 * served.PATIENCE + 2
        )  # a connection that was used twice
        known.tricks, known.asked = {}, []
        table = fopru.evaluate_server(url, asked, out=out, concurrency=1)
    assert set(known.questions()) == {e.question for e in asked[20:]}
    assert table.error.isna().all()


@pytest.mark.parametrize("status, why", [(401, "answers 401: who"), (404, "answers 404: who")])
def test_a_key_or_an_address_that_is_not_taken(status, why):
    asked = questions()
    tricks = {e.question: (status, {"error": {"message": "who?"}}) for e in asked}
    with serving(stub(asked, tricks=tricks)) as url, pytest.raises(ServerError, match=why):
        fopru.evaluate_server(url, asked)


def test_redirects_are_not_followed():
    asked = questions()

    def elsewhere(handler):
        handler.send(307, b"", Location="http://elsewhere.example/v1/chat/completions")

    tricks = {e.question: elsewhere for e in asked}
    with (
        serving(stub(asked, tricks=tricks)) as url,
        pytest.raises(ServerError, match=r"redirect to 'http://elsewhere\.example.*not follow"),
    ):
        fopru.evaluate_server(url, asked)


def test_an_interrupted_run_keeps_what_is_answered(tmp_path, monkeypatch):
    """Ctrl-C while two slow answers are waited for: it ends at once."""
    asked, out = questions(6), tmp_path / "answers.sqlite"
    known = stub(asked, tricks={e.question: 60 for e in asked[3:]})
    keep, pressed = served.Run._keep, []

    def stop(self, pending, done):
        found = keep(self, pending, done)
        if not pressed and len(self.store.done()) == 3:
            pressed.append(True)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(served.Run, "_keep", stop)
    with serving(known) as url:
        with pytest.raises(KeyboardInterrupt):
            fopru.evaluate_server(url, asked, out=out, concurrency=2)
        known.tricks, known.asked = {}, []
        table = fopru.evaluate_server(url, asked, out=out, concurrency=2)
    assert sorted(known.questions()) == sorted(e.question for e in asked[3:])
    assert table.error.isna().all()


def test_the_model_is_named_where_there_are_several():
    asked = questions()
    with serving(stub(asked, model=["pocket", "other"])) as url:
        with pytest.raises(ValueError, match="model=None: .* serves 'pocket', 'other': name one"):
            fopru.evaluate_server(url, asked)
        with pytest.raises(ValueError, match="model='poket': .*Did you mean 'pocket'"):
            fopru.evaluate_server(url, asked, model="poket")
        assert fopru.evaluate_server(url, asked, model="other").exact.sum() == 3


@pytest.mark.parametrize(
    "url, options, message",
    [
        ("localhost:8000", {}, "url='localhost:8000': must be an address"),
        ("ftp://host", {}, "url='ftp://host': must be an address"),
        ("http://host:99999999", {}, "must be an address"),
        ("http://[::1", {}, "must be an address"),
        (None, {}, "url=None: must be an address"),
        ("http://me:secret@host", {}, "url of host: must be scheme, host, port"),
        ("http://host/?key=1", {}, "url of host: must be scheme, host, port"),
        ("http://host", {"retentions": [0.0]}, r"retentions=0.0: must be a number in \(0, 1\]"),
        ("http://host", {"retentions": []}, r"retentions=\[\]: name at least one"),
        ("http://host", {"retentions": [1.0, 1.0]}, "each may stand there once"),
        ("http://host", {"concurrency": 0}, "concurrency=0: must be an integer of at least 1"),
        ("http://host", {"timeout": 0}, "timeout=0: must be a number above 0"),
        ("http://host", {"api_key": "a\r\nHost: b"}, "api_key: must be printable ASCII"),
        ("http://host", {"out": "nowhere/x.sqlite"}, "there is no folder nowhere"),
    ],
)
def test_bad_arguments_are_named(url, options, message):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        fopru.evaluate_server(url, questions(), **options)
    assert "secret" not in str(caught.value)


def test_bad_questions_are_named():
    clip = Example("q", "words", fopru.Video([tiny.image(16, 16)] * 2), "what?", "w1")
    with pytest.raises(ValueError, match="question 'q' is about a video"):
        fopru.evaluate_server("http://host", [clip])
    with pytest.raises(ValueError, match="there is no question"):
        fopru.evaluate_server("http://host", [])


def test_a_picture_that_cannot_be_read_is_a_row_with_its_reason(tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    asked = [*questions(2), Example("bad", "words", tmp_path / "bad.png", "what?", "w1")]
    with serving(stub(asked)) as url:
        table = fopru.evaluate_server(url, asked)
    assert table.error.notna().tolist() == [False, False, True]


def test_a_closed_server_asks_nothing():
    with serving(stub(questions())) as url:
        server = Server(url)
        assert server.models() == ["pocket"]
        server.close()
        with pytest.raises((ServerError, Unanswered)):
            server.models()


# The command line


def file(folder):
    """Questions as a file with their pictures beside it."""
    lines = []
    for e in questions():
        e.image.save(folder / f"{e.id}.png")
        lines.append({"image": f"{e.id}.png", "question": e.question, "answer": e.answer})
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_the_command_asks_a_server_and_keeps_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    path, out = file(tmp_path), tmp_path / "found.parquet"
    known = stub(read_jsonl(path))
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(known) as url:
        told = ["evaluate", path, "--server", url, "--out", out, "--concurrency", 2]
        shares = ["--retention", 1, "--retention", 0.25]
        result = fopru_cli(*told, *shares, "--add-special-tokens", "--key-from", "MY_KEY")
        assert result.exit_code == 0, result.output
        table = pd.read_parquet(out)
        assert len(table) == 8 and table.exact.sum() == 6
        assert known.asked[0]["add_special_tokens"] is True
        assert known.headers[0]["Authorization"] == "Bearer secret"
        for word in ("75.0", "267", "75", "0.25", "p95", f"8 answers: {out}"):
            assert word in result.stdout
        told_of = json.loads(out.with_suffix(".json").read_text())
        assert told_of["server"] == f"{url}/v1" and "secret" not in str(told_of)
        known.asked = []
        again = fopru_cli(*told, *shares, "--add-special-tokens")
        assert again.exit_code == 0 and known.asked == []
        known.tricks = {"what is 0?": (400, {"error": {"message": "too large"}})}
        as_it_is = fopru_cli(*told)
        assert as_it_is.exit_code == 1 and "answers 400: too large" in as_it_is.stderr
        assert "as it is" in as_it_is.stdout


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    path, out = file(tmp_path), tmp_path / "found.parquet"
    told = ("evaluate", path, "--out", out, "--server")
    refused(fopru_cli(*told, "http://127.0.0.1:1"), "cannot be reached")
    refused(fopru_cli(*told, "somewhere"), "must be an address")
    for option in (("--method", "fopru"), ("--dtype", "bfloat16"), ("--seeds", 2)):
        refused(fopru_cli(*told, "http://host", *option), f"{option[0]}", "--server")
    refused(fopru_cli(*told[:-1], "--concurrency", 2), "--concurrency", "--server")
    refused(fopru_cli(*told, "http://host", "--key-from", "NO_KEY"), "NO_KEY", "not set")
    with serving(stub(questions())) as url:
        refused(fopru_cli(*told, url, "--model", "poket"), "Did you mean 'pocket'?")
    assert not out.exists()


def test_the_load_of_a_server_is_measured():
    path = Path(__file__).parents[1] / "benchmarks" / "serving.py"
    spec = importlib.util.spec_from_file_location("serving", path)
    serving_ = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serving_)
    known = Stub({"is there a red circle?": "yes"}, tricks={"is there a red circle?": 0.1})
    asked = serving_.Questions("pocket", 32, 4)
    with serving(known) as url:
        found = serving_.cell(url, psutil.Process(), asked, 0.25, 3, 60, most=9)
        known.tricks = {"is there a red circle?": (500, {"detail": "dead"})}
        with pytest.raises(Unanswered, match="dead"):
            serving_.cell(url, psutil.Process(), asked, None, 3, 60, most=9)
    assert found["requests"] == 9 and found["prompt_tokens"] == 11 + TOKENS // 4
    assert 0.1 < found["p50"] <= found["p95"] and found["per_second"] < 3 / 0.1
    assert known.most == 3 and 1 <= found["running"] <= 3
    assert found["blocks"] == 32 / found["running"]
    assert len({p.tobytes() for p in known.pictures}) == len(known.pictures)
    assert all(request["ignore_eos"] for request in known.asked)
