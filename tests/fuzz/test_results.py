"""Drawn questions, files and settings for `evaluate`, `fopru evaluate`, `measure` and `ask`.

A draw is a few runs on one results file. Between them questions, pictures and settings change,
files of the user's own lie beside, a run is interrupted. Each run's rows must be those of its own
questions, each asked alone inside `with pruner(model)`, or the run is refused with a listed
sentence.
"""

import json
import sqlite3
import tempfile
import warnings
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import folders
import numpy as np
import pandas as pd
import tiny
import torch
import zoo
from click.testing import CliRunner
from drawing import Short, drawn, refused
from PIL import Image
from refusals import ASK, RESULTS
from scene import LOOSE, Wrong, state
from typer.main import get_command

import fopru
from fopru.cli import app
from fopru.evaluation import Example, chat, evaluate, read_jsonl, read_rows
from fopru.families import Family

FAMILIES = [
    family
    for family in zoo.FAMILIES
    if not folders.lacking(family)
    and Family.registry[family].looks_back  # PaliGemma's processor adds labels to every prompt
]
PICTURES = ["plain", "other", "flat", "deep", "clear", "turned", "missing", "broken"]
TEXTS = [
    "w1 w2",
    "w9 w8 w7",
    "w1",
    "w1 w2 w3 w4",
    "w5 \u2028 w6",
    "w3 \x85 w4",
    "w2 \u3042\u00e4\u00df",
    "",
    "w4 <image> w5",
]
ANSWERS = [
    "w7",
    "W7 w9",
    " w3 ",
    "what it says",
    "WHAT IT SAYS",
    "w7 w8 w9 w10 w11",
    "\u65e5\u672c",
    "",
    5,
    None,
]
METHODS = [("fopru",), ("random",), ("tome",), ("fastv",), ("divprune", "uniform"), ()]
BESIDE = [None] * 20 + ["json", "sqlite", "parquet", "times", "no folder"]


@dataclass(frozen=True, repr=False)
class Question(Short):
    picture: int = 0
    text: int = 0
    answer: int = 0
    name: str | int | None = None
    metric: str | None = None
    listed: bool = False


@dataclass(frozen=True, repr=False)
class Run(Short):
    """One call of `evaluate` or of the command."""

    questions: tuple[Question, ...]
    pictures: tuple[str, str, str] = ("plain", "other", "plain")
    methods: tuple[str, ...] = ("fopru",)
    weights: str = "none"
    retention: float = 0.25
    positions: str | None = None
    tokens: int = 2
    batch: int = 64
    door: str = "jsonl"
    encoding: str = "utf-8"
    line: str = "\n"
    interrupted: int | None = None


@dataclass(frozen=True, repr=False)
class Case(Short):
    way: str
    family: str
    runs: tuple[Run, ...]
    beside: str | None = None


def drawn_case(draws):
    one = draws.choice

    named = draws.once_in(6)

    def question():
        return Question(
            picture=one(range(3)),
            text=8 if draws.once_in(40) else one(range(8)),
            answer=one(range(10)) if draws.once_in(25) else one([0, 1, 2, 3, 3, 4, 5, 5, 6]),
            name=one([None, None, "a", "b", 7, "\u00e4 1"]) if named else None,
            metric=one([None, None, "accuracy", "anls", "relaxed"]),
            listed=one([True, False]),
        )

    def fresh():
        methods = one(METHODS)
        kinds = PICTURES if draws.once_in(4) else PICTURES[:6]
        return Run(
            questions=tuple(question() for _ in range(one([1, 2, 3, 4]))),
            pictures=tuple(one(kinds) for _ in range(3)),
            methods=methods,
            weights=one(["none", "mass"]) if methods[:1] != ("fastv",) else "none",
            retention=one([0.25, 0.5, 1.0]),
            positions=one([None, None, "preserve", "reindex"]),
            tokens=one([2, 1, 4]),
            batch=one([64, 1, 2]),
            door=one(["jsonl", "rows", "command"]),
            encoding=one(["utf-8"] * 8 + ["utf-8-sig"] * 4 + ["utf-16"]),
            line=one(["\n", "\n", "\r\n", "\n\n"]),
            interrupted=one([None, None, None, 1, 3, 6]),
        )

    def another(thing, name, make):
        """The same, but for one field."""
        value = getattr(thing, name)
        while value == getattr(thing, name):
            value = getattr(make(), name)
        return replace(thing, **{name: value})

    def changed(run):
        i = draws.randrange(len(run.questions))
        if draws.once_in(2):
            return another(run, one(["pictures", "methods", "retention", "tokens", "door"]), fresh)
        asked = list(run.questions)
        asked[i] = another(asked[i], one(["picture", "text", "answer", "metric"]), question)
        return replace(run, questions=tuple(asked))

    runs = [fresh()]
    for _ in range(one([0, 1, 1, 2])):
        runs.append(fresh() if draws.once_in(4) else changed(runs[-1]))
    return Case("results", one(FAMILIES), tuple(runs), one(BESIDE))


