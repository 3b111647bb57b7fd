"""The model `fopru` of lmms-eval, and where PocketBench lies as its tasks (extra `fopru[lmms]`).

    lmms-eval --model fopru --model_args pretrained=pocket,method=fopru,retention=0.25 \\
        --tasks pocketbench --include_path fopru/evaluation/lmms_tasks

lmms-eval finds `manifest` by its entry point. Nothing else in fopru imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.utils import Collator
from tqdm import tqdm

from fopru.arguments import check_choice, check_integer
from fopru.evaluation.runner import launched
from fopru.loading import load
from fopru.pruner import METHODS, Pruner

TASKS = Path(__file__).with_name("lmms_tasks")
"""The folder to give to lmms-eval as `--include_path`."""


def manifest() -> Any:
    """Return what the entry point tells lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest  # reads the entry points: not at import

    return ModelManifest("fopru", chat_class_path=f"{__name__}.PrunedModel")


class PrunedModel(lmms):
    """A vision-language model of a supported family, with all its visual tokens or few of them.

    Args:
        pretrained: "pocket" for the embedded model, else a Hugging Face id or a folder.
        method: A name in `fopru.METHODS`, or "full" for no pruning.
        retention: The share of each picture's visual tokens to keep, in (0, 1]; 0.25 if not given.
        positions: "reindex", "preserve", or the family's default.
        dtype: The dtype of the weights, as "bfloat16"; "auto" is that of the files.
        device: The value of lmms-eval's `--device`; else a GPU if there is one. Each process of
            `accelerate launch` has its own.
        device_map: "auto" spreads one model over several GPUs, in one process.
        batch_size: The value of lmms-eval's `--batch_size`.
        max_new_tokens: The longest answer, in tokens, where the task names none.
        options: The method's other arguments, as `tokens` (a number to keep of each picture, in
            place of `retention`), `layer` or `attention`.

    Raises:
        ValueError: an unknown method or argument, or a value outside of what it takes.
    """

    is_simple = False  # tasks hand over conversations, for the processor's own chat template

    def __init__(
        self,
        pretrained: str = "pocket",
        method: str = "fopru",
        retention: float | None = None,
        positions: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int = 1024,
        **options: Any,
    ):
        super().__init__()
        self.pruner = _pruner(method, retention, positions, options)
        processes = launched()
        self._rank, self._world_size = processes.process_index, processes.num_processes
        if device_map is not None and self.world_size > 1:
            raise ValueError(
                f"device_map={device_map!r}: each of {self.world_size} processes has a device of "
                "its own. Start one process, or leave it out."
            )
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else batch_size
        check_integer("batch_size", self.batch_size, minimum=1)
        self.max_new_tokens = max_new_tokens
        self.model, self.processor = load(pretrained, dtype=dtype, device_map=device_map)
        if device_map is None:
            alone = device is not None and self.world_size == 1
            self.model.to(device if alone else processes.device)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return what the model says to each request, stripped."""
        order = Collator(
            [request.args for request in requests],
            sort_fn=lambda request: -len(request[0]),
            group_fn=lambda request: request[2],
            grouping=True,
        )
        pruning = nullcontext() if self.pruner is None else self.pruner(self.model)
        said: list[str] = []
        with pruning, tqdm(total=len(requests), desc="fopru", disable=self.rank > 0) as bar:
            for part in order.get_batched(self.batch_size):
                said += self._answers(part)
                bar.update(len(part))
        return order.get_original(said)

    def _answers(self, requests: Sequence[tuple]) -> list[str]:
        """Answer a batch of requests that are generated with the same settings."""
        chats = [
            messages(self.task_dict[task][split][number])
            for _, messages, _, number, task, split in requests
        ]
        for part in (part for chat in chats for turn in chat for part in turn["content"]):
            if part["type"] not in ("text", "image"):
                task = requests[0][4]
                raise ValueError(f"task {task!r} has {part['type']}: fopru takes pictures only.")
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.device, self.model.dtype)
        settings = requests[0][2]
        out = self.model.generate(**inputs, **_generation(settings, self.max_new_tokens))
        new = out[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [_cut(text, settings.get("until")).strip() for text in texts]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse tasks of likelihood: there are none for pruned pictures."""
        raise NotImplementedError("fopru generates answers: it has no tasks of likelihood.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse tasks of many rounds: a request is one question."""
        raise NotImplementedError("fopru answers single questions: it has no tasks of many rounds.")


def _pruner(
    method: str, retention: float | None, positions: str | None, options: Mapping[str, Any]
) -> Pruner | None:
    check_choice("method", method, ("full", *METHODS))
    options = {"retention": retention, "positions": positions, **options}
    options = {name: value for name, value in options.items() if value is not None}
    if method == "full":
        if options:
            raise ValueError(f"{next(iter(options))}: method 'full' prunes nothing and takes none.")
        return None
    allowed = tuple(field.name for field in fields(METHODS[method]))
    for name in options:
        check_choice("model_args", name, allowed)
    return METHODS[method](**options)


def _generation(settings: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Return those of a task's settings that are `generate`'s; it samples where there is a
    temperature."""
    sampled = bool(settings.get("temperature"))
    names = ("max_new_tokens", "num_beams", *(("temperature", "top_p", "top_k") if sampled else ()))
    known = {name: settings[name] for name in names if settings.get(name) is not None}
    return {"max_new_tokens": longest, "do_sample": sampled, **known}


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """Return the text up to a task's stop string; an empty line, which is lmms-eval's default, does
    not count."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop.strip("\n"):
            text = text.split(stop)[0]
    return text
