import matplotlib
import numpy as np
import pytest
import tiny

import fopru
from fopru import plots

matplotlib.use("agg")


def prune(family="llava", size=(100, 50), pruner=None):
    image = tiny.image(*size)
    pruner = pruner or fopru.FoPru(0.25)
    return image, pruner.prune(tiny.model(family), tiny.inputs(family, [image])).images[0]


@pytest.mark.parametrize("family, view", [("llava", 0), ("llava_next", 0), ("llava_next", 1)])
def test_overlay_dims_exactly_the_pruned_patches(family, view):
    image, pruned = prune(family)
    ax = plots.overlay(image, pruned, tiny.processor(family), view=view)
    shade = ax.images[-1].get_array()[..., 3]
    dims = pruned.grid.views[view]
    assert shade.shape == (dims.height, dims.width)
    bright = {
        (int(pruned.rows[i]), int(pruned.columns[i]))
        for i in pruned.kept.tolist()
        if pruned.view[i] == view and pruned.columns[i] >= 0
    }
    assert {tuple(p) for p in np.argwhere(shade == 0).tolist()} == bright
    assert f"{pruned.n_kept} of {pruned.n_full}" in ax.get_title()


def test_significance_is_drawn_patch_by_patch():
    image, pruned = prune()
    ax = plots.significance(image, pruned, tiny.processor())
    np.testing.assert_allclose(ax.images[-1].get_array().ravel(), pruned.significance.numpy())


def test_what_cannot_be_drawn_is_said():
    image, pruned = prune()
    with pytest.raises(ValueError, match="view=1: this picture has views 0 to 0"):
        plots.overlay(image, pruned, tiny.processor(), view=1)
    image, pruned = prune(pruner=fopru.Random(0.5))
    with pytest.raises(ValueError, match="no significance"):
        plots.significance(image, pruned, tiny.processor())
