import matplotlib
import numpy as np
import pandas as pd
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


def measured(batch=1):
    rows = [
        ("full", 64, "vision", 1.0),
        ("full", 64, "decode", 0.5),
        ("fopru", 16, "vision", 0.9),
        ("fopru", 16, "scoring", 0.2),
        ("fopru", 16, "decode", 0.25),
        ("fopru", 16, "end to end", 1.7),
    ]
    table = pd.DataFrame(rows, columns=["method", "visual", "stage", "seconds"])
    return table.assign(batch=batch, new_tokens=3)


def test_stages_stand_one_on_the_other():
    ax = plots.stages(measured())
    ends = {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == pytest.approx({0: 1 + 2 * 0.5, 1: 0.9 + 0.2 + 2 * 0.25})
    with pytest.raises(ValueError, match=r"batch sizes \[1, 2\]"):
        plots.stages(pd.concat([measured(), measured(2)]))


def test_break_even_draws_a_line_where_the_sign_changes():
    ax = plots.break_even(lambda text, answer: (100 - text) / 200, [10, 100, 1000], [1, 10])
    mesh = ax.collections[0].get_array().reshape(2, 3)
    np.testing.assert_allclose(mesh[0], [45, 0, -450])
    assert len(ax.collections) > 1
    ax = plots.break_even(lambda text, answer: 0.5, [10, 100], [1, 10])
    assert len(ax.collections) == 1
