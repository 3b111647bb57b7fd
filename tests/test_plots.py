import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tiny
import zoo
from matplotlib import pyplot as plt
from PIL import Image

import fopru
from fopru import plots
from fopru.evaluation.evidence import cover, frames
from fopru.families import Grid, View

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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
    there = (pruned.view == view).sum()
    kept = (pruned.view[pruned.kept] == view) & (pruned.columns[pruned.kept] >= 0)
    assert f"{int(kept.sum())} of {dims.height * dims.width} visual" in ax.get_title()
    assert there >= dims.height * dims.width
    (outline,) = ax.collections
    area = np.pad(shade == 0, 1)
    borders = (area[1:] != area[:-1]).sum() + (area[:, 1:] != area[:, :-1]).sum()
    assert len(outline.get_segments()) == borders


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


class Processor:
    """What the figures read of a processor."""

    def __init__(self, family):
        self.image_processor = zoo.image_processor(family)


TILED = {  # picture, and the rows and columns of tiles that the processor makes of it
    "internvl": [((128, 32), (1, 4)), ((32, 128), (4, 1)), ((64, 64), (2, 2)), ((32, 30), (1, 1))],
    "idefics3": [((64, 32), (1, 2)), ((30, 90), (2, 1)), ((64, 64), (2, 2))],
    "smolvlm": [((64, 32), (1, 2)), ((30, 90), (2, 1)), ((64, 64), (2, 2))],
}


def regions(family, size, rows, columns):
    """Which tile the processor's own pixels of each view come from, found by painting each tile."""
    width, height = size
    processor, found = zoo.image_processor(family), []
    for row in range(rows):
        for column in range(columns):
            picture = Image.new("RGB", size)
            box = [column * width / columns, row * height / rows]
            box += [(column + 1) * width / columns, (row + 1) * height / rows]
            picture.paste((255, 255, 255), [round(edge) for edge in box])
            pixels = processor(images=[picture], return_tensors="pt")["pixel_values"]
            bright = pixels.flatten(0, -4).mean((1, 2, 3))
            found.append((int(bright.argmax()), box))
    return found


@pytest.mark.parametrize(
    "family, size, cut", [(f, *c) for f, cases in TILED.items() for c in cases]
)
def test_each_tile_lies_where_the_processor_cut_it(family, size, cut):
    rows, columns = cut
    made = rows * columns + 1 if rows * columns > 1 else 1
    where = frames(Image.new("RGB", size), Processor(family), made)
    assert where[-1] == (0, 0, *size)
    for view, box in regions(family, size, *cut):
        assert where[view] == pytest.approx(box)
    with pytest.raises(ValueError, match=f"n_views={made + 1}: this processor makes {made}"):
        frames(Image.new("RGB", size), Processor(family), made + 1)


@pytest.mark.parametrize("family", ["internvl", "idefics3", "smolvlm"])
def test_overlays_of_tiles_lie_on_their_tiles(family):
    image = tiny.image(64, 64)
    inputs = zoo.inputs(family, [image], "USER: <image> w1 ASSISTANT:")
    parts = fopru.FoPru(0.25).prune(zoo.model(family), inputs).images
    kept = parts[0] if family == "internvl" else parts
    for draw in (plots.overlay, plots.significance):
        ax = draw(image, kept, Processor(family))
        extents = [drawn.get_extent() for drawn in ax.images[1:]]
        assert extents == [
            [0, 32, 32, 0],
            [32, 64, 32, 0],
            [0, 32, 64, 32],
            [32, 64, 64, 32],
        ]
    total = sum(part.n_full for part in parts)
    assert (
        f"of {total} visual tokens kept"
        in plots.overlay(image, kept, Processor(family)).get_title()
    )
    for view in range(5):
        ax = plots.overlay(image, kept, Processor(family), view=view)
        assert len(ax.images) == 2
        bright = (ax.images[-1].get_array()[..., 3] == 0).flatten()
        if family == "internvl":
            expected = [i - 16 * view for i in kept.kept.tolist() if kept.view[i] == view]
        else:
            expected = kept[view].kept.tolist()
        assert np.flatnonzero(bright).tolist() == expected
    assert ax.images[-1].get_extent() == [0, 64, 64, 0]  # the last view shows all of it


def test_one_tile_alone_is_not_drawn_over_the_whole_picture():
    image = tiny.image(64, 64)
    inputs = zoo.inputs("idefics3", [image], "USER: <image> w1 ASSISTANT:")
    images = fopru.FoPru(0.25).prune(zoo.model("idefics3"), inputs).images
    with pytest.raises(ValueError, match="n_views=1: this processor makes 5 .* give all of them"):
        plots.overlay(image, images[0], Processor("idefics3"))


def test_crops_of_pan_and_scan_are_refused():
    image = tiny.image(200, 50)
    assert frames(image, Processor("gemma3"), 1) == [(0, 0, 200, 50)]
    with pytest.raises(ValueError, match="n_views=3: .* pan-and-scan .* the first view alone"):
        frames(image, Processor("gemma3"), 3)


