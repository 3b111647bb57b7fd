"""Videos: a budget for each frame or one for the clip, and what repeats the frame before."""

from dataclasses import replace

import pytest
import reference
import tiny
import torch
import zoo
from test_pruner import answers

import fopru
from fopru.applying import cache_name, cache_of
from fopru.choosing import pruned_image
from fopru.encoding import EncodedImage
from fopru.families import Family, Grid, View

CLIP = [
    fopru.FoPru(0.3, per="clip"),
    fopru.FoPru(0.3, "row", per="clip"),
    fopru.DivPrune(tokens=20, per="clip"),
    fopru.EVS(0.6),
]
NEWLINE = View(1, 0, newline=True)


def clip(frames, newline=False, dtype=torch.float32):
    """An encoded video of these features, (T, n, d), of frames that are 2 rows high."""
    t, n, d = frames.shape
    grid = Grid((*[View(2, n // 2)] * t, *([NEWLINE] * newline)), video=True)
    features = torch.cat([frames.flatten(0, 1), torch.ones(int(newline), d)]).to(dtype)
    return EncodedImage(Family.of(tiny.model()), 0, features, grid, {})


def two(family):
    """Two videos of one size, each in a prompt of its own: the batch, and the two alone."""
    one = zoo.video(family)
    other = {**one, "pixel_values_videos": one["pixel_values_videos"].flip(-1)}
    both = {name: torch.cat([one[name], other[name]]) for name in one}
    return both, one, other


# A budget for the whole clip


@pytest.mark.parametrize("family", zoo.VIDEO)
def test_a_clips_budget_is_kept_and_the_masked_run_gives_the_same(family):
    model, inputs = zoo.model(family), zoo.video(family)
    expected = answers(model, inputs)
    for pruner in (fopru.FoPru(1.0, per="clip"), fopru.EVS(1.0)):
        with pruner(model):
            assert torch.equal(answers(model, inputs), expected)
    for pruner in CLIP:
        pruned = replace(pruner, positions="preserve").prune(model, inputs)
        (image,) = pruned.images
        assert image.n_kept == pruner.n_keep(image.grid) == sum(pruner.budgets(image.grid))
        assert image.n_kept < image.n_full and (image.kept.diff() > 0).all()
        (want,) = reference.masked_logits(model, inputs, pruned)
        with torch.no_grad():
            found = model(**pruned).logits[0]
        assert (found - want).abs().max() < 1e-4
        if family == "llava_onevision":
            assert image.kept[-1] == image.n_full - 1  # the newline token ends the video


@pytest.mark.parametrize("family", zoo.VIDEO)
def test_the_best_tokens_of_the_clip_stay_and_the_best_rows(family):
    model, inputs = zoo.model(family), zoo.video(family)
    per_frame = fopru.FoPru(0.3, axis="received").prune(model, inputs).images[0]
    scores, n = per_frame.significance.double(), int((per_frame.columns >= 0).sum())
    view = per_frame.grid.views[0]
    sums = scores[:n].view(-1, view.n_tokens).sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums) * sums[0], rtol=0.02, atol=0)
    image = fopru.FoPru(0.3, axis="received", per="clip").prune(model, inputs).images[0]
    kept = image.kept[image.kept < n]
    assert reference.near(scores[:n], kept, int(0.3 * n), band=1e-8)
    image = fopru.FoPru(0.3, "row", axis="received", per="clip").prune(model, inputs).images[0]
    rows = scores[:n].view(-1, view.width).sum(1)
    kept = image.kept[image.kept < n].view(-1, view.width)
    assert reference.near(rows, kept[:, 0] // view.width, int(0.3 * len(rows)), band=1e-8)


@pytest.mark.parametrize("pruner", [CLIP[0], CLIP[3]], ids=lambda pruner: pruner.label)
@pytest.mark.parametrize("family", zoo.VIDEO)
def test_videos_in_a_batch_are_as_alone_beams_too(family, pruner):
    model, (both, *alone) = zoo.model(family), two(family)
    pruned = pruner.prune(model, both)
    for row, inputs in enumerate(alone):
        single = pruner.prune(model, inputs)
        assert torch.equal(pruned.images[row].kept, single.images[0].kept)
        with torch.no_grad():
            found, want = model(**pruned).logits[row], model(**single).logits[0]
        torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    if family in ("glm4v", "glm46v", "glm_ocr"):  # transformers' own beams lose their videos
        with pytest.raises(ValueError, match="non-empty list"):
            model.generate(**both, **options)
        options["num_beams"] = 1
    expected = torch.cat([model.generate(**pruner.prune(model, i), **options) for i in alone])
    with pruner(model):
        new = model.generate(**both, **options)[:, both["input_ids"].shape[1] :]
    assert torch.equal(new, expected[:, -4:])


def test_steps_after_a_slow_video_go_on_where_the_model_itself_would():
    """Its frames are further ahead in time than the text behind them in any direction."""
    model, inputs = zoo.model("qwen2_5_vl"), zoo.video("qwen2_5_vl")
    inputs["second_per_grid_ts"] = torch.tensor([20.0])

    def steps():
        out, logits = model(**inputs, use_cache=True), []
        for token in (5, 9):
            cache = {cache_name(model): cache_of(out)}
            out = model(input_ids=torch.tensor([[token]]), use_cache=True, **cache)
            logits.append(out.logits[0, -1])
        return torch.stack(logits)

    with torch.no_grad():
        expected = steps()
        for pruner in (fopru.FoPru(1.0), fopru.FastV(1.0)):
            with pruner(model):
                torch.testing.assert_close(steps(), expected, atol=1e-5, rtol=1e-5)


def test_an_exact_count_over_a_clip_leaves_the_newline_its_own():
    grid = Grid((View(4, 4), View(4, 4), NEWLINE), video=True)
    assert fopru.FoPru(tokens=9).budgets(grid) == [4, 4, 1]
    assert fopru.FoPru(tokens=9, per="clip").budgets(grid) == [8, 1]
    assert fopru.FoPru(0.3, per="clip").budgets(grid) == [9, 1]
    assert fopru.FoPru(0.3, "row", per="clip").budgets(grid) == [8, 1]
    with pytest.raises(ValueError, match="tokens=11: strategy='row' keeps whole rows.* 4 a row"):
        fopru.FoPru(tokens=11, strategy="row", per="clip").budgets(grid)


def test_bad_budgets_of_clips_are_refused():
    with pytest.raises(ValueError, match="per='frame': must be one of 'view', 'clip'"):
        fopru.FoPru(per="frame")
    for name in ("uniform", "pool", "fastv", "pyramiddrop"):
        with pytest.raises(ValueError, match="per='clip': must be one of 'view'"):
            fopru.METHODS[name](per="clip")
    picture = tiny.inputs()
    for pruner in (fopru.FoPru(per="clip"), fopru.EVS()):
        match = f"'{pruner.name}' with per='clip' takes videos, .* this is a picture"
        with pytest.raises(fopru.UnsupportedModelError, match=match):
            pruner.prune(tiny.model(), picture)
        with pytest.raises(fopru.UnsupportedModelError, match=match):
            pruner.n_keep(Grid((View(4, 4), View(4, 4))))


# EVS


def slow_evs(features, n, k):
    """The places that stay: the first n, and of the others the least like the frame before."""
    points = features.double()
    unlike = {
        i: 1 - torch.dot(points[i], points[i - n]) / points[i].norm() / points[i - n].norm()
        for i in range(n, len(points))
    }
    order = sorted(unlike, key=lambda i: (-round(float(unlike[i]), 7), i))
    return sorted([*range(n), *order[: k - n]])


@pytest.mark.parametrize("retention", [0.01, 0.25, 0.26, 0.5, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("newline", [False, True])
def test_evs_keeps_the_first_frame_and_what_changed_most(retention, newline):
    torch.manual_seed(0)
    frames = torch.randn(4, 6, 16)
    frames[1:, :3] = frames[:1, :3] + 1e-2 * torch.randn(3, 3, 16)  # half of it hardly moves
    image, pruner = clip(frames, newline), fopru.EVS(retention)
    k = max(6, int(24 * retention))
    assert pruner.n_keep(image.grid) == k + newline
    pruned, features = pruned_image(pruner, image)
    expected = slow_evs(frames.flatten(0, 1), 6, k) + [24] * newline
    assert pruned.kept.tolist() == expected
    assert torch.equal(features, image.features[expected])
    assert pruned.kept[:6].tolist() == list(range(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_still_scene_the_earliest_tokens_stay_whatever_the_last_bit_says(dtype):
    torch.manual_seed(0)
    frames = torch.randn(1, 6, 16).repeat(4, 1, 1)
    frames *= 1 + 2e-7 * torch.rand(4, 6, 16)
    image = clip(frames, dtype=dtype)
    assert pruned_image(fopru.EVS(tokens=15), image)[0].kept.tolist() == list(range(15))
    frames[3, 4] = -frames[2, 4]  # as unlike as can be: it ties with the first frame
    kept = pruned_image(fopru.EVS(tokens=7), clip(frames, dtype=dtype))[0].kept
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 22]


def test_evs_on_the_models_own_features():
    for family in zoo.VIDEO:
        model, inputs = zoo.model(family), zoo.video(family)
        encoded = fopru.encode(model, inputs)
        (image,) = fopru.EVS(0.7).compact(encoded).images
        n, n_newline = image.grid.views[0].n_tokens, int((image.columns < 0).sum())
        points = encoded.images[0].features[: image.n_full - n_newline]
        k = int(0.7 * len(points))
        expected = slow_evs(points, n, k) + [len(points)] * n_newline
        assert image.kept.tolist() == expected


def test_evs_with_weights_and_on_one_frame():
    torch.manual_seed(0)
    model, inputs = zoo.model("qwen2_vl"), zoo.video("qwen2_vl")
    with fopru.EVS(0.6, weights="mass")(model) as session:
        model.generate(**inputs, max_new_tokens=2)
    (image,) = session.last.images
    assert image.mass.sum() == image.n_full  # no token is without one that stands for it
    one = clip(torch.randn(1, 6, 16))
    assert pruned_image(fopru.EVS(0.25), one)[0].kept.tolist() == list(range(6))


def test_evs_refuses_what_leaves_no_room_for_the_first_frame():
    grid = Grid((View(4, 4), View(4, 4), NEWLINE), video=True)
    assert fopru.EVS(tokens=17).budgets(grid) == [16, 1]
    with pytest.raises(
        ValueError, match="tokens=16: method 'evs' .* has 16 tokens here; give at least 17"
    ):
        fopru.EVS(tokens=16).budgets(grid)
    with pytest.raises(ValueError, match="per='view': must be one of 'clip'"):
        fopru.EVS(per="view")
