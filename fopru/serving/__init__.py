"""Pruning where many users ask at once: inside vLLM, or before an engine that takes embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from fopru.families import Family, UnsupportedModelError
from fopru.pruner import Pruner


def embeddings(model: PreTrainedModel, inputs: Mapping[str, Any], pruner: Pruner) -> list[Tensor]:
    """Return what to send, in place of each picture, to an engine that takes image embeddings.

    Such an engine (vLLM with `enable_mm_embeds`) puts as many placeholders into the prompt as a
    picture has embeddings, and so needs no plug-in. The engine runs no vision tower; that of
    `model` runs here.

    Args:
        model: A model of transformers, whose language model does not run.
        inputs: What the model's processor returned for the pictures and a prompt.
        pruner: A method that works before the language model.

    Returns:
        For each picture, in the order of the prompts, (k, d) on the CPU.

    Raises:
        UnsupportedModelError: position ids of this family are places in the picture, which an
            engine cannot know of pruned embeddings.

    Example:
        >>> model, processor = fopru.load("llava-hf/llava-1.5-7b-hf")
        >>> (one,) = fopru.serving.embeddings(model, inputs, fopru.FoPru(0.25))
        >>> llm.generate({"prompt": text, "multi_modal_data": {"image": one[None]}})
    """
    family = Family.of(model)
    if pruner.numbering(family) != "reindex":
        raise UnsupportedModelError(
            f"embeddings of {family.title} with positions='preserve': the engine numbers what it "
            "gets without gaps, as positions='reindex' does in families whose position ids are "
            "not places in the picture."
        )
    return [feature.cpu() for feature in pruner.prune(model, inputs).features]