def test_evidence_falls_on_the_tile_that_shows_it():
    image = Image.new("RGB", (128, 32))
    grid = Grid((View(4, 4),) * 5)
    where = frames(image, Processor("internvl"), 5)
    share = cover(grid, where, [(64, 0, 80, 32)])
    assert grid.view[share > 0].unique().tolist() == [2, 4]
    assert share[grid.view == 2].view(4, 4).tolist() == [[1, 1, 0, 0]] * 4
    assert share[grid.view == 4].view(4, 4).tolist() == [[0, 0, 0.5, 0]] * 4
    with pytest.raises(ValueError, match="2 boxes for a grid of 5 views"):
        cover(grid, where[:2], [])


def test_pictures_may_be_files(tmp_path):
    image, pruned = prune(size=(40, 40))
    image.save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        ax = plots.overlay(path, pruned, tiny.processor())
        np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(image))
    with pytest.raises(ValueError, match="nowhere.png: no such file"):
        plots.significance("nowhere.png", pruned, tiny.processor())


def swept(methods):
    rows = [(m, kept, 0.5, 0.4, 0.6) for m, counts in methods.items() for kept in counts]
    return pd.DataFrame(rows, columns=["method", "kept", "mean", "low", "high"])


def test_curves_of_one_retention_and_of_all_controls():
    ax = plots.curves(swept({"fopru": [64], "random": [64], "full": [256]}))
    assert drawn(ax) == {"fopru": [64], "random": [64], "full": [0, 1]}
    assert drawn(plots.curves(swept({"full": [256]}))) == {"full": [0, 1]}
    blind = ["none", "grey", "swapped"]
    ax = plots.curves(swept({"fopru": [64, 32], "full": [256], **{b: [256] for b in blind}}))
    styles = {line.get_linestyle() for line in ax.lines if len(line.get_xdata())}
    assert list(drawn(ax)) == ["fopru", "full", *blind] and len(styles) == 4


def drawn(ax):
    """What the legend names -> the x of the line of its colour and dashes."""
    lines = {(li.get_color(), li.get_linestyle()): li for li in ax.lines if len(li.get_xdata())}
    named = zip(*ax.get_legend_handles_labels(), strict=True)
    return {
        name: list(lines[handle.get_color(), handle.get_linestyle()].get_xdata())
        for handle, name in named
    }


def test_a_method_looks_the_same_everywhere():
    assert plots.look("fopru") == plots.look("fopru-mass") == plots.look("fopru, layer=2")
    assert plots.look("fopru-restore") == plots.look("fopru")
    assert plots.look("fopru-row-mass") == plots.look("fopru-row") != plots.look("fopru")
    assert len(set(plots.LOOKS.values())) == len(plots.LOOKS)
    assert set(fopru.METHODS) | {"oracle", "smaller"} <= set(plots.LOOKS)
    assert plots.look("mine") == plots.look("mine")
    names = ("fopru", "divprune", "fopru-mass", "fopru-restore")
    cells = swept({name: [64, 32] for name in names})
    for part in (cells, cells[cells.method != "fopru"]):
        for handle, name in zip(*plots.curves(part).get_legend_handles_labels(), strict=True):
            assert (handle.get_color(), handle.get_marker()) == plots.look(name)


def test_readings_stand_side_by_side():
    cells = swept({"fopru": [64, 32], "full": [256], "guess": [0]})
    cells = pd.concat([cells.assign(reading=r) for r in ("known", "said", "malformed")])
    figure = plots.readings(cells)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["known (forced choice)", "said (exact match)", "malformed answers"]
    assert [len(list(filter(len, (li.get_xdata() for li in ax.lines)))) for ax in figure.axes] == [
        *(3, 3, 2)
    ]


def test_gaps_stand_in_the_order_of_their_table():
    rows = [("b", "known", 1, 0, 2), ("a", "known", -3, -5, -1), ("b", "said", 4, 3, 6)]
    ax = plots.gaps(pd.DataFrame(rows, columns=["task", "reading", "mean", "low", "high"]), "task")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    assert ax.get_legend_handles_labels()[1] == ["known", "said"]


def test_shown_figures_take_the_colour_of_the_text_and_say_what_they_are(capsys, monkeypatch):
    pytest.importorskip("IPython")
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    with plt.rc_context():
        plots.theme()
        ax = plots.curves(swept({"fopru": [64, 32]}))
        plots.show(ax.figure, 'Figure 1.2. A <b> & "c".')
    (html,) = shown
    assert "currentColor" in html.data and "#010203" not in html.data
    assert "<strong>Figure 1.2.</strong>" in html.data
    assert "A &lt;b&gt; &amp; &quot;c&quot;." in html.data and "<b>" not in html.data
    assert not plt.get_fignums()


def test_without_seaborn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fopru\[book\]"'):
        plots.curves(swept({"fopru": [64]}))
