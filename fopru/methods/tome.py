"""Token merging: the most alike tokens become one, round after round."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fopru.encoding import EncodedImage
from fopru.picking import nearest, top, unit
from fopru.pruned import Merged
from fopru.pruner import Pruner


@dataclass(frozen=True)
class ToMe(Pruner, name="tome"):
    """Merge the tokens that are most alike (Bolya et al., "Token Merging", ICLR 2023, arXiv
    2210.09461): bipartite soft matching, here on the tokens that the language model would get.

    In each round every even token finds the odd one that is most like it (cosine of features). The
    most similar pairs, at most half of the tokens, become their average, weighted by how many
    tokens each stands for. Rounds go on until k tokens are left. A merged token stands at the
    place of its first member, and tokens keep that order between rounds. The authors merge inside
    the tower, by keys, and weigh attention by size: here `weights="mass"` weighs it in the language
    model.
    """

    def merge(self, image: EncodedImage, k: int) -> Merged:
        points = unit(image.features)  # (N, d)
        device = points.device
        means = image.features.to(device).double()
        owner = torch.arange(len(means), device=device)  # (N,) which of the n tokens holds it
        place, sizes = owner, means.new_ones(len(means))  # (n,) first member, number of members
        while (n := len(means)) > k:
            here = torch.arange(n, device=device)
            alike, partner = nearest(points[0::2], points[1::2])  # (n / 2 rounded up,) each
            merged = top(alike, min(n // 2, n - k)).to(device)
            into = here.clone()
            into[2 * merged] = 2 * partner[merged] + 1
            place = place.scatter_reduce(0, into, place, "amin")
            stay = (into == here).nonzero().flatten()
            stay = stay[place[stay].argsort()]
            new = here.scatter(0, stay, torch.arange(len(stay), device=device))
            into, place = new[into], place[stay]  # from the old tokens to the new ones
            total = means.new_zeros(len(stay)).index_add(0, into, sizes)
            sums = means.new_zeros(len(stay), means.shape[1])
            means = sums.index_add(0, into, means * sizes[:, None]) / total[:, None]
            owner, sizes, points = into[owner], total, unit(means)
        return Merged(place, means.to(image.features), owner)
