"""Time by stage, in turns: every way to answer once, then all again in the other order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Cache, PreTrainedModel

from fopru.applying import Session, cache_name, cache_of
from fopru.applying.session import During, at_once
from fopru.arguments import check_integer, check_list
from fopru.encoding import run_tower
from fopru.families import Family
from fopru.pruned import all_positions
from fopru.pruner import Pruner

STAGES = ("vision", "scoring", "selection", "compaction", "prefill", "decode")
"""The stages of an answer in their order; "decode" is the time of one token after the first."""

SPREAD = 0.15
"""A stage is unstable where its quartiles are further apart than this share of the median."""

T = TypeVar("T")


class Clock:
    """Measures the seconds of single calls; on a GPU between two events, after all earlier work is
    done."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, stage: str, call: Callable[[], T]) -> T:
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            begin.record()
            result = call()
            end.record()
            end.synchronize()
            taken = begin.elapsed_time(end) / 1000
        else:
            start = time.perf_counter()
            result = call()
            taken = time.perf_counter() - start
        self.seconds.setdefault(stage, []).append(taken)
        return result


def _attention(query: torch.Size, key: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Count the operations of q . k and of the weighted sum of values, masked or not."""
    rows, heads, queries, width = query
    return 4 * rows * heads * queries * key[2] * width


class Counter:
    """Counts the floating-point operations of the matrix products in single calls, where a clock
    takes seconds."""

    more: ClassVar = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    """The operations that torch's counter leaves out, each with a function that counts it."""

    def __init__(self) -> None:
        self.flops: dict[str, int] = {}

    def __call__(self, stage: str, call: Callable[[], T]) -> T:
        with FlopCounterMode(display=False, custom_mapping=self.more) as counter:
            result = call()
        self.flops[stage] = counter.get_total_flops()
        return result


@dataclass
class Way:
    """One way to answer the prompts: with all visual tokens, or with those a pruner keeps."""

    model: PreTrainedModel
    inputs: Mapping[str, Any]
    label: str
    """What the table calls this way."""
    pruner: Pruner | None
    steps: int
    """The number of tokens to decode after the first."""
    clock: Clock
    flops: dict[str, int] = field(default_factory=dict)
    kv_bytes: int = 0
    visual: int = 0
    tokens: int = 0
    peak: list[int] = field(default_factory=list)

    def run(self, during: During) -> None:
        """Run all stages, each of them through `during`."""
        if self.pruner is None:
            self._answer(self._whole(during), during)
            return
        with self.pruner(self.model) as session:
            prompt = self._pruned(session, during)
            self._answer(prompt, during)
            self.visual = round(sum(session.layer_weighted) / len(session.layer_weighted))

    def _whole(self, during: During) -> dict[str, Any]:
        """Return the arguments of prefill with all visual tokens."""
        family = Family.of(self.model).reading(self.inputs)
        grids = family.grids(self.inputs)
        self.visual = sum(grid.n_tokens for grid in grids) // len(self.inputs["input_ids"])
        output = during("vision", lambda: family.pictures(self.inputs))
        text = {n: v for n, v in self.inputs.items() if n not in (*family.pixels, *family.options)}
        text |= all_positions(family, text, grids)
        return {**text, "mm_encoder_outputs": {family.modality: output}}

    def _pruned(self, session: Session, during: During) -> dict[str, Any]:
        """Return the arguments of prefill with the kept tokens, within the session's block."""
        tower = during("vision", lambda: run_tower(self.model, self.inputs, [self.pruner]))
        encoded = during("scoring", tower.scored)
        return dict(session.arguments(encoded, during))

    def _answer(self, prompt: Mapping[str, Any], during: During) -> None:
        """Run prefill and the greedy steps after it."""
        out = during("prefill", lambda: self.model(**prompt, use_cache=True, logits_to_keep=1))
        if self.steps:
            during("decode", lambda: self._decode(prompt, out))
        self.tokens = prompt["input_ids"].shape[1]
        self.kv_bytes = kv_bytes(cache_of(out))

    def _decode(self, prompt: Mapping[str, Any], out: Any) -> None:
        """Run greedy steps on the KV cache."""
        mask, positions = prompt.get("attention_mask"), prompt.get("position_ids")
        name, cache = cache_name(self.model), cache_of(out)
        for _ in range(self.steps):
            token = out.logits[:, -1:].argmax(-1)  # (B, 1)
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            if positions is not None:
                positions = positions[..., -1:] + 1
            out = self.model(
                input_ids=token,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{name: cache},
            )

    def take_turn(self) -> None:
        """Time the stages one by one, then all of them in one go, then the prefill of a prompt that
        was short from the start."""
        self.run(self.clock)
        with peak_memory(self.clock.device) as peak:
            self.clock("end to end", lambda: self.run(at_once))
        self.peak.append(peak())
        if self.pruner is not None:
            with self.pruner(self.model) as session:
                prompt = self._pruned(session, at_once) if session.shortens else None
        if self.pruner is not None and prompt is not None:
            names = ("input_ids", "mm_encoder_outputs")
            short = {name: prompt[name] for name in names}
            self.clock(
                "native prefill", lambda: self.model(**short, use_cache=True, logits_to_keep=1)
            )

    def _share(self) -> float:
        """The share of the pictures' visual tokens that the pruner was asked to keep, or kept where
        each picture decides."""
        if self.pruner is None or self.pruner.share is not None:
            return 1.0 if self.pruner is None else self.pruner.share
        grids = Family.of(self.model).reading(self.inputs).grids(self.inputs)
        there = sum(grid.n_tokens for grid in grids)
        if not self.pruner.budgeted:
            return self.visual * len(self.inputs["input_ids"]) / there
        return self.pruner.tokens * len(grids) / there

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row of the table for each stage."""
        batch, family = len(self.inputs["input_ids"]), Family.of(self.model)
        for stage, taken in self.clock.seconds.items():
            times = pd.Series(taken) / (self.steps if stage == "decode" else 1)
            low, median, high = times.quantile([0.25, 0.5, 0.75])
            yield {
                "method": self.label,
                "retention": self._share(),
                "budget": None if self.pruner is None else self.pruner.tokens,
                "attention": None if self.pruner is None else self.pruner.attended(family),
                "stage": stage,
                "seconds": median,
                "low": low,
                "high": high,
                "unstable": bool(high - low > SPREAD * median),
                "flops": self.flops.get(stage),
                "batch": batch,
                "visual": self.visual,
                "tokens": self.tokens,
                "new_tokens": self.steps + 1,
                "kv_bytes": self.kv_bytes,
                "peak_bytes": max(self.peak),
                "prompts_per_s": batch / median if stage == "end to end" else None,
            }


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    pruners: Sequence[Pruner] | Mapping[str, Pruner],
    new_tokens: int = 8,
    turns: int = 7,
) -> pd.DataFrame:
    """Measure what each pruner costs and saves on these prompts, beside the model as it is
    ("full").

    In one turn each way to answer runs once. A first turn is not counted. Then there are `turns`
    turns, every other one in reverse order. A turn times each stage apart (on a GPU synchronised),
    then all of them in one go ("end to end": synchronising for stages changes what is timed), and
    the prefill of a prompt with that many visual tokens and nothing else ("native prefill"), which
    is the limit of what pruning before the language model can reach. What `generate` does around
    each step is not pruning's and is left out.

    Args:
        model: A model of a family in `fopru.families`, where it is to run.
        inputs: What its processor returned for one batch, whose size is the batch size of the
            table.
        pruners: such as `[fopru.FoPru(0.5)]`, or `{"label": pruner}` to say what the table calls
            each. Each works as in `with pruner(model)`.
        new_tokens: The length of the answers, which do not stop before.
        turns: How often each stage is timed.

    Returns:
        One row per pruner and stage ("vision", "scoring", "selection", "compaction", "prefill",
        "decode" per token, "end to end", "native prefill"): method, retention (the share that
        was asked for; of a method without a budget, that it kept), budget (the number of tokens,
        where that was asked for), attention (as in `fopru.evaluate`), seconds (median), low and
        high (quartiles), unstable (they are more than 15 % of the median apart), flops, batch,
        visual and tokens (of each prompt, kept; inside the LLM the mean over its layers),
        new_tokens, kv_bytes (the cache's own tensors), peak_bytes (end to end: of CUDA's allocator,
        on a CPU resident memory), prompts_per_s. `attrs` say machine, threads and clock.

    Raises:
        ValueError: `new_tokens` or `turns` below 1, inputs without images, or something else than
            pruners.

    Example:
        >>> table = fopru.measure(model, inputs, [fopru.FoPru(0.25), fopru.FastV(0.25)])
        >>> table.pivot(index="method", columns="stage", values="seconds")
    """
    check_integer("new_tokens", new_tokens, minimum=1)
    check_integer("turns", turns, minimum=1)
    inputs = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if name != "labels"  # answers are timed, not training
    }
    check_list("pruners", pruners)
    named = pruners.items() if isinstance(pruners, Mapping) else ((None, p) for p in pruners)
    ways = [Way(model, inputs, "full", None, new_tokens - 1, Clock(model.device))]
    for name, pruner in named:
        match pruner:
            case Pruner():
                label = pruner.label if name is None else name
            case _:
                raise ValueError(f"pruners: {pruner!r} is no pruner, such as fopru.FoPru().")
        ways.append(Way(model, inputs, label, pruner, new_tokens - 1, Clock(model.device)))
    for way in ways:
        counter = Counter()
        way.run(counter)
        way.flops = counter.flops
        if way.steps:
            way.flops["decode"] //= way.steps
    for turn in range(turns):
        for way in ways if turn % 2 == 0 else reversed(ways):
            way.take_turn()
    table = pd.DataFrame([row for way in ways for row in way.rows()])
    table.attrs = {"threads": torch.get_num_threads(), "turns": turns, "clock_mhz": _clock()}
    return table


def kv_bytes(cache: Cache) -> int:
    """Return the bytes of all that a KV cache holds: keys and values, and the states of layers with
    linear attention, which are of one size however long the prompt is."""
    held = []
    for layer in cache.layers:
        held += [getattr(layer, name, None) for name in ("keys", "values")]
        for name in ("conv_states", "recurrent_states"):
            held += getattr(layer, name, {}).values()
    return sum(tensor.nbytes for tensor in held if tensor is not None)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Watch the most memory in use within the block: bytes of CUDA's allocator, else of the
    process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():  # no Linux: what is resident at the end
        yield lambda: psutil.Process().memory_info().rss
        return
    reset.write_text("5")
    yield lambda: 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])


def _clock() -> float | None:
    frequency = psutil.cpu_freq()
    return frequency.current if frequency else None
