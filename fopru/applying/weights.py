"""What kept tokens weigh in the language model's attention.

A token that stands for s tokens weighs s: the logarithm of s is added to its logits, so that it is
attended to as s equal tokens would be. That is the proportional attention of ToMe (Bolya et al.,
ICLR 2023, arXiv 2210.09461, section 3). DyMU (arXiv 2504.17040) and PACT (CVPR 2025, arXiv
2504.08966) have it in the language model for merged visual tokens, KeepKV (arXiv 2504.09936) and
ZeroMerge (arXiv 2503.10714) for merged entries of the KV cache. This project's own is little: of a
method that selects, the tokens are medoids, none is averaged, and each counts those of the others
that are most like it (`fopru.picking.owners`).

RESTORE (ICML 2026, arXiv 2606.01711, section 3.2) makes the weight depend on the distance between
query and key: s (c - D), with c = 2 and D the mean over rotary frequencies of the cosine of the
angle between the two positions, which is 1 at one place and about 0 far away. It is meant with the
position ids of the whole prompt (positions="preserve"); distances are here those of the position
ids that the prompt is given, whatever they are. Other departures:

- The paper's equation 4 has c - D for all keys, and its code for those of the prompt while that is
  read. Here all keys of the prompt have it, for every query, and what is said later weighs 1.
- There, s counts tokens that were averaged, so that one that was selected has s = 1, and the code
  takes N / k for all in the first layer. Here s is what "mass" is, in all layers.
- The formula also changes a prompt of which nothing was pruned. Here that is left as it is.

A warning, reported there for LLaVA-1.5-7B with 64 tokens, in percent of what all tokens give: with
renumbered tokens the calibration took selected tokens from 92.2 to 91.0, and with merging from 93.5
to 92.9; with original position ids it took the latter from 90.1 to 96.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from fopru.applying.layers import in_place_of_one_rotary, nearness
from fopru.attention import KERNELS, implementation
from fopru.families import Family, UnsupportedModelError
from fopru.pruned import PrunedImage

FAR = 2
"""c: how many times the number of its tokens a key of the prompt weighs where D is 0."""


def check(kind: str, family: Family) -> None:
    """Check that a model can weigh its tokens so.

    Raises:
        UnsupportedModelError: kind="restore", and its layers do not share one rotary embedding.
        ValueError: its attention kernel takes no bias on its logits.
    """
    kernel = implementation(family.decoder.config)
    if kernel not in KERNELS:
        raise ValueError(
            f"weights={kind!r}: attention {kernel!r} takes no bias on its logits; load the model "
            f"with attn_implementation={' or '.join(map(repr, KERNELS))}."
        )
    if kind == "restore" and (found := in_place_of_one_rotary(family.decoder)) is not None:
        raise UnsupportedModelError(
            f"weights={kind!r}: distances are measured by the rotary embedding that all layers "
            f"share, and the language model of {family.title} ({type(family.decoder).__name__}) "
            f"has {found}; use weights='mass'."
        )


def stated(kind: str, mask: Tensor, visual: Tensor, images: Sequence[PrunedImage]) -> Tensor:
    """Return an attention mask that states the weight of each key: (B, L') int64.

    With "mass" it is the number s of tokens that a kept one stands for, and 1 for text. With
    "restore" it is 2 s in prompts of which something was pruned, so that more than 1 also says that
    weights go by distance.

    Args:
        mask: (B, L') ones, and zeros for padding.
        visual: (B, L') bool: the kept tokens of the images, in their order.
    """
    mask = mask.masked_scatter(visual, torch.cat([image.mass for image in images]).to(mask))
    if kind == "restore":
        mask[sorted({image.sample for image in images if image.n_kept < image.n_full})] *= FAR
    return mask


def by_distance(
    decoder: PreTrainedModel, weights: Tensor, places: Tensor, queries: Tensor
) -> Tensor:
    """Return what each key weighs for each query by RESTORE: (B, Q, K).

    Args:
        decoder: The language model's stack of layers, whose rotary embedding D is made from.
        weights: (B, K) the weight of each key that the attention mask states. Keys of weight 1 or
            0, what was said after the prompt and padding, have it at all distances.
        places: (..., B, P) position ids of the prompt.
        queries: (..., B, Q) position ids of the queries.
    """
    near = nearness(decoder, places[..., : weights.shape[1]], queries)  # (B, Q, P)
    near = F.pad(near, (0, weights.shape[1] - near.shape[2]))  # (B, Q, K)
    weights = weights[:, None].to(near.device)
    return weights * (1 - near.where(weights > 1, 0) / FAR)
