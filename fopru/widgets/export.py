"""The whole of a small model as files that a page runs by itself, with no kernel and no server.

`export` writes two ONNX graphs and what stands around them. The eye takes a picture to the features
of its patches and to all attention of the vision tower. The mouth takes a prompt, with some of the
features in it, to what is likely to be said next. `model.js` beside this module runs them.

It needs onnx and onnxscript, which `pip install "fopru[book]"` brings.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel, ProcessorMixin

from fopru.evaluation.asking import chat, inputs_of
from fopru.evaluation.tasks import Example
from fopru.families import Family, UnsupportedModelError
from fopru.loading import load
from fopru.pocket.answers import NAMED, QUESTIONS
from fopru.widgets.explorer import axes_of

OPSET = 18
"""The version of ONNX's operators that the graphs use."""


class Eye(nn.Module):
    """Takes the pixels of one picture to features (N, d) and maps (blocks, heads + 1, axes, N).

    The maps are those of `fopru.widgets.explorer.head_maps`.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, family = model.base_model, Family.of(model)
        self.prefix, self.axes = family.n_prefix, axes_of(family)
        self.blocks = family.block(None) + 1

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the maps."""
        output = self.model.get_image_features(pixels, output_attentions=True, return_dict=True)
        attention = torch.cat(output.attentions[: self.blocks])  # (blocks, heads, T, T)
        attention = torch.cat([attention.mean(1, keepdim=True), attention], 1)
        patches = attention[..., self.prefix :, self.prefix :]  # (blocks, heads + 1, N, N)
        found = {"received": patches.mean(-2), "given": patches.mean(-1)}
        if self.prefix:
            found["cls"] = attention[..., 0, self.prefix :]
        return output.pooler_output[0], torch.stack([found[axis] for axis in self.axes], 2)


class Mouth(nn.Module):
    """Takes a prompt with k visual tokens to the logits (a, V) after each of its last a tokens."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.words = model.get_input_embeddings()
        self.decoder, self.head = Family.of(model).decoder, model.get_output_embeddings()

    def forward(
        self, before: Tensor, features: Tensor, after: Tensor, positions: Tensor, weights: Tensor
    ) -> Tensor:
        """Return the logits.

        Args:
            before: (1, b) ids ahead of the picture.
            features: (1, k, d) of the kept tokens.
            after: (1, a) ids behind the picture.
            positions: (1, b + k + a) position ids.
            weights: (k,) logarithms of what the kept tokens weigh; 0 where nothing is weighed.
        """
        tokens = torch.cat([self.words(before), features, self.words(after)], 1)  # (1, T, d)
        ends = [torch.zeros_like(ids[0], dtype=tokens.dtype) for ids in (before, after)]
        bias = torch.cat([ends[0], weights, ends[1]])  # (T,)
        size, lowest = bias.shape[0], torch.finfo(tokens.dtype).min  # len() would fix the size
        future = torch.full((size, size), lowest).triu(1)  # (T, T)
        state = self.decoder(
            inputs_embeds=tokens,
            attention_mask=(future + bias)[None, None],
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return self.head(state[0, -after.shape[1] :])


def export(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: str | Path,
    questions: Sequence[tuple[str, Sequence[str]]] = QUESTIONS,
) -> None:
    """Write eye.onnx, mouth.onnx and model.json, by which a page runs the model as the package
    does.

    Args:
        model: A LLaVA whose tower sees each picture as one square, such as "pocket", in float32.
        processor: The model's processor, whose tokenizer is a lower-casing WordPiece.
        folder: Where the files go; it is made if need be.
        questions: A regular expression that finds one kind of question, and the kind's legal
            answers, in lower case. The first that is found counts.

    Raises:
        UnsupportedModelError: A model of another family, or with another kind of tokenizer or
            picture processor than `model.js` has.
        ValueError: The model is not in float32.
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    folder = Path(folder)
    told = _told(model, processor, questions)  # what cannot be told is refused before any work
    folder.mkdir(parents=True, exist_ok=True)
    copied = copy.deepcopy(model).eval()
    copied.set_attn_implementation("eager")  # whose maps can be had
    before, after = (torch.tensor([told["prompt"][name]]) for name in ("before", "behind"))
    n, width = told["height"] * told["width"], model.config.text_config.hidden_size
    features = torch.zeros(1, n - 1, width)
    length = before.shape[1] + n - 1 + after.shape[1]
    spoken = (before, features, after, torch.arange(length)[None], torch.zeros(n - 1))
    pixels = torch.zeros(1, 3, told["image"]["height"], told["image"]["width"])
    _write(folder / "eye.onnx", Eye(copied), {"pixels": pixels}, ["features", "maps"], {})
    names = ("before", "features", "after", "positions", "weights")
    axes = {name: {0 if name == "weights" else 1: Dim.DYNAMIC} for name in names}
    inputs = dict(zip(names, spoken, strict=True))
    _write(folder / "mouth.onnx", Mouth(copied), inputs, ["logits"], axes)
    told = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    (folder / "model.json").write_text(told, encoding="utf-8")


