"""What a benchmark consists of, and how an answer to it is judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Example:
    """One question about one picture."""

    id: str
    task: str
    image: Image.Image | Path = field(repr=False)
    """RGB, or the file that holds it, which is read when the question is asked."""
    question: str
    answer: str
    """Right when the decoded answer, stripped and lower-cased, equals it."""
    choices: tuple[str, ...] | None = None
    evidence: tuple[tuple[int, int, int, int], ...] = ()
    """Boxes (x0, y0, x1, y1) in pixels that hold what the answer rests on; empty where there is
    nothing to see, as for a "no"."""
    scene: dict[str, Any] = field(default_factory=dict, repr=False)
    """Ground truth; `scene["image_id"]` is shared by questions on the same picture."""
    also: tuple[str, ...] = ()
    """Other answers that are right."""
    metric: str = "accuracy"
    """One of `METRICS`."""

    def score(self, said: str) -> float:
        """How right an answer is, in [0, 1]: the best over all right answers."""
        return max(METRICS[self.metric](said, right.lower()) for right in (self.answer, *self.also))


def exact(said: str, right: str) -> float:
    return float(said == right)


def anls(said: str, right: str) -> float:
    """1 - edit distance / longer length, 0 where that is below 0.5 (DocVQA's metric, Biten et al.,
    "Scene Text Visual Question Answering", ICCV 2019)."""
    longest = max(len(said), len(right), 1)
    likeness = 1 - _edits(said, right) / longest
    return likeness if likeness >= 0.5 else 0.0


def relaxed(said: str, right: str) -> float:
    """Exact, or for numbers within 5 % of the right one (ChartQA's metric, Masry et al., 2022)."""
    try:
        return float(abs(float(said) - float(right)) <= 0.05 * abs(float(right)))
    except ValueError:
        return exact(said, right)


METRICS: dict[str, Callable[[str, str], float]] = {
    "accuracy": exact,
    "f1": exact,  # of "yes", over all questions: `statistics.f1`
    "anls": anls,
    "relaxed": relaxed,
}


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def read_jsonl(path: str | Path) -> list[Example]:
    """Questions of your own, one JSON object a line, with the fields of `read_rows`.

    "image" is a file, relative to this one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no such object: the message names file, line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    pictures: dict[str, Path] = {}
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("must be an object.")
                if not isinstance(row.get("image"), str):
                    raise ValueError("field 'image' is missing or not a text.")
                name = row["image"]
                row["image"] = pictures.setdefault(name, path.parent / name)
                examples.append(_parsed({"image_id": name, **row}, number))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not examples:
        raise ValueError(f"{path} holds no questions.")
    return examples


def read_rows(rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Questions from a Hugging Face dataset, or from any other rows.

    Fields: "image" (a PIL image or a file), "question", "answers" (a list, the first is the one
    whose likelihood is measured) or "answer"; and, if you like, "id", "task", "choices", "evidence"
    (boxes in pixels), "metric" (one of `METRICS`) and "image_id" (rows that agree in it share the
    first one's picture).

    Raises:
        ValueError: a row without these: the message names row and field.
    """
    pictures: dict[Any, Any] = {}
    examples = []
    for number, row in enumerate(rows):
        try:
            image = row.get("image")
            if isinstance(image, Image.Image):
                image = image.convert("RGB")
            elif isinstance(image, str | Path):
                image = Path(image)
            else:
                raise ValueError("field 'image' is missing, or neither a PIL image nor a file.")
            name = row.get("image_id", str(image) if isinstance(image, Path) else f"row {number}")
            image = pictures.setdefault(name, image)
            examples.append(_parsed({**row, "image": image, "image_id": name}, number))
        except (ValueError, TypeError) as error:
            raise ValueError(f"row {number}: {error}") from None
    return examples


def _parsed(row: Mapping[str, Any], number: int) -> Example:
    if not isinstance(row.get("question"), str):
        raise ValueError("field 'question' is missing or not a text.")
    answers = row.get("answers", [row["answer"]] if "answer" in row else None)
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError("field 'answers' is missing or not a list of texts.")
    if row.get("metric", "accuracy") not in METRICS:
        raise ValueError(f"field 'metric' is {row['metric']!r}, not one of {', '.join(METRICS)}.")
    return Example(
        id=str(row.get("id", number)),
        task=str(row.get("task", "questions")),
        image=row["image"],
        question=row["question"],
        answer=answers[0].strip().lower(),
        choices=_texts(row.get("choices")),
        evidence=tuple(_box(box) for box in row.get("evidence", ())),
        scene={"image_id": row["image_id"]},
        also=tuple(a.strip().lower() for a in answers[1:]),
        metric=row.get("metric", "accuracy"),
    )


def _texts(choices: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if choices is None else tuple(map(str, choices))


def _box(box: Sequence[int]) -> tuple[int, int, int, int]:
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"field 'evidence' holds {box}, which is no box (x0, y0, x1, y1).")
    x0, y0, x1, y1 = map(int, box)
    return x0, y0, x1, y1
