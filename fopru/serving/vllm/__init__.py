"""The plug-in of vLLM: architectures whose pictures reach the language model pruned.

vLLM finds `register` by the entry point `vllm.general_plugins` as soon as fopru is installed beside
it. Nothing changes until an engine is started with one of these architectures, by
`--hf-overrides '{"architectures": ["FoPruLlavaForConditionalGeneration"], "fopru": {"retention":
0.25}}'`. What stands under "fopru" is the engine's own pruner; a request may ask for another budget
by `mm_processor_kwargs={"fopru": {"retention": 0.5}}`.
"""

from __future__ import annotations

ARCHITECTURES = {
    "FoPruLlavaForConditionalGeneration": "llava:PrunedLlava",
    "FoPruLlavaNextForConditionalGeneration": "llava_next:PrunedLlavaNext",
    "FoPruLlavaOnevisionForConditionalGeneration": "llava_onevision:PrunedLlavaOnevision",
    "FoPruQwen2_5_VLForConditionalGeneration": "qwen2_5_vl:PrunedQwen25VL",
    "FoPruQwen3VLForConditionalGeneration": "qwen3_vl:PrunedQwen3VL",
}
"""Each architecture that the plug-in adds -> its module and class."""

TESTED = ("0.32",)
"""The versions of vLLM on which fopru's tests of this plug-in pass."""


def register() -> None:
    """Tell vLLM the architectures; it calls this in every process, and imports none of them yet."""
    from vllm import ModelRegistry

    for name, place in ARCHITECTURES.items():
        ModelRegistry.register_model(name, f"{__name__}.{place}")
