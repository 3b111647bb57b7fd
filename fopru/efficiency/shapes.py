"""Models of the true size with random weights: speed and memory do not depend on the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import init_empty_weights
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from fopru.arguments import check_choice, check_integer
from fopru.families import Family

FOLDER = Path(__file__).parent / "configs"
SHAPES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
"""The names of models whose published configurations are shipped.

qwen3-vl-8b and qwen3.5-9b are from the `config.json` that models tuned from them have on the Hub
(Chhagan005/CSM-DocExtract-8N and Steinate/Cortex; khtsly/Mini-Coder, KnowledgeXLab/ComActor-9B and
the defaults of transformers' `Qwen3_5Config`). Their parameters are the published 8.77 billion, and
8.95 billion beside the vision tower.

Of gemma-4-12b (google/gemma-4-12B-it) the language model is as
https://iamulya.one/posts/decoder-forward-pass-dimensions/ quotes its config.json, and the rest as
transformers' defaults; it has 11.96 billion parameters, its card says 11.95.
"""

MARGIN = 1.1
"""How many times the bytes of its weights a model needs at the least to run."""


def config(shape: str) -> PretrainedConfig:
    """Return the configuration of a shape.

    Raises:
        ValueError: there is no such shape.
    """
    check_choice("shape", shape, SHAPES)
    return AutoConfig.for_model(**json.loads((FOLDER / f"{shape}.json").read_text()))


def empty(shape: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Return a model of this shape without memory for its weights."""
    with init_empty_weights(include_buffers=False), _quiet():
        model = AutoModelForImageTextToText.from_config(config(shape), dtype=dtype).eval()
    model.tie_weights()  # of which the context above has made two
    return model


def memory(model: PreTrainedModel, device: torch.device | str) -> tuple[int, int]:
    """Return the bytes that a model's weights need, and those that the device has.

    Raises:
        ValueError: CUDA is asked for, and there is none.
    """
    device = torch.device(device)
    needed = round(MARGIN * sum(p.nbytes for p in model.parameters()))
    if device.type != "cuda":
        return needed, psutil.virtual_memory().available
    if not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: there is no CUDA device here; use 'cpu'.")
    return needed, torch.cuda.mem_get_info(device)[0]


def build(
    shape: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """Return a model of this shape with random weights, made where it runs, tensor by tensor.

    Args:
        shape: A name in `fopru.efficiency.SHAPES`.
        device: Where the model is made and runs.
        dtype: That of its weights.

    Raises:
        ValueError: an unknown shape, CUDA where there is none, or too little memory.
    """
    model = empty(shape, dtype)
    needed, available = memory(model, device)
    if needed > available:
        raise ValueError(
            f"shape={shape!r}: needs about {needed / 1e9:.1f} GB on {device}, and "
            f"{available / 1e9:.1f} GB are available."
        )
    noise = torch.randn(2**24, device=device, dtype=dtype) * 0.02
    for module, name, parameter in tqdm(list(_parameters(model)), unit="tensor", desc=shape):
        filled = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.dim() < 2:
            filled.fill_(1.0 if name == "weight" else 0.0)  # norms and biases
        else:
            for part in filled.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)])
        setattr(module, name, nn.Parameter(filled, requires_grad=False))
    model.tie_weights()
    for module in model.modules():
        for name, value in module.named_buffers(recurse=False):
            module.register_buffer(name, value.to(device), persistent=False)
    model.generation_config.eos_token_id = None
    return model


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each once, in the first of the modules that share it."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter


@contextmanager
def _quiet():
    """Silence warnings about configuration that concern trained weights only."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def prompt(model: PreTrainedModel, text: int = 44, batch: int = 1) -> dict[str, Any]:
    """Return random prompts on the CPU, each with one picture of the size that the model is known
    for.

    Args:
        text: The number of tokens that are not visual.
        batch: The number of prompts.

    Raises:
        ValueError: `text` or `batch` below 1.
    """
    check_integer("text", text, minimum=1)
    check_integer("batch", batch, minimum=1)
    vision, family = model.config.vision_config, Family.of(model)
    draw = torch.Generator().manual_seed(0)
    data: dict[str, Any] = {}
    if family.spatial:  # 1,008 x 1,008 pixels, 1,296 tokens of 28 each, or 1,024 x 1,024 of 32
        side = -(-504 // vision.patch_size) * 2
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        data["pixel_values"] = torch.randn(batch * side**2, width, generator=draw)
        data["image_grid_thw"] = torch.tensor([[1, side, side]] * batch)
    elif "image_position_ids" in family.pixels:  # a square picture: 256 tokens, padded to 280
        side, most = 16 * family.side, 280 * family.side**2
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1)  # (P, 2)
        places = torch.nn.functional.pad(places, (0, 0, 0, most - side**2), value=-1)
        width = 3 * (vision.patch_size * vision.pooling_kernel_size // family.side) ** 2
        data["pixel_values"] = torch.randn(batch, most, width, generator=draw)
        data["image_position_ids"] = places.expand(batch, -1, -1)
    elif model.config.model_type == "llava_next":  # 672 x 672: a base view and four tiles
        pixels = torch.randn(batch, 5, 3, vision.image_size, vision.image_size, generator=draw)
        data |= {"pixel_values": pixels, "image_sizes": torch.tensor([[672, 672]] * batch)}
    else:
        size = (batch, 3, vision.image_size, vision.image_size)
        data["pixel_values"] = torch.randn(size, generator=draw)
    data["pixel_values"] = data["pixel_values"].to(model.dtype)
    visual = family.grids(data)[0].n_tokens
    words = torch.randint(3, 30000, (batch, text), generator=draw)
    image = torch.full((batch, visual), model.config.image_token_id)
    before = text // 3
    ids = torch.cat([words[:, :before], image, words[:, before:]], 1)
    kinds = {"mm_token_type_ids": (ids == model.config.image_token_id).long()}
    return {
        **data,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **(kinds if family.spatial or "image_position_ids" in data else {}),
    }