# Models, pictures and what they say


@cache
def folder(family):
    """A saved model, for the commands."""
    return folders.save(family, Path(tempfile.mkdtemp(prefix="fopru-fuzz-")))


@cache
def loaded(family):
    """Its model and processor, after a first picture."""
    net, processor = fopru.load(str(folder(family)))
    told = processor.apply_chat_template(chat("w1"), add_generation_prompt=True)
    net.generate(**processor(images=[tiny.image()], text=[told], return_tensors="pt"))
    return net, processor


def text_of(family, text):
    return TEXTS[text].replace("<image>", loaded(family)[1].image_token)


def holes():
    """Where the transparent picture is so: no two of its patches are equal."""
    return Image.fromarray(np.random.default_rng(0).random((40, 44)) < 0.4)


@cache
def shown(kind):
    """The picture as a viewer shows it: RGB."""
    if kind == "flat":  # many of its patches are equal
        image = Image.new("RGB", (64, 64), "white")
        image.paste((30, 30, 30), (8, 16, 56, 24))
        return image
    if kind == "deep":
        return tiny.image(40, 40, seed=6).convert("L").convert("RGB")
    if kind == "clear":
        image = tiny.image(44, 40, seed=7)
        image.paste((255, 255, 255), mask=holes())
        return image
    if kind == "turned":
        return tiny.image(30, 60, seed=5)
    return tiny.image(48, 40, seed=PICTURES.index(kind))


def write(kind, path):
    path.unlink(missing_ok=True)
    if kind == "missing":
        return
    if kind == "broken":
        path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    elif kind == "deep":
        Image.fromarray(np.asarray(shown("deep"))[..., 0].astype(np.uint16) * 257).save(path)
    elif kind == "clear":
        image = tiny.image(44, 40, seed=7).convert("RGBA")
        image.paste((9, 9, 9, 0), mask=holes())
        image.save(path)
    elif kind == "turned":
        lying = shown("turned").transpose(Image.Transpose.ROTATE_90)
        exif = lying.getexif()
        exif[0x0112] = 6
        lying.save(path, exif=exif)
    else:
        shown(kind).save(path)


def pruner(method, retention, positions, weights):
    if method == "full":
        return None
    return fopru.METHODS[method](retention, positions=positions, weights=weights)


def prompt_of(family, kind, text):
    processor = loaded(family)[1]
    told = processor.apply_chat_template(chat(text_of(family, text)), add_generation_prompt=True)
    return dict(processor(images=[shown(kind)], text=[told], return_tensors="pt"))


@lru_cache(maxsize=2000)
def said(family, kind, text, told, tokens):
    """What the model says to one question alone, (text, kept)."""
    (net, processor), inputs = loaded(family), prompt_of(family, kind, text)
    if told[0] == "full":
        out, kept = net.generate(**inputs, max_new_tokens=tokens, do_sample=False), None
    else:
        with pruner(*told)(net) as run:
            out = net.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            kept = len(run.kept[0])
    words = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    n = int((inputs["input_ids"] == zoo.IMAGE_TOKEN_ID).sum())
    return words.strip(), n if kept is None else kept, n


@lru_cache(maxsize=2000)
@torch.no_grad()
def loglik(family, kind, text, told, answer):
    """Of the answer with its end, one step at a time."""
    (net, processor), inputs = loaded(family), prompt_of(family, kind, text)
    ids = processor.tokenizer(f"{answer}</s>", add_special_tokens=False).input_ids

    def steps():
        total, out = 0.0, net(**inputs, use_cache=True)
        for i, token in enumerate(ids):
            total += out.logits[0, -1].double().log_softmax(-1)[token].item()
            if i + 1 < len(ids):
                new = torch.tensor([[token]])
                out = net(input_ids=new, past_key_values=out.past_key_values)
        return total

    if told[0] == "full":
        return steps()
    with pruner(*told)(net):
        return steps()


