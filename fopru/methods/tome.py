"""Token merging: the most alike tokens become one, round after round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fopru.encoding import EncodedImage
from fopru.pruner import Merged, Pruner


@dataclass(frozen=True)
class ToMe(Pruner, name="tome"):
    """Bipartite soft matching (Bolya et al., "Token Merging", ICLR 2023, arXiv 2210.09461), on the
    tokens that the LLM would get.

    Each round, every even token finds its most similar odd one (cosine of features); the most
    similar pairs, at most half of the tokens, become their average, weighted by how many tokens
    each stands for. Rounds go on until k are left. A merged token stands at its first member's
    place, and tokens keep that order between rounds. The authors merge inside the tower, by keys,
    and weigh attention by size: not done here.
    """

    def merge(self, image: EncodedImage, k: int) -> Merged:
        features = image.features.float()
        sizes = features.new_ones(len(features))
        sources = list(torch.arange(len(features))[:, None])
        while len(features) > k:
            n = len(features)
            a, b = torch.arange(0, n, 2), torch.arange(1, n, 2)
            unit = F.normalize(features, dim=1)
            alike, partner = (unit[a] @ unit[b].T).max(1)  # (|a|,)
            order = alike.sort(descending=True, stable=True).indices.cpu()
            merged = order[: min(n // 2, n - k)]
            source, target = a[merged], b[partner.cpu()[merged]]
            weighted = features * sizes[:, None]
            weighted.index_add_(0, target.to(features.device), weighted[source])
            sizes = sizes.index_add(0, target.to(sizes.device), sizes[source])
            for i, j in zip(source.tolist(), target.tolist(), strict=True):
                sources[j] = torch.cat([sources[j], sources[i]]).sort().values
            left = torch.ones(n, dtype=torch.bool)
            left[source] = False
            remaining = sorted(left.nonzero().flatten().tolist(), key=lambda i: int(sources[i][0]))
            features = (weighted / sizes[:, None])[remaining]
            sizes, sources = sizes[remaining], [sources[i] for i in remaining]
        kept = torch.stack([members[0] for members in sources])
        return Merged(kept, features.to(image.features.dtype), sources)
