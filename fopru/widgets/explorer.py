"""Explorer: what is kept of a picture, and what the model then says and knows, under a slider.

Everything that the page shows before a kernel answers lies in the widget's state, and `explorer.js`
selects tokens itself, so it works in a static page, in JupyterLab, VS Code and Colab alike.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anywidget
import pandas as pd
import torch
import traitlets
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from fopru.arguments import check_choice
from fopru.encoding import Tap, TowerPass, run_tower
from fopru.evaluation import evaluate
from fopru.evaluation.asking import answer, inputs_of
from fopru.evaluation.batch import Batch, Setting
from fopru.evaluation.evidence import cover, frame
from fopru.evaluation.tasks import Example
from fopru.families import Family
from fopru.methods import FoPru
from fopru.picking import floor_share
from fopru.pictures import load_image, to_image
from fopru.plots import look as look_of
from fopru.pocket.drawing import COLORS
from fopru.pruner import METHODS
from fopru.redundancy import Fixed
from fopru.significance import attention_scores

RETENTIONS = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.125, 0.15, 0.2),
    *(0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0),
)
"""The stops of the slider, at which the model was asked."""

PAGE = {
    "fopru": ("rank", "FoPru, rank"),
    "fopru-row": ("row", "FoPru, row"),
    "random": ("random", "random"),
}
"""The methods whose tokens the page selects itself: how it selects, and what it calls them. The
tokens of all others come with the state."""

SIDE = 336
"""The pixels a side of the picture that the page gets, where the processor does not say."""

MODULES = ("model.js", "input.js", "parts.js", "explorer.js")
"""The page's half, from what imports nothing to what imports the others."""


def page_source(modules: Sequence[str] = MODULES) -> str:
    """Return these files of a page's half as one module, or style sheet, as anywidget takes it."""
    text = "\n".join(Path(__file__).with_name(name).read_text("utf-8") for name in modules)
    return re.sub(r'^import .* from "\./.*";\n', "", text, flags=re.MULTILINE)


@dataclass(frozen=True)
class Everywhere:
    """Wants of `encode` the attention of each block that shapes the tokens."""

    axes: tuple[str, ...]
    """Names in `fopru.significance.AXES`."""

    def taps(self, family: Family) -> set[Tap]:
        """Return the taps of all blocks that shape the tokens."""
        blocks = range(family.block(None) + 1)
        return {Tap(block, axis) for block in blocks for axis in self.axes}


