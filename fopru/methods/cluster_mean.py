"""Averages of clusters: every visual token goes into one of k new ones."""

from __future__ import annotations

from dataclasses import dataclass

from fopru.encoding import EncodedImage
from fopru.picking import loneliest, owners, spread, unit
from fopru.pruned import Merged
from fopru.pruner import Pruner


@dataclass(frozen=True)
class ClusterMean(Pruner, name="cluster-mean"):
    """Average clusters of tokens that are alike, as PACT does (Dhouib et al., CVPR 2025, arXiv
    2504.08966), around the tokens that DivPrune keeps (Alvar et al., CVPR 2025, arXiv 2503.02175).

    The centres are the k tokens of `fopru.DivPrune`. Every other token goes to the centre that is
    most like it (cosine of the features that the language model would get), of two alike to the
    lower one. A new token is the mean of its cluster, and stands at the centre's place. With
    `weights="mass"` the language model attends to it as to all of its members, which is PACT's
    proportional attention.

    PACT works inside the language model, first drops the tokens that are unimportant by their keys,
    and lets densities and a cutoff distance say how many clusters there are. Here the clusters are
    made before the language model, of all tokens, and their number is given.
    """

    def merge(self, image: EncodedImage, k: int) -> Merged:
        points = unit(image.features)  # (N, d)
        centres = spread(points, loneliest(points), k)  # (k,)
        return Merged.means(centres, image.features, owners(image.features, centres))
