"""Scores of visual tokens from one attention layer's queries and keys.

Nothing here asks the tower for its attention maps. The rows of the softmax are made again in
float32, some queries at a time, and only their averages are kept: for T tokens and h heads, no
h x T x T numbers are ever held.

Sources: FoPru, arXiv 2411.14164, section "Token Significance"; for scores of the CLS token,
FasterVLM, arXiv 2412.01818.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fopru.picking import RELATIVE

SCORES = ("probabilities", "logits")
"""The two kinds of score: attention after the softmax, or before it."""
AXES = ("received", "given", "cls", "received_wide", "cls_wide")
"""What can be averaged: see `attention_scores`."""

BLOCK_ELEMENTS = 2**22
"""How many attention values are held at a time: 16 MiB of float32."""


def attention_scores(
    query: Tensor,
    key: Tensor,
    scaling: float,
    n_prefix: int,
    axes: Collection[str],
    scores: str = "probabilities",
    visible: Tensor | None = None,
) -> dict[str, Tensor]:
    """Average one layer's attention over heads, and along one axis or several.

    A is the (h, T, T) attention of a tile of T = n_prefix + P tokens, of which the first n_prefix
    (the CLS token) are cut off. Every average is taken over the heads too. The axes are:

    - "received": the mean over queries i of A[i, j], how much patch j is looked at;
    - "given": the mean over keys j of A[i, j], how much patch i looks at patches;
    - "cls": A[CLS, j], how much the CLS token looks at patch j;
    - "received_wide" and "cls_wide": the same as if there were one head, softmax of
      q . k / sqrt(h d) over whole queries and keys, as PruMerge scores by the CLS token (arXiv
      2403.15388). They have probabilities only.

    Args:
        query, key: (tiles, h, T, d) after whatever the layer does to them (norms, rotary).
        scaling: The factor on query . key.
        n_prefix: The number of tokens before the patches: 1 for a CLS token, else 0.
        axes: Which of `AXES` to compute.
        scores: "probabilities" for attention after the softmax over all T keys, "logits" for that
            before it.
        visible: (tiles, T) bool, False for padding: it neither looks nor is looked at, so that it
            has no share in any average. None where nothing is padded.

    Returns:
        For each axis (tiles, P) float32. Padding has probability 0, and logit minus infinity.

    Raises:
        ValueError: "cls" or "cls_wide" is among the axes, and there is no CLS token.
    """
    if {"cls", "cls_wide"} & set(axes) and n_prefix == 0:
        raise ValueError("'cls' attention was asked for, but this vision tower has no CLS token.")
    measure = _probabilities if scores == "probabilities" else _logits
    if visible is None:
        visible = torch.ones_like(key[:, 0, :, 0], dtype=torch.bool)  # (tiles, T)
    padding = 0.0 if scores == "probabilities" else -torch.inf
    wide = {axis.removesuffix("_wide") for axis in axes if axis.endswith("_wide")}
    plain = {axis for axis in axes if not axis.endswith("_wide")}
    found: dict[str, list[Tensor]] = {axis: [] for axis in axes}
    for q, k, there in zip(query, key, visible, strict=True):
        q, k = q[:, there].float(), k[:, there].float()  # (h, T', d)
        tile = measure(q * scaling, k, n_prefix, plain) if plain else {}
        if wide:
            q, k = (x.transpose(0, 1).flatten(1)[None] for x in (q, k))  # (1, T', h d)
            one_head = _probabilities(q / k.shape[-1] ** 0.5, k, n_prefix, wide)
            tile |= {f"{axis}_wide": values for axis, values in one_head.items()}
        patches = there[n_prefix:]  # (P,)
        for axis, values in tile.items():
            whole = values.new_full(patches.shape, padding)
            found[axis].append(whole.masked_scatter(patches, values))
    return {axis: torch.stack(tiles) for axis, tiles in found.items()}


def _probabilities(q: Tensor, k: Tensor, p: int, axes: Collection[str]) -> dict[str, Tensor]:
    heads, length, _ = q.shape
    out = {}
    if "cls" in axes:
        row = (q[:, :1] @ k.transpose(1, 2)).softmax(-1)  # (h, 1, T)
        out["cls"] = row[:, 0, p:].mean(0)  # (P,)
    if not {"received", "given"} & set(axes):
        return out
    received = q.new_zeros(length - p)
    given = q.new_empty(length - p)
    block = max(1, BLOCK_ELEMENTS // (heads * length))
    for start in range(p, length, block):
        rows = q[:, start : start + block] @ k.transpose(1, 2)  # (h, b, T)
        rows = torch.softmax(rows, dim=-1)[..., p:]  # (h, b, P)
        if "received" in axes:
            received += rows.sum((0, 1))
        if "given" in axes:
            given[start - p : start - p + rows.shape[1]] = rows.mean((0, 2))
    sums = {"received": received / (heads * (length - p)), "given": given}
    return out | {axis: sums[axis] for axis in axes if axis != "cls"}


def _logits(q: Tensor, k: Tensor, p: int, axes: Collection[str]) -> dict[str, Tensor]:
    # The mean of q_i . k_j over i is (mean of q) . k_j: no T x T product is needed.
    patches_q, patches_k = q[:, p:], k[:, p:]  # (h, P, d)
    sides = {
        "received": (patches_q.mean(1), patches_k),
        "given": (patches_k.mean(1), patches_q),
        "cls": (q[:, 0], patches_k),
    }
    return {axis: torch.einsum("hd,hpd->p", *sides[axis]) / len(q) for axis in axes}


def wider(received: Tensor, given: Tensor, patches: Tensor) -> Tensor:
    """Return the one of two vectors of scores that varies more over the patches: FoPru's criterion.

    The softmax makes every row sum to one, so that on probabilities `given` is nearly constant and
    `received` wins. On logits either can. Variances that differ by rounding only count as equal,
    and `received` wins then.

    Args:
        received, given: (N,) float32 scores.
        patches: (N,) bool, False for newline tokens, which do not count.
    """
    if not patches.any():
        return received
    of = patches.cpu()
    received_var, given_var = (s.cpu()[of].double().var(correction=0) for s in (received, given))
    return received if received_var >= given_var * (1 - RELATIVE) else given
