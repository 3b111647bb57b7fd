"""What a benchmark consists of, and how an answer to it is judged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fopru.evaluation.metrics import METRICS
from fopru.pictures import load_image, plain
from fopru.videos import Video


@dataclass(frozen=True)
class Example:
    """One question about one picture or video.

    Raises:
        ValueError: A picture that is neither a PIL image nor a path, what is no `fopru.Video`, a
            question or answer that is no text, or an unknown metric.
    """

    id: str
    """The name of the question; no two questions of a comparison share one."""
    task: str
    """The task that it counts to, by which tables are grouped."""
    image: Image.Image | Path | Video = field(repr=False)
    """The picture, or the file that holds it (a path), which is read when the question is asked; or
    a `fopru.Video`, which a list of frames and an array (T, H, W, 3) become."""
    question: str
    """The question as a user would ask it, without placeholders of the picture."""
    answer: str
    """The right answer. What the model says is compared with it stripped and in lower case."""
    choices: tuple[str, ...] | None = field(default=None, repr=False)
    """The legal answers, or None where there is no such list; the reading "known" needs it."""
    evidence: tuple[tuple[int, int, int, int], ...] = ()
    """Boxes (x0, y0, x1, y1) in pixels that hold what the answer rests on, in every frame of a
    video; empty where there is nothing to see, as for a "no"."""
    scene: dict[str, Any] = field(default_factory=dict, repr=False)
    """The ground truth of the picture; `scene["image_id"]` is shared by questions on the same
    picture."""
    also: tuple[str, ...] = ()
    """Other answers that are right too."""
    metric: str = "accuracy"
    """A name in `fopru.evaluation.metrics.METRICS`."""

    def __post_init__(self):
        if isinstance(self.image, str):
            object.__setattr__(self, "image", Path(self.image))
        elif isinstance(self.image, list | tuple | np.ndarray):
            object.__setattr__(self, "image", Video(self.image))
        if not isinstance(self.image, Image.Image | Path | Video):
            raise ValueError(
                f"image={self.image!r}: must be a PIL image, the path of a file, or a fopru.Video."
            )
        for name in ("question", "answer"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a text.")
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r}: must be one of {', '.join(METRICS)}.")

    @property
    def modality(self) -> str:
        """What is shown, "image" or "video"."""
        return "video" if isinstance(self.image, Video) else "image"

    @property
    def right(self) -> tuple[str, ...]:
        """All right answers, stripped and in lower case, as the model's are."""
        return tuple(text.strip().lower() for text in (self.answer, *self.also))

    def score(self, said: str) -> float:
        """Return how right an answer is, in [0, 1]: the best over all right answers.

        Args:
            said: The model's answer, stripped and in lower case.
        """
        return max(METRICS[self.metric].each(said, right) for right in self.right)


def in_memory(image: Image.Image | Path | Video) -> Image.Image | Video:
    """Return a picture or a video with its pixels in memory, upright, RGB.

    Raises:
        ValueError: Its file cannot be read.
    """
    if isinstance(image, Video):
        return image.read()
    return load_image(image) if isinstance(image, Path) else plain(image)


def read_jsonl(path: str | Path) -> list[Example]:
    """Read questions of your own, one JSON object a line, with the fields of `read_rows`.

    "image" or "video" is a file, relative to this one; a video may be a folder of pictures. A
    question without "id" is called by this file's name and its line. The text is UTF-8, with or
    without a byte order mark.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no such object (the message names file, line and field), or the file
            is no UTF-8 text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error.reason}): save it as UTF-8.") from None
    lines = {number: line for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
    if not lines:
        raise ValueError(f"{path} holds no questions.")
    examples: dict[str, Example] = {}
    pictures: dict[str, tuple[Any, int]] = {}
    for number, line in lines.items():
        try:
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"is no JSON ({error.msg}, column {error.colno}).") from None
            if not isinstance(row, dict):
                raise ValueError("must be an object, as {...}.")
            row.setdefault("id", None)
            if row["id"] is None:
                row["id"] = f"{path.name}:{number}"
            for name in ("image", "video"):
                if isinstance(row.get(name), str) and row[name]:
                    row[name] = path.parent / row[name]
            _add(row, number, "line", examples, pictures)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return list(examples.values())


def read_rows(rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Read questions from a Hugging Face dataset, or from any other rows.

    Fields: "image" (a PIL image or a file) or "video" (what `fopru.Video` takes; "fps" and
    "n_frames" go with it), "question", "answers" (a list of texts, the first is the one whose
    likelihood is measured) or "answer" (a text); and, if you like, "id" (a text or an integer, the
    row's number if there is none), "task", "choices", "evidence" (boxes in pixels), "metric" (one
    of `fopru.evaluation.metrics.METRICS`) and "image_id" (rows that agree in it are on the same
    picture). A field that is None counts as missing.

    Raises:
        ValueError: There are no rows, or one is not like this: the message names row and field.
    """
    if isinstance(rows, Mapping):
        raise ValueError("rows: must be a list of rows, not one.")
    examples: dict[str, Example] = {}
    pictures: dict[str, tuple[Any, int]] = {}
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, Mapping):
                raise ValueError(f"is {type(row).__name__}, not a mapping of fields.")
            _add(row, number, "row", examples, pictures)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    if not examples:
        raise ValueError("rows: there are none.")
    return list(examples.values())


