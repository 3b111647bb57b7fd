"""PocketBench: frozen questions on frozen pictures, in Parquet files that hold both."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from fopru.arguments import check_choice
from fopru.evaluation import Example
from fopru.pocket import scenes
from fopru.pocket.answers import legal
from fopru.pocket.drawing import SIZE, Question
from fopru.pocket.sampling import METRICS, example, folder


class Split(NamedTuple):
    """How the questions of a split are drawn."""

    stream: int
    """First entry of its scenes' seeds."""
    n: int
    """Questions per task."""
    world: str = "second"
    tasks: tuple[str, ...] = tuple(scenes.TASKS)
    variants: tuple[str, ...] | None = None
    """The variants of question that are asked; None asks all."""


SPLITS = {
    "test": Split(scenes.TEST, 200),
    "validation": Split(scenes.VALIDATION, 100),
    "combinations": Split(
        scenes.COMBINATIONS, 200, "combinations", tuple(scenes.WORLDS["combinations"].tasks)
    ),
    "hallucination": Split(
        scenes.HALLUCINATION, 200, "second", ("presence",), ("likely", "random")
    ),
}

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "task": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "question": pa.string(),
        "answer": pa.string(),
        "choices": pa.list_(pa.string()),
        "evidence": pa.list_(pa.list_(pa.int32())),
        "scene": pa.string(),
    }
)


def benchmark(split: str = "test", task: str | None = None) -> list[Example]:
    """The questions of PocketBench: at least 200 per task to test on.

    Args:
        split: "test", or "validation" for whatever is to be tuned; "combinations" of what training
            never shows together; "hallucination", where the answer is always no: is there what
            often stands beside something that is there (variant "likely"), and is there any other
            thing ("random")?
        task: one of the split's tasks; None for all.

    Raises:
        ValueError: an unknown split or task, or a damaged file.
        FileNotFoundError: PocketBench is neither in the installed package nor in the checkout.
    """
    check_choice("split", split, SPLITS)
    if task is not None:
        check_choice("task", task, SPLITS[split].tasks)
    examples = read(folder("pocketbench") / f"{split}.parquet")
    return [e for e in examples if task in (None, e.task)]


def make(split: str) -> list[Example]:
    """Draw a split anew.

    A picture of which several tasks ask gets one question of each, any other picture two. Variants
    of question take turns; half of the presence questions are to be answered by yes, where any is.
    """
    stream, n, world, asked, variants = SPLITS[split]
    kinds, every, _ = scenes.WORLDS[world]
    examples: list[Example] = []
    for number, kind in enumerate(kinds):
        tasks = [task for task in asked if every[task][0] is kind]
        each = 1 if len(tasks) > 1 else 2
        pictures, index = 0, 0
        while tasks and pictures < n // each:
            seed = (stream, number, index)
            index += 1
            scene = scenes.scene(seed, kind, world=world)
            rng = np.random.default_rng((*seed, 1))
            found = {task: scenes.questions(scene, rng, task) for task in tasks}
            if variants:
                found = {t: [q for q in some if q.variant in variants] for t, some in found.items()}
            if min(map(len, found.values())) < each:
                continue  # two things of one name: nothing can be asked without doubt
            name = f"{split}-{kind.__name__.lower()}-{pictures}"
            for task, turn in product(tasks, range(each)):
                taken = _take(found[task], pictures * each + turn, rng)
                examples.append(example(f"{name}-{task}-{turn}", name, scene, taken))
            pictures += 1
    return examples


def _take(found: list[Question], turn: int, rng: np.random.Generator) -> Question:
    """Remove and return a question of the variant whose turn it is."""
    variants = sorted({q.variant for q in found})
    if "there" in variants:  # presence: every other one is there
        others = [v for v in variants if v != "there"]
        variants = [v for other in others for v in ("there", other)]
    variant = variants[turn % len(variants)]
    of_it = [q for q in found if q.variant == variant]
    question = of_it[rng.integers(len(of_it))]
    found.remove(question)
    return question


def write(examples: Sequence[Example], path: str | Path) -> None:
    """Write questions to a Parquet file, each picture once, as WebP.

    Its pixels are the canonical ones; they differ a little from those that were drawn.

    `datasets.load_dataset("parquet", data_files=...)` and `pandas.read_parquet` read it.
    """
    path = Path(path)
    pictures = {id(e.image): e.image for e in examples}
    encoded = {key: _webp(image) for key, image in pictures.items()}
    rows = [
        {
            "id": e.id,
            "task": e.task,
            "image": {"bytes": encoded[id(e.image)], "path": None},
            "question": e.question,
            "answer": e.answer,
            "choices": e.choices,
            "evidence": e.evidence,
            "scene": json.dumps(e.scene),
        }
        for e in examples
    ]
    feature = {"info": {"features": {"image": {"_type": "Image"}}}}
    schema = SCHEMA.with_metadata({"huggingface": json.dumps(feature)})
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        partial,
        compression="zstd",
        dictionary_pagesize_limit=2**28,  # large enough that no picture is stored twice
    )
    os.replace(partial, path)


def read(path: str | Path) -> list[Example]:
    """Read what `write` wrote; questions on the same picture share it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, or a damaged field: the message names file, row and field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from None
    for name in SCHEMA.names:
        if (
            name not in table.column_names
            or table.schema.field(name).type != SCHEMA.field(name).type
        ):
            raise ValueError(
                f"{path}: field {name!r} is missing, or is not {SCHEMA.field(name).type}."
            )
    pictures: dict[bytes, Image.Image] = {}
    examples = []
    for i, row in enumerate(table.to_pylist()):
        field = "image"
        try:
            data = row["image"]["bytes"]
            if data not in pictures:
                pictures[data] = _open(data)
            field = "scene"
            scene = json.loads(row["scene"])
            field = "evidence"
            evidence = tuple(_box(box) for box in row["evidence"])
            field = "choices"
            choices = tuple(row["choices"] or ()) or legal(row["task"], scene.get("variant"))
            for field in ("id", "task", "question", "answer"):
                if row[field] is None:
                    raise ValueError("must not be empty")
        except (ValueError, TypeError, OSError, SyntaxError) as error:
            raise ValueError(f"{path}, row {i}, field {field!r}: {error}.") from None
        told = (row["question"], row["answer"], choices, evidence, scene)
        metric = METRICS.get(row["task"], "accuracy")
        examples.append(Example(row["id"], row["task"], pictures[data], *told, metric=metric))
    return examples


def _box(box: list[int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"{box} is no box (x0, y0, x1, y1)")
    return x0, y0, x1, y1


def _webp(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=97, method=6)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=("WEBP",))
        if image.size != (SIZE, SIZE):
            raise ValueError(f"a picture of {image.size} pixels, not {SIZE} x {SIZE}")
        return image.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("no WebP picture") from None