class Explorer(anywidget.AnyWidget):
    """Shows pictures, the significance of their patches, and what stays and is answered at each
    retention.

    With a kernel it also takes a picture and question of the reader's own, and answers for the
    tokens that any block, head and kind of attention would keep.

    Args:
        model: A model of a family that sees each picture as one grid of patches.
        processor: The model's processor.
        examples: The questions to choose from.
        methods: Names in `fopru.METHODS`, without those inside the language model.
        live: Where a page of a site finds this model, to run it without a kernel: an address from
            the site's root, of a folder with what `fopru.widgets.export` wrote, in "pocket", and
            onnxruntime-web, in "ort". Left out, the page runs no model.

    Raises:
        UnsupportedModelError: a family that `fopru.evaluate` does not take.
        ValueError: an unknown method, no examples, a picture of several views, or attention that is
            not finite.
    """

    _esm = page_source()
    _css = page_source(("parts.css", "explorer.css"))

    scenes = traitlets.List().tag(sync=True)
    methods = traitlets.List().tag(sync=True)
    """A mapping for each method: its name, how the page selects, its label, and its colour."""
    retentions = traitlets.List(list(RETENTIONS)).tag(sync=True)
    axes = traitlets.List().tag(sync=True)
    layout_of_maps = traitlets.List().tag(sync=True)
    """(blocks, heads + 1, axes): the shape of the maps; the first head is the mean of all."""
    colors = traitlets.Dict(COLORS).tag(sync=True)
    """Names and (red, green, blue) of what the reader can draw with."""
    live = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        examples: Sequence[Example],
        methods: Sequence[str] = ("fopru", "fopru-row", "random", "divprune"),
        live: str = "",
    ):
        allowed = tuple(
            name
            for name, cls in METHODS.items()
            if cls.selects() and cls.budgeted and "view" in cls.shares
        )
        for method in methods:
            check_choice("methods", method, allowed)
        if not examples:
            raise ValueError("examples=[]: the explorer needs at least one question.")
        super().__init__(live=live)
        self._model, self._processor = model, processor
        self._examples: list[Example] = []
        family = Family.of(model)
        self.methods = [
            {"name": name, "kind": kind, "label": label, "color": look_of(name)[0]}
            for name in methods
            for kind, label in [PAGE.get(name, ("given", METHODS[name].__name__))]
        ]
        self.axes = axes_of(family)
        self.layout_of_maps = [family.block(None) + 1, family.heads + 1, len(self.axes)]
        self.scenes = self._scenes(examples)
        self.on_msg(self._message)

    def add(self, image: Image.Image | str | Path, question: str, answer: str = "") -> None:
        """Add one more picture and question, and show it at once.

        Args:
            image: A picture, or the file that holds one.
            answer: The right answer; left out, the model's own with all tokens stands for it.

        Raises:
            ValueError: no question, or as of the explorer itself.
        """
        if not question.strip():
            raise ValueError(f"question={question!r}: ask something.")
        example = Example(f"own-{len(self._examples)}", "yours", image, question.strip(), answer)
        self.scenes = [*self.scenes, *self._scenes([example])]

    def _scenes(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        examples = [self._ready(example) for example in examples]
        names = [method["name"] for method in self.methods]
        rows = evaluate(
            self._model, self._processor, examples, names, RETENTIONS, seeds=[0], max_new_tokens=8
        )
        scenes = [self._scene(example, rows[rows.id == example.id]) for example in examples]
        self._examples += examples
        return scenes

    def _ready(self, example: Example) -> Example:
        """Return the question with its picture in memory as RGB, and with an answer."""
        if example.modality == "video":
            raise ValueError(
                f"examples: {example.id!r} is about a video; the explorer has pictures."
            )
        example = replace(example, image=to_image(example.image))
        if example.answer:
            return example
        (said,) = answer(self._model, self._processor, [example], max_new_tokens=8)
        return replace(example, answer=said, scene={"assumed": True})

    def _scene(self, example: Example, rows: pd.DataFrame) -> dict[str, Any]:
        """Return all that the page needs to know of one question."""
        model, processor = self._model, self._processor
        inputs = inputs_of(processor, [example]).to(model.device)
        pruners = {m["name"]: METHODS[m["name"]] for m in self.methods if m["kind"] == "given"}
        everywhere = Everywhere(tuple(self.axes))
        tower = run_tower(
            model, inputs, [everywhere, FoPru(), *(cls() for cls in pruners.values())]
        )
        grid = tower.grids[0]
        if len(tower.grids) > 1 or len(grid.views) > 1 or grid.views[0].newline:
            raise ValueError(
                f"model: {tower.family.title} sees a picture in several parts or with newline "
                "tokens, and the explorer draws one grid of patches."
            )
        (view,) = grid.views
        encoded = tower.scored()
        kept = {
            name: [cls(r).compact(encoded).images[0].kept.tolist() for r in RETENTIONS]
            for name, cls in pruners.items()
        }
        score = FoPru().score(encoded.images[0])
        received = torch.equal(score, encoded.images[0].tap("received"))
        evidence = cover(grid, frame(example.image, processor), example.evidence) > 0.2
        order = torch.randperm(view.n_tokens, generator=torch.Generator().manual_seed(0))
        return {
            "task": example.task,
            "question": example.question,
            "answer": example.answer,
            "assumed": "assumed" in example.scene,
            "image": picture(example.image, processor),
            "height": view.height,
            "width": view.width,
            "maps": packed(head_maps(tower, tuple(self.axes))),
            "criterion": "received" if received else "given",
            "evidence": evidence.nonzero().flatten().tolist(),
            "order": order.tolist(),  # of `Random`, by its seed
            "counts": [floor_share(view.n_tokens, r) for r in RETENTIONS],
            "rows": [floor_share(view.height, r) for r in RETENTIONS],
            "kept": kept,
            "answers": {name: page_answers(rows, name) for name in rows.method.unique()},
        }

    def _message(self, widget: Any, content: Any, buffers: Any) -> None:
        """Handle a message of the page; whatever is wrong with it goes back as a sentence."""
        kind = content.get("kind") if isinstance(content, dict) else None
        try:
            if kind == "hello":
                self.send({"kind": "live"})
            elif kind == "ask":
                self.send({"kind": "said", "token": content["token"], **self._ask(content)})
            elif kind == "own":
                self._own(content)
                self.send({"kind": "added", "scene": len(self.scenes) - 1})
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.send({"kind": "error", "text": str(error)})

    def _ask(self, content: dict[str, Any]) -> dict[str, Any]:
        example, kept = self._examples[content["scene"]], content["kept"]
        pruner = Fixed(tokens=len(kept), indices=tuple(kept))
        setting = Setting("chosen", pruner, 1.0)
        batch = Batch(self._model, self._processor, [example], [setting])
        with torch.no_grad():
            (row,) = batch.rows(setting, max_new_tokens=8)
        return page_answer(row)

    def _own(self, content: dict[str, Any]) -> None:
        try:
            data = base64.b64decode(content["image"], validate=True)
        except binascii.Error:
            raise ValueError("the picture did not arrive whole: choose it again.") from None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "your picture"
            path.write_bytes(data)
            try:
                image = load_image(path)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), path.name)) from None
        self.add(image, str(content["question"]))