def right_answer(case, run, q):
    """The answer as it stands in the file."""
    answer = ANSWERS[q.answer]
    if isinstance(answer, str) and answer.lower() == "what it says":
        if "<image>" in TEXTS[q.text]:
            return "w7"
        kind = run.pictures[q.picture]
        kind = "plain" if kind in ("missing", "broken") else kind
        found = said(case.family, kind, q.text, ("full", 1.0, None, "none"), 2)[0]
        found = found or "w7"
        return found.upper() if answer.isupper() else found
    return answer


# One run


def rows_of(case, run, pictures):
    """The questions as rows of a file or of a dataset."""
    rows = []
    for q in run.questions:
        row = {"image": pictures[q.picture], "question": text_of(case.family, q.text)}
        answer = right_answer(case, run, q)
        row |= {"answers": [answer, "w5"]} if q.listed else {"answer": answer}
        row |= {} if q.name is None else {"id": q.name}
        row |= {} if q.metric is None else {"metric": q.metric}
        rows.append(row)
    return rows


def written(case, run, place):
    """A .jsonl of the run's questions."""
    rows = rows_of(case, run, [f"p{i}.png" for i in range(3)])
    text = "".join(json.dumps(row, ensure_ascii=False) + run.line for row in rows)
    path = place / "questions.jsonl"
    path.write_bytes(text.encode(run.encoding))
    return path


def table_of(case, run, place, out):
    """The rows that the run gives."""
    for i, kind in enumerate(run.pictures):
        write(kind, place / f"p{i}.png")
    net, processor = loaded(case.family)
    if run.door == "command":
        path = written(case, run, place)
        told = [
            "evaluate",
            str(path),
            "--out",
            str(out.with_suffix(".parquet")),
            "--model",
            str(folder(case.family)),
        ]
        for method in run.methods or ("uniform",):
            told += ["--method", method]
        told += ["--retention", str(run.retention), "--seeds", "1", "--device", "cpu"]
        told += ["--max-new-tokens", str(run.tokens), "--batch-size", str(run.batch)]
        told += ["--weights", run.weights] if run.weights != "none" else []
        told += ["--positions", run.positions] if run.positions else []
        command(told, charset="cp1252" if run.batch == 2 else "utf-8")
        return pd.read_parquet(out.with_suffix(".parquet"))
    if run.door == "jsonl":
        asked = read_jsonl(written(case, run, place))
    else:
        pictures = []
        for i, kind in enumerate(run.pictures):
            path = place / f"p{i}.png"
            pictures.append(path if kind in ("missing", "broken") else Image.open(path))
        asked = read_rows(rows_of(case, run, pictures))
    methods = [
        name if run.weights == "none" else pruner(name, run.retention, None, run.weights)
        for name in run.methods
    ]
    return evaluate(
        net,
        processor,
        asked,
        methods,
        (run.retention,),
        run.positions,
        seeds=(0,),
        batch_size=run.batch,
        max_new_tokens=run.tokens,
        out=out,
    )


def command(told, charset="utf-8"):
    """Run a command: its output. What it says on stderr with code 2 becomes an error."""
    result = CliRunner(charset=charset).invoke(get_command(app), told)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 1):
        raise ValueError(f"code {result.exit_code}: {result.stderr[-600:]}")
    return result


class Stop(KeyboardInterrupt):
    """Ctrl-C, at a drawn forward."""