def _add(
    row: Mapping[str, Any],
    number: int,
    unit: str,
    examples: dict[str, Example],
    pictures: dict[str, tuple[Any, int]],
) -> None:
    """Read one row into `examples`, id -> question; `pictures` are those of the rows before it,
    image_id -> picture and number of its first row."""
    row = {name: value for name, value in row.items() if value is not None}
    image = _shown(row)
    file = image.source if isinstance(image, Video) else image
    default = str(file) if isinstance(file, Path) else f"{unit} {number}"
    name = str(row.get("image_id", default))
    first, where = pictures.setdefault(name, (image, number))
    if not _same(first, image):
        raise ValueError(f"field 'image_id' is {name!r} as in {unit} {where}, on another picture.")
    identity = row.get("id", number)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError(f"field 'id' is {identity!r}, which is no text or integer.")
    identity = str(identity)
    if identity in examples:
        raise ValueError(f"field 'id' is {identity!r}, as that of a question before.")
    answers = _answers(row)
    metric = row.get("metric", "accuracy")
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"field 'metric' is {metric!r}, not one of {', '.join(METRICS)}.")
    examples[identity] = Example(
        id=identity,
        task=str(row.get("task", "questions")),
        image=first,
        question=_text(row, "question"),
        answer=answers[0],
        choices=_choices(row.get("choices")),
        evidence=_boxes(row.get("evidence", ())),
        scene={"image_id": name},
        also=tuple(answers[1:]),
        metric=metric,
    )


def _shown(row: Mapping[str, Any]) -> Image.Image | Path | Video:
    """Return the picture or the video of a row."""
    image, video = row.get("image"), row.get("video")
    if video is not None:
        if image is not None:
            raise ValueError("there are fields 'image' and 'video': a question is about one.")
        told = {name: row[name] for name in ("fps", "n_frames") if name in row}
        return video if isinstance(video, Video) else Video(video, **told)
    if isinstance(image, Image.Image):
        return plain(image)
    if isinstance(image, str | Path) and str(image):
        return Path(image)
    raise ValueError("field 'image' is missing, or neither a PIL image nor a file.")


def _same(one: Image.Image | Path | Video, other: Image.Image | Path | Video) -> bool:
    """Return whether two pictures are one: the same path, or the same pixels."""
    if isinstance(one, Video) and isinstance(other, Video):
        frames, others = (
            v.source if isinstance(v.source, tuple) else [v.source] for v in (one, other)
        )
        told = (one.fps, one.n_frames, len(frames)) == (other.fps, other.n_frames, len(others))
        return told and all(map(_same, frames, others))
    if one is other or not (isinstance(one, Image.Image) and isinstance(other, Image.Image)):
        return one == other
    return one.size == other.size and one.tobytes() == other.tobytes()


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise ValueError(f"field {name!r} is missing or not a text.")
    return row[name]


def _answers(row: Mapping[str, Any]) -> list[str]:
    """Return the right answers, stripped and in lower case."""
    if "answers" not in row:
        answers = [_text(row, "answer")]
    else:
        answers = row["answers"]
        listed = isinstance(answers, list | tuple) and len(answers) > 0
        if not listed or not all(isinstance(answer, str) for answer in answers):
            raise ValueError("field 'answers' is not a list of texts.")
    if not answers[0].strip():
        raise ValueError("the right answer is an empty text.")
    return [answer.strip().lower() for answer in answers]


def _choices(choices: Any) -> tuple[str, ...] | None:
    if choices is None:
        return None
    if not isinstance(choices, list | tuple):
        raise ValueError(f"field 'choices' is {choices!r}, which is no list.")
    return tuple(map(str, choices))


def _boxes(boxes: Any) -> tuple[tuple[int, int, int, int], ...]:
    if not isinstance(boxes, list | tuple):
        raise ValueError(f"field 'evidence' is {boxes!r}, which is no list of boxes.")
    return tuple(_box(box) for box in boxes)


def _box(box: Sequence[int]) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = map(int, box)
    except (TypeError, ValueError):
        x0 = y0 = x1 = y1 = 0
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"field 'evidence' holds {box!r}, which is no box (x0, y0, x1, y1).")
    return x0, y0, x1, y1