def page_answers(rows: pd.DataFrame, method: str) -> list[dict[str, Any]]:
    """Return what the page is told of a method's rows, one for each retention."""
    return [page_answer(row) for row in rows[rows.method == method].to_dict("records")]


def page_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page is told of a row of `evaluate`.

    Returns:
        text (said), p (the right answer's probability with its end), right, begins, and of a
        question that names its legal answers also formed (one of them was said) and knows (by
        forced choice), which are None otherwise.
    """
    found = {"text": row["prediction"], "p": math.exp(row["loglik"])}
    readings = {"right": "exact", "begins": "begins", "formed": "formed", "knows": "choice"}
    said = {name: row[column] for name, column in readings.items()}
    return found | {name: None if pd.isna(v) else bool(v) for name, v in said.items()}


def picture(image: Image.Image, processor: ProcessorMixin, lossless: bool = True) -> str:
    """Return what the tower sees of a picture, as a data URL.

    It is of the size that the tower sees where that is known, so that a page which runs the model
    can begin with it if it is lossless.
    """
    seen = image.crop(tuple(round(edge) for edge in frame(image, processor)))
    size = getattr(processor.image_processor, "crop_size", None)
    side = (size["width"], size["height"]) if size else (SIDE, SIDE)
    data = io.BytesIO()
    seen.resize(side, Image.Resampling.BICUBIC).save(data, format="webp", lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def axes_of(family: Family) -> list[str]:
    """Return the axes of attention that the page shows, by their names."""
    return ["received", "given", *(["cls"] if family.n_prefix else [])]


def head_maps(tower: TowerPass, axes: tuple[str, ...]) -> Tensor:
    """Return the scores of the one picture by head: (blocks, heads + 1, axes, N) float32.

    The mean over heads comes first: at the block that FoPru reads it is what FoPru ranks by.
    """
    family, maps = tower.family, []
    blocks = range(family.block(None) + 1)
    for block in blocks:
        calls = tower.attention[block]  # several where a block attends within windows
        for head in (slice(None), *(slice(h, h + 1) for h in range(family.heads))):
            found = [
                attention_scores(
                    call.query[:, head],  # (1, h, T, d)
                    call.key[:, head],
                    call.scaling,
                    family.n_prefix,
                    axes,
                    visible=call.visible,
                )
                for call in calls
            ]
            maps += [torch.cat([call[axis][0] for call in found]) for axis in axes]  # (P,) each
    (table,) = family.tokens([torch.stack(maps, 1)], tower.inputs)  # (N, c)
    shape = (len(blocks), -1, len(axes), len(table))
    return table.T.reshape(shape).float().cpu()


def packed(maps: Tensor) -> str:
    """Encode maps as base64 of little-endian float32.

    Raises:
        ValueError: there are no tokens, or a value is not finite.
    """
    if not maps.numel():
        raise ValueError(f"maps of shape {tuple(maps.shape)}: there are no visual tokens to show.")
    if not maps.isfinite().all():
        raise ValueError(
            f"maps hold {int((~maps.isfinite()).sum())} values that are not finite: the vision "
            "tower's attention has NaN or infinity in it."
        )
    return base64.b64encode(maps.numpy().astype("<f4").tobytes()).decode()
