"""What the machine allows, and what measured stages predict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fopru.arguments import check_integer


@dataclass(frozen=True)
class Machine:
    """How fast a device copies and multiplies, as the limits of `roofline`."""

    bytes_per_s: float
    """Bytes read and written per second by a copy that is much larger than any cache."""
    flops_per_s: float
    """Floating-point operations per second of a product of two large matrices."""

    @staticmethod
    def measured(
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> Machine:
        """Measure a device: the best of five copies of 256 MiB and of five products of 2,048 x
        2,048 matrices."""
        device = torch.device(device)
        block = torch.ones(2**27, dtype=torch.bfloat16, device=device)
        other = torch.empty_like(block)
        matrix = torch.randn(2048, 2048, device=device).to(dtype)
        copy = _best(lambda: other.copy_(block), device)
        product = _best(lambda: matrix @ matrix, device)
        return Machine(2 * block.nbytes / copy, 2 * 2048**3 / product)


def _best(call: Callable[[], Any], device: torch.device) -> float:
    taken = []
    for _ in range(6):  # the first is not counted
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def roofline(machine: Machine, decoder: nn.Module, flops: float, kv_bytes: float) -> float:
    """Return the seconds that a pass of the language model takes at the least on this machine.

    This is the longer of two times: that of its operations at the rate of a large product, and that
    of reading all weights and the KV cache once at the rate of a large copy (Williams et al.,
    "Roofline", CACM 2009).

    Args:
        decoder: The module that the pass goes through.
        flops: The floating-point operations of one prefill or one step.
        kv_bytes: The bytes of the KV cache that it reads or writes.
    """
    weights = sum(parameter.nbytes for parameter in decoder.parameters())
    return max(flops / machine.flops_per_s, (weights + kv_bytes) / machine.bytes_per_s)


@dataclass(frozen=True)
class Latency:
    """The seconds of an answer as functions of lengths, fitted to a table of `fopru.measure`."""

    vision: float
    """The seconds of the vision tower without pruning."""
    prefill: tuple[float, float, float]
    """(a, b, c): prefill takes a + b L + c L squared seconds for a prompt of L tokens."""
    decode: tuple[float, float]
    """(a, b): each further token takes a + b L seconds with L tokens in the KV cache."""
    overhead: dict[str, tuple[float, float]]
    """method -> (a, b): pruning adds a + b k seconds for k kept visual tokens, and that includes
    what the tower takes more or less than without pruning."""

    @staticmethod
    def fit(table: pd.DataFrame) -> Latency:
        """Fit by least squares over the retentions of a table, which holds one batch size.

        Raises:
            ValueError: several batch sizes, or fewer than four lengths of the prompt.
        """
        if (batches := sorted(set(table.batch)))[1:]:
            raise ValueError(f"table: has batch sizes {batches}; fit each apart.")
        wide = table.pivot_table(
            index=["method", "retention", "visual", "tokens"], columns="stage", values="seconds"
        ).reset_index()
        outside = wide[wide["native prefill"].notna() | (wide.method == "full")]
        if outside.tokens.nunique() < 4:
            raise ValueError(
                f"table: prompts of {outside.tokens.nunique()} lengths; a curve needs 4 or more."
            )
        lengths = outside.tokens.to_numpy(float)
        prefill = np.polyfit(lengths, outside.prefill, 2, w=1 / outside.prefill)[::-1]
        decode = np.polyfit(lengths, outside.decode, 1, w=1 / outside.decode)[::-1]
        if decode[1] < 0:  # within the noise: a longer cache makes no step faster
            decode = np.array([outside.decode.mean(), 0.0])
        vision = float(wide.loc[wide.method == "full", "vision"].iloc[0])
        overhead = {"full": (0.0, 0.0)}
        for method, part in outside[outside.method != "full"].groupby("method"):
            added = part[["vision", "scoring", "selection", "compaction"]].sum(axis=1) - vision
            if len(part) > 1:
                slope, base = np.polyfit(part.visual, added, 1)
            else:
                slope, base = 0.0, added.iloc[0]
            overhead[str(method)] = (float(base), float(slope))
        return Latency(vision, tuple(prefill), tuple(decode), overhead)

    def __call__(
        self, visual: int, text: int, answer: int, method: str = "full", cached: bool = False
    ) -> float:
        """Return the seconds of one answer.

        Args:
            visual: The visual tokens in the prompt, after pruning.
            text: The other tokens in the prompt.
            answer: The tokens that are generated.
            method: The method whose overhead is counted.
            cached: Whether the picture and what precedes it are in a prefix cache already, so that
                neither is encoded, scored or prefilled again.

        Raises:
            ValueError: an answer of no token, or a method that the table did not have.
        """
        check_integer("answer", answer, minimum=1)
        if method not in self.overhead:
            raise ValueError(f"method={method!r}: measured were {', '.join(self.overhead)}.")
        length = visual + text
        one, linear, square = self.prefill
        seconds = one + linear * length + square * length**2
        if cached:
            seconds -= linear * visual + square * visual**2
        else:
            base, slope = self.overhead[method]
            seconds += self.vision + base + slope * visual
        base, slope = self.decode
        tokens = answer - 1
        return seconds + base * tokens + slope * (tokens * length + tokens * (tokens - 1) / 2)

    def saved(
        self, visual: int, kept: int, text: int, answer: int, method: str, cached: bool = False
    ) -> float:
        """Return the share of the time that keeping `kept` of the visual tokens saves; below 0 it
        loses."""
        full = self(visual, text, answer, "full", cached)
        return 1 - self(kept, text, answer, method, cached) / full
