import json
from collections import Counter
from itertools import combinations, product

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fopru
from fopru.pocket import pocketbench, scenes
from fopru.pocket.second import COMPANIONS

CELLS = [(name, task) for name, split in pocketbench.SPLITS.items() for task in split.tasks]


@pytest.mark.parametrize("split, task", CELLS)
def test_each_task_has_its_questions_and_each_answer_its_evidence(split, task):
    examples = fopru.pocket.benchmark(split, task)
    assert len(examples) == pocketbench.SPLITS[split].n
    assert len({e.id for e in examples}) == len(examples)
    for e in examples:
        assert e.image.size == (224, 224)
        assert e.image.mode == "RGB"
        seen = e.answer not in ("no", "0") and e.scene["variant"] not in ("fact", "number")
        if task != "attributes":  # whose relations rest on things in either case
            assert bool(e.evidence) == seen, e


@pytest.mark.parametrize("split, more", [("test", ("likely",)), ("combinations", ())])
def test_presence_is_balanced_and_its_negatives_are_of_several_kinds(split, more):
    examples = fopru.pocket.benchmark(split, "presence")
    assert Counter(e.answer for e in examples) == {"yes": 100, "no": 100}
    kinds = {"there", "random", "popular", "adversarial", *more}
    assert {e.scene["variant"] for e in examples} == kinds


def test_hallucination_asks_for_what_is_expected_and_for_what_is_not_on_the_same_pictures():
    """The answer is no throughout; what is likely is the companion of something that is there."""
    examples = fopru.pocket.benchmark("hallucination")
    assert {e.answer for e in examples} == {"no"}
    asked = {}
    for e in examples:
        there = {(o["color"], o["shape"]) for o in e.scene["objects"]}
        pair = tuple(e.question.removesuffix("?").split()[-2:])
        expected = {COMPANIONS.get(one) for one in there}
        assert pair not in there
        assert (pair in expected) == (e.scene["variant"] == "likely")
        asked.setdefault(e.scene["image_id"], []).append(e.scene["variant"])
    assert len(asked) == 100
    assert all(sorted(variants) == ["likely", "random"] for variants in asked.values())


def test_splits_share_no_picture_with_each_other_or_with_other_scenes():
    def ids(examples):
        return {json.dumps({**e.scene, "variant": "", "image_id": ""}) for e in examples}

    splits = [ids(fopru.pocket.benchmark(split)) for split in pocketbench.SPLITS]
    others = [ids(fopru.pocket.sample(n=200, seed=0, world=world)) for world in scenes.WORLDS]
    pairs = [*combinations(splits, 2), *product(splits, others)]
    assert all(not (a & b) for a, b in pairs)


@pytest.mark.parametrize("split", ["validation", "combinations", "hallucination"])
def test_the_frozen_file_is_what_make_draws(split):
    """Questions to the letter; pictures up to WebP's loss."""
    drawn, frozen = pocketbench.make(split), fopru.pocket.benchmark(split)
    for a, b in zip(drawn, frozen, strict=True):
        assert (a.id, a.question, a.answer, a.choices, a.evidence) == (
            b.id,
            b.question,
            b.answer,
            b.choices,
            b.evidence,
        )
        assert json.loads(json.dumps(a.scene)) == b.scene
    for a, b in list(zip(drawn, frozen, strict=True))[::80]:
        difference = np.asarray(a.image).astype(int) - np.asarray(b.image)
        assert np.abs(difference).mean() < 4


def test_what_is_written_is_read_back(tmp_path):
    examples = fopru.pocket.sample(n=12, seed=5)
    pocketbench.write(examples, tmp_path / "more.parquet")
    again = pocketbench.read(tmp_path / "more.parquet")
    assert [(e.id, e.question, e.answer, e.choices, e.evidence) for e in again] == [
        (e.id, e.question, e.answer, e.choices, e.evidence) for e in examples
    ]
    assert len({id(e.image) for e in again}) == len({id(e.image) for e in examples})
    assert list(pd.read_parquet(tmp_path / "more.parquet").columns) == pocketbench.SCHEMA.names


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("image", {"bytes": b"RIFF", "path": None}, r"row 1, field 'image': no WebP picture"),
        ("image", {"bytes": None, "path": "x.png"}, r"row 1, field 'image'"),
        ("evidence", [[5, 5, 5, 9]], r"row 1, field 'evidence': \[5, 5, 5, 9\] is no box"),
        ("scene", "{", r"row 1, field 'scene'"),
        ("answer", None, r"row 1, field 'answer': must not be empty"),
    ],
)
def test_damaged_rows_are_named(tmp_path, field, value, message):
    path = tmp_path / "bad.parquet"
    pocketbench.write(fopru.pocket.sample("reading", n=3), path)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1][field] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(ValueError, match=rf"bad\.parquet, {message}"):
        pocketbench.read(path)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "bad.parquet"
    pocketbench.write(fopru.pocket.sample("reading", n=3), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"bad\.parquet is no whole Parquet file"):
        pocketbench.read(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(ValueError, match=r"field 'task' is missing"):
        pocketbench.read(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.parquet"):
        pocketbench.read(tmp_path / "none.parquet")


def test_unknown_splits_and_tasks():
    with pytest.raises(ValueError, match="split='train': must be one of 'test', 'validation'"):
        fopru.pocket.benchmark("train")
    with pytest.raises(ValueError, match="task='poetry': must be one of 'presence'"):
        fopru.pocket.benchmark("test", "poetry")