@torch.no_grad()
def _write(
    path: Path,
    graph: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: list[str],
    dynamic: Mapping[str, Mapping[int, Any]],
) -> None:
    torch.onnx.export(
        graph.eval(),
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple(dynamic.get(name) for name in inputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _told(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[tuple[str, Sequence[str]]],
) -> dict[str, Any]:
    """Return all that the page has to know besides the graphs."""
    family = Family.of(model)
    if model.config.model_type != "llava" or not family.n_prefix:
        raise UnsupportedModelError(
            f"model: {family.title} ({model.config.model_type}) does not run in a page; a LLaVA "
            "with a CLIP tower does."
        )
    if model.dtype != torch.float32:
        raise ValueError(f"model: its weights are {model.dtype}, and a page computes in float32.")
    (grid,) = family.grids(_asked(processor, "?"))
    (view,) = grid.views
    drawn = torch.randperm(view.n_tokens, generator=torch.Generator().manual_seed(0))
    stops = model.generation_config.eos_token_id
    return {
        "image": _image(processor),
        "height": view.height,
        "width": view.width,
        "layout": [family.block(None) + 1, family.heads + 1, len(axes_of(family))],
        "axes": axes_of(family),
        "words": _words(processor),
        "prompt": _prompt(processor, family, view.n_tokens),
        "stops": stops if isinstance(stops, list) else [stops],
        "order": drawn.tolist(),  # of `Random`, by its seed
        "questions": [[pattern, list(answers)] for pattern, answers in questions],
        "named": NAMED,
    }


def _asked(processor: ProcessorMixin, question: str) -> Mapping[str, Tensor]:
    """Return the inputs of a question about a black picture."""
    example = Example("", "", Image.new("RGB", (8, 8)), question, "")
    return inputs_of(processor, [example])


def _image(processor: ProcessorMixin) -> dict[str, Any]:
    """Return how a picture becomes pixels."""
    images = processor.image_processor
    size, crop = dict(images.size), dict(images.crop_size)
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    short = size.get("shortest_edge")
    whole = all(getattr(images, step) for step in steps) and short and not size.get("longest_edge")
    if not whole or short < max(crop.values()) or images.resample != Image.Resampling.BICUBIC:
        raise UnsupportedModelError(
            "processor: the page prepares pictures as CLIP's does: bicubic to a shortest edge, "
            f"centre crop, rescale, normalise. This one has size={size}, crop_size={crop}, "
            f"resample={images.resample}, "
            + ", ".join(f"{step}={getattr(images, step)}" for step in steps)
            + "."
        )
    return {
        "short": short,
        "height": crop["height"],
        "width": crop["width"],
        "scale": images.rescale_factor,
        "mean": list(images.image_mean),
        "std": list(images.image_std),
    }


def _words(processor: ProcessorMixin) -> dict[str, Any]:
    """Return how text becomes ids, and ids text."""
    tokenizer = processor.tokenizer
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = [
        (told[part] or {}).get("type")
        for part in ("normalizer", "pre_tokenizer", "model", "decoder")
    ]
    if kinds != ["Lowercase", "BertPreTokenizer", "WordPiece", "WordPiece"]:
        raise UnsupportedModelError(
            "processor: the page reads words as a lower-casing WordPiece does, and this tokenizer "
            f"is made of {kinds}."
        )
    ids = tokenizer.get_vocab()
    return {
        "tokens": sorted(ids, key=ids.get),
        "special": sorted(tokenizer.all_special_ids),
        "unknown": tokenizer.unk_token_id,
        "end": tokenizer.eos_token_id,
        "prefix": told["model"]["continuing_subword_prefix"],
        "longest": told["model"]["max_input_chars_per_word"],
    }


def _prompt(processor: ProcessorMixin, family: Family, n: int) -> dict[str, list[int]]:
    """Return the ids before the picture, between it and the question, and behind the question."""
    question, mark = "where is it?", "\ue000"
    tokenizer, image = processor.tokenizer, processor.image_token
    text = processor.apply_chat_template([chat(mark)], add_generation_prompt=True)[0]
    before, *rest = text.split(image)
    ahead, *behind = (rest[0] if len(rest) == 1 else "").split(mark)

    def ids(words: str) -> list[int]:
        return tokenizer(words, add_special_tokens=False).input_ids

    start = tokenizer(before).input_ids
    found = {"before": start, "ahead": ids(ahead), "behind": ids("".join(behind))}
    whole = _asked(processor, question)["input_ids"][0].tolist()
    pictured = [family.image_token_id] * n
    if whole != [*start, *pictured, *found["ahead"], *ids(question), *found["behind"]]:
        raise UnsupportedModelError(
            f"processor: its chat template ({text!r}) does not fall into a part before the "
            "picture, one before the question and one behind it, so that a page cannot fill it."
        )
    return found


if __name__ == "__main__":
    export(*load("pocket"), sys.argv[1])
