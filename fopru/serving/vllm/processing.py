"""What a request's pictures become in vLLM: fewer placeholders, and a budget that goes with each.

The number of placeholders and the number of features are read from the same budget, so that the
prompt and the model cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from fopru.serving.vllm.settings import adapter, budget, default, n_kept, pruner_of, settled

NAME = "fopru"
"""What a picture's budget is called among vLLM's fields, and a request's settings among its
arguments."""


def others(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that belong to the processor of transformers."""
    return {name: value for name, value in kwargs.items() if name != NAME}


class PicturesAlone:
    """Mixin of a family's processing info: what is pruned are pictures, and videos are refused."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return that a prompt may hold any number of pictures, and no video."""
        return {"image": None, "video": 0}


class PrunedProcessor:
    """Mixin of a family's processor: each picture gets its budget, and as many placeholders.

    Raises:
        ValueError: the engine's own settings are bad.
    """

    def __init__(self, info: Any, *args: Any, **kwargs: Any):
        super().__init__(info, *args, **kwargs)
        config = info.get_hf_config()
        pruner_of(default(config))
        self.family = adapter(config)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Return the largest inputs there can be, for vLLM's memory profile: a request may ask for
        every token."""
        whole = {NAME: {"retention": 1.0}}
        return replace(super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs=whole)

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request whose settings are written out in full: so they are part of the hash
        that all of vLLM's caches go by."""
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        kwargs[NAME] = settled(self.info.get_hf_config(), kwargs.get(NAME, {}))
        return super().apply(replace(inputs, hf_processor_mm_kwargs=kwargs), timing_ctx)

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Any) -> Any:
        return super()._get_hf_mm_inputs(mm_items, others(hf_kwargs))

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        if "image_embeds" in hf_inputs:
            raise ValueError(
                "fopru: image embeddings were given, and tokens are chosen by the vision tower's "
                "attention, which embeddings do not carry: send pictures."
            )
        if self.family.pixels[0] in hf_inputs:
            pruner = pruner_of(hf_processor_mm_kwargs[NAME])
            budgets = [budget(pruner, grid) for grid in self.family.grids(hf_inputs)]
            hf_inputs[NAME] = torch.stack(budgets)
        own = super()._get_mm_fields_config(hf_inputs, others(hf_processor_mm_kwargs))
        return {**own, NAME: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> list[PromptReplacement]:
        token = self.family.image_token_id

        def placeholders(i: int) -> list[int]:
            return [token] * n_kept(out_mm_kwargs["image"][i][NAME].data)

        return [PromptReplacement("image", [token], placeholders)]
