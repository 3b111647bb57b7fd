"""SparseVLM: words that have to do with the picture choose, and part of what leaves is recycled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fopru.arguments import check_integer
from fopru.in_llm import InLLMPruner
from fopru.picking import RELATIVE, first, products, ranked, top, wide

DEPTHS = (3, 7, 16)
"""After how many of 32 layers the authors let tokens leave."""


@dataclass(frozen=True)
class SparseVLM(InLLMPruner, name="sparsevlm"):
    """Drop visual tokens in steps inside the language model, by the attention of those words that
    have to do with the picture (Zhang et al., "SparseVLM", ICML 2025, arXiv 2410.04417, sections
    3.2 and 3.3).

    The raters are chosen once, on what the language model's first layer gets. Each visual token
    spreads one vote over all text behind the pictures (softmax of its products with the text
    tokens), and the raters are the text tokens that get more than the mean; all of them, if all get
    the same. After each of `after_layers` the visual tokens stay that the raters attend to most in
    that layer, in the mean over raters and heads.

    How many stay is our own rule, since the paper's rule is by the rank of the attention, and the
    authors' code has tables for four budgets: with m steps, floor(N * retention^(i / m)) of a
    prompt's N visual tokens after step i, at least 1.

    Recycling: of the n tokens of a picture that would leave, the floor(3 n / 10) + 1 that get most
    are grouped, about ten to a cluster, around density peaks of their hidden states (distance over
    the square root of their width). One token per cluster goes on, the mean of its members, as in
    the authors' code (the paper adds them up). These come on top of the budget, at the next step
    they are tokens like all others, and every count of what a layer sees has them. Each takes the
    slot and the position id of its cluster's centre, a place in the picture: so it stands among the
    kept tokens, where the authors put it behind them and number all tokens anew. Clusters are of
    one picture. `session.images` says in `owner` which tokens went into which. Ties go to the lower
    index, where the authors add noise.

    Args:
        after_layers: The 0-based layers after which tokens leave, increasing. None is 2, 6 and 15
            of 32 layers, and as deep in a model of another depth, but after different ones, and
            after layer 0 in a model of four layers only.
        recycle: Whether part of what leaves is recycled.

    Raises:
        ValueError: within the block, if the model has too few layers, or no text stands behind the
            pictures.
    """

    after_layers: tuple[int, ...] | None = None
    recycle: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.recycle, bool):
            raise ValueError(f"recycle={self.recycle!r}: must be True or False.")
        if (layers := self.after_layers) is None:
            return
        if not isinstance(layers, tuple) or not layers:
            raise ValueError(f"after_layers={layers!r}: must be a tuple of layers.")
        for layer in layers:
            check_integer("after_layers", layer, minimum=0)
        if any(a >= b for a, b in pairwise(layers)):
            raise ValueError(f"after_layers={layers}: must increase.")

    def stages(self, n_layers: int) -> dict[int, float]:
        if self.after_layers is None:
            if n_layers < 4:
                raise ValueError(f"sparsevlm needs at least 4 layers; this model has {n_layers}.")
            entered = [1]
            for latest, depth in enumerate(DEPTHS, start=n_layers - 3):
                place = max(entered[-1] + 1, round(n_layers * depth / 32))
                entered.append(min(place, latest))
            entered = entered[1:]
        else:
            if self.after_layers[-1] > n_layers - 2:
                raise ValueError(
                    f"after_layers={self.after_layers}: must be below {n_layers - 1}, the last of "
                    f"the language model's {n_layers} layers."
                )
            entered = [layer + 1 for layer in self.after_layers]
        share = self.share ** (1 / len(entered))
        return {layer: share**i for i, layer in enumerate(entered, start=1)}

    def raters(self, hidden: Tensor, visual: Tensor) -> Tensor:
        start = int(visual.nonzero().max()) + 1
        pictures, text = wide(hidden[visual]), wide(hidden[start:])
        if not len(text):
            raise ValueError(
                f"a prompt ends with its picture: method {self.name!r} scores visual tokens by the "
                "text behind them. Put the question behind the picture."
            )
        votes = sum(block.softmax(1).sum(0) for _, block in products(pictures, text))  # (T,)
        more = votes > votes.mean() * (1 + RELATIVE)
        flags = torch.zeros_like(visual)
        flags[start:] = (more if bool(more.any()) else ~more).to(flags.device)
        return flags

    def clusters(self, scores: Tensor, hidden: Tensor) -> Tensor:
        best = top(scores, 3 * len(scores) // 10 + 1)  # (m,)
        points = wide(hidden[best.to(hidden.device)]) / hidden.shape[1] ** 0.5
        went = torch.full((len(scores),), -1)
        went[best] = best[density_peaks(points, len(best) // 10 + 1).cpu()]
        return went


def density_peaks(points: Tensor, count: int) -> Tensor:
    """Group points around those that lie dense and far from denser ones (Rodriguez and Laio,
    "Clustering by fast search and find of density peaks", Science 2014).

    The density of a point is exp(-mean squared distance to the `count` points next to it, itself
    among them). Its peak is the density times the distance to the nearest denser point; the densest
    has the largest distance that there is. Ties go to the lower index.

    Args:
        points: (m, d) float64.
        count: The number of groups, from 1 to m.

    Returns:
        (m,) int64: the centre of each point's group, which is a point.
    """
    far = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # (m, m)
    density = -far.topk(count, largest=False).values.square().mean(1)  # its logarithm: (m,)
    order = ranked(density)
    denser = torch.zeros_like(far, dtype=torch.bool)
    denser[order[:, None], order] = torch.ones_like(denser).tril(-1)
    apart = far.masked_fill(~denser, torch.inf).amin(1)
    apart[order[0]] = far.max()
    centres = top(density + apart.log(), count).to(order.device)
    owner = centres[first(-far[:, centres])]
    owner[centres] = centres
    return owner