def stopped(case, run, place, out):
    """The run, with Ctrl-C at its n-th forward, if it comes so far."""
    left = [run.interrupted]

    def hook(module, args, kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    handle = loaded(case.family)[0].base_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        table_of(case, run, place, out)
    except Stop:
        pass
    finally:
        handle.remove()


def expected(case, run):
    """(question, told) of each row, in order."""
    methods = run.methods or (("uniform",) if run.door == "command" else ())
    for q in run.questions:
        yield q, ("full", 1.0, None, "none")
        for method in methods:
            yield q, (method, run.retention, run.positions, run.weights)


def check(case, run, table):
    wanted = list(expected(case, run))
    if len(table) != len(wanted):
        raise Wrong(
            f"{len(table)} rows for {len(wanted)} questions and settings: {table.id.tolist()}"
        )
    for row, (q, told) in zip(table.itertuples(), wanted, strict=True):
        where = f"{q} {told}"
        kind = run.pictures[q.picture]
        answer = right_answer(case, run, q)
        if row.answer != answer.strip().lower():
            raise Wrong(f"{where}: answer {row.answer!r}, not {answer!r}")
        if kind in ("missing", "broken"):
            if not isinstance(row.error, str) or f"p{q.picture}.png" not in row.error:
                raise Wrong(f"{where}: error {row.error!r} for a picture that is {kind}")
            continue
        words, kept, n = said(case.family, kind, q.text, told, run.tokens)
        if not (row.error is None or row.error != row.error):
            raise Wrong(f"{where}: error {row.error!r} for a good picture")
        if row.prediction != words.lower():
            raise Wrong(f"{where}: prediction {row.prediction!r}, alone {words.lower()!r}")
        if (int(row.kept), int(row.tokens)) != (kept, n):
            raise Wrong(f"{where}: kept {row.kept} of {row.tokens}, alone {kept} of {n}")
        nats = loglik(case.family, kind, q.text, told, answer.strip().lower())
        if not abs(row.loglik - nats) < 10 * LOOSE:
            raise Wrong(f"{where}: loglik {row.loglik:.5f}, alone {nats:.5f}")
        right = [answer.strip().lower(), *(["w5"] if q.listed else [])]
        if bool(row.exact) != (words.lower() in right):
            raise Wrong(f"{where}: exact {row.exact}, said {words!r}")
        if words.lower() in right and row.score != 1:
            raise Wrong(f"{where}: score {row.score} of a right answer")
        if q.metric != "anls" and words.lower() not in right and row.score != 0:
            raise Wrong(f"{where}: score {row.score}, said {words!r}")


def lay(case, place):
    """A file of the user's own where results will go; what must be there afterwards."""
    if case.beside == "json":
        (place / "out.json").write_text('{"annotations": [1, 2, 3]}')
    elif case.beside == "sqlite":
        with sqlite3.connect(place / "out.sqlite") as database:
            database.execute("CREATE TABLE rows (id TEXT, v INT)")
        database.close()
    elif case.beside == "parquet":
        pd.DataFrame({"mine": [1, 2]}).to_parquet(place / "out.parquet")
    elif case.beside == "times":
        told = [
            "measure",
            "--model",
            str(folder(case.family)),
            "--retention",
            "0.25",
            "--turns",
            "1",
        ]
        command([*told, "--new-tokens", "1", "--out", str(place / "out.parquet")])
    if case.beside == "no folder":
        return place / "nowhere" / "out.sqlite", {}
    own = {path.name: path.read_bytes() for path in place.iterdir()}
    if case.beside == "times":
        own.pop("out.json", None)  # fopru's own
    return place / "out.sqlite", own


def results(case):
    warnings.simplefilter("ignore")
    before = state(loaded(case.family)[0])
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        out, own = lay(case, place)
        for run in case.runs:
            try:
                if run.interrupted and run.door != "command":
                    stopped(case, run, place, out)
                check(case, run, table_of(case, run, place, out))
            except Exception as error:
                if not refused(error, (case, run), RESULTS):
                    raise
            for file, content in own.items():
                if not (place / file).exists() or (place / file).read_bytes() != content:
                    raise Wrong(f"{file} of the user's own was changed by {run.door}")
    if state(loaded(case.family)[0]) != before:
        raise Wrong("something is left on the model")


def forget():
    for cached in (loaded, said, loglik):
        cached.cache_clear()


test_results = drawn(drawn_case, results, forget, share=3)


# measure


@dataclass(frozen=True, repr=False)
class Timed(Short):
    way: str
    family: str
    methods: tuple[tuple[str, str], ...]
    retention: float
    rows: int
    tokens: int
    video: bool
    attention: str


def drawn_timed(draws):
    one = draws.choice
    family = one(zoo.FAMILIES)
    names = ["fopru", "random", "divprune", "tome", "cls", "fastv", "pyramiddrop"]
    names = [n for n in names if zoo.undefined(n, family) is None]
    methods = [
        (n, one(["none", "mass"]) if n in ("fopru", "random", "divprune", "cls") else "none")
        for n in draws.sample(names, one([1, 2, 3]))
    ]
    return Timed(
        "measure",
        family,
        tuple(methods),
        one([0.25, 0.5, 1.0]),
        one([1, 2]),
        one([1, 2, 3]),
        family in zoo.VIDEO and draws.once_in(4),
        one(["sdpa", "eager"]),
    )


@cache
def zoo_model(family, attention):
    net = zoo.model(family, attention)
    net.generate(**zoo.inputs(family, [tiny.image()], ["USER: <image> w1"]), max_new_tokens=1)
    return net


def measured(case):
    """Counts of the table are those of a run inside the block; the model is as it was."""
    warnings.simplefilter("ignore")
    net = zoo_model(case.family, case.attention)
    if case.video:
        inputs = zoo.video(case.family)
    else:
        images = [tiny.image(60, 44), tiny.image(44, 70, seed=1)][: case.rows]
        texts = ["USER: <image> w1 w2 w3 ASSISTANT:", "w7 USER: <image> w4 w5 w6 ASSISTANT:"]
        inputs = zoo.inputs(case.family, images, texts[: case.rows])
    pruners = [fopru.METHODS[n](case.retention, weights=w) for n, w in case.methods]
    before = state(net)
    table = fopru.measure(net, dict(inputs), pruners, new_tokens=case.tokens, turns=1)
    if state(net) != before:
        raise Wrong("something is left on the model")
    token = Family.of(net).reading(inputs).image_token_id
    length, rows = inputs["input_ids"].shape[1], len(inputs["input_ids"])
    wanted = [("full", int((inputs["input_ids"] == token).sum()) // rows, length)]
    for (name, _), one in zip(case.methods, pruners, strict=True):
        with one(net) as run, torch.no_grad():
            out = net(**inputs, use_cache=True)
            longest = length if name in ("fastv", "pyramiddrop") else out.logits.shape[1]
            seen = run.layer_weighted
        wanted.append((name, sum(seen) / rows, longest))
    found = list(table.groupby(["method", "visual", "tokens"], sort=False).groups)
    runs = [key for i, key in enumerate(found) if key not in found[:i]]
    if len(set(wanted_keys(wanted))) == len(wanted) and len(runs) != len(wanted):
        raise Wrong(f"{len(runs)} ways in the table, not {len(wanted)}: {runs}")
    for (method, visual, tokens), (name, count, longest) in zip(runs, wanted, strict=False):
        if name not in str(method) or abs(visual - count) > 1 or tokens != longest:
            raise Wrong(
                f"{method}: {visual} of {tokens} tokens, in the block {count:.1f} of {longest}"
            )
    if not (table.seconds > 0).all() or table.seconds.isna().any():
        raise Wrong("a stage without a time")


def wanted_keys(wanted):
    return [(name, round(count)) for name, count, _ in wanted]


def forget_zoo():
    zoo_model.cache_clear()


test_measure = drawn(drawn_timed, measured, forget_zoo, share=3)


# ask, and the metrics


@dataclass(frozen=True, repr=False)
class Asked(Short):
    way: str
    question: int
    charset: str
    as_json: bool
    picture: str
    retention: float


def ask(case):
    """`fopru ask` says something in any console, or refuses in one sentence."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "p\u00e4.png"
        write(case.picture, path)
        told = ["ask", str(path), text_of("llava", case.question), "--model", str(folder("llava"))]
        told += ["--retention", str(case.retention), "--max-new-tokens", "2"]
        told += ["--json"] if case.as_json else []
        out = command(told, case.charset).stdout
        if case.as_json:
            row = json.loads(out)
            if row["question"] != TEXTS[case.question]:
                raise Wrong(f"the question came back as {row['question']!r}")
            words = said("llava", case.picture, case.question, ("full", 1.0, None, "none"), 2)[0]
            if words not in str(row):
                raise Wrong(f"the answer {words!r} is not in {row}")


def drawn_ask(draws):
    one = draws.choice
    return Asked(
        "ask",
        one(range(len(TEXTS))),
        one(["utf-8", "cp1252", "ascii"]),
        one([True, False]),
        one(PICTURES),
        one([0.25, 0.25, 1.0, 2.0]),
    )


test_ask = drawn(drawn_ask, ask, forget, table=ASK, share=10)


@dataclass(frozen=True, repr=False)
class Judged(Short):
    way: str
    metric: str
    answer: str


def judged(case):
    """What is said word for word is right, by every metric."""
    e = Example("1", "t", tiny.image(), "?", case.answer, metric=case.metric)
    if (score := e.score(case.answer.strip().lower())) != 1:
        raise Wrong(f"{case.answer!r} scores {score} of itself by {case.metric}")


def drawn_judgement(draws):
    one = draws.choice
    signs = "0123456789.,-+eE%naif \u0663\u00b2\u00e4"
    words = "".join(one(signs) for _ in range(one(range(6))))
    known = ["nan", "inf", "-inf", "0", "-0.0", "45%", "1e999", " NaN ", "%"]
    return Judged(
        "judged", one(["accuracy", "f1", "anls", "relaxed"]), one([words, words, one(known)])
    )


test_judged = drawn(drawn_judgement, judged, lambda: None)
