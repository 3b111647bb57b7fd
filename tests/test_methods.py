"""Selections and mergers against brute force, written here from the formulas."""

import itertools

import pytest
import tiny
import torch
import torch.nn.functional as F

import fopru
from fopru.encoding import VISION, EncodedImage, Tap
from fopru.families import Family, Grid, UnsupportedModelError, View
from fopru.picking import greedy_map, lattice, unit

CASES = tiny.method_cases()
MERGERS = {"pool", "tome", "visionzip", "prumerge", "prumerge+"}


def batch(family):
    images = [
        tiny.image(*size, seed=seed) for seed, size in enumerate([(64, 40), (90, 30), (40, 40)])
    ]
    texts = ["USER: <image> w1 w2 w3 ASSISTANT:", "w7 USER: <image> w4 <image> w5 ASSISTANT:"]
    return tiny.inputs(family, images, texts)


def picture(seed=0, height=6, width=8, d=48):
    """One encoded picture with everything that a method may ask for, made of noise."""
    torch.manual_seed(seed)
    n, model = height * width, tiny.model()
    family = Family.of(model)
    heads = family.tower.config.num_attention_heads
    read, last = family.block(None), family.block(-1)
    scores = {Tap(read, axis): torch.rand(n) for axis in ("received", "given", "cls")}
    scores |= {Tap(b, "keys"): torch.randn(n, heads * 8) for b in (read, last)}
    scores |= {Tap(last, "cls_wide"): torch.rand(n) ** 12, VISION: torch.randn(n, 32)}
    grid = Grid((View(height, width),))
    return EncodedImage(family, 0, torch.randn(n, d), grid, scores, text=torch.randn(5, d))


def kept(pruner, image):
    return pruner._prune_image(image)[0].kept


# The matrix


@pytest.mark.parametrize("method, family", CASES)
def test_count_order_and_places(method, family):
    model, inputs = tiny.model(family), batch(family)
    pruner = fopru.METHODS[method](retention=0.3)
    pruned = pruner.prune(model, inputs)
    for image, features in zip(pruned.images, pruned.features, strict=True):
        assert image.n_kept == len(features) == pruner.n_keep(image.grid)
        assert (image.kept.diff() > 0).all()
        assert features.dtype == torch.float32
        assert features.isfinite().all()
        assert not features.requires_grad
        assert len(image.sources) == image.n_kept
        for place, members in zip(image.kept.tolist(), image.sources, strict=True):
            assert 0 <= members.min() <= members.max() < image.n_full
            assert method in MERGERS or members.tolist() == [place]
    again = pruner.prune(model, inputs)
    assert all(
        torch.equal(a.kept, b.kept) for a, b in zip(pruned.images, again.images, strict=True)
    )
    assert not model.model.multi_modal_projector._forward_pre_hooks


@pytest.mark.parametrize("method, family", CASES)
def test_keeping_all_changes_nothing(method, family):
    if method in ("prumerge", "prumerge+"):
        pytest.skip("merges whatever its budget")
    model, inputs = tiny.model(family), batch(family)
    options = dict(max_new_tokens=4, do_sample=False)
    plain = model.generate(**inputs, **options)
    with fopru.METHODS[method](retention=1.0)(model):
        assert torch.equal(model.generate(**inputs, **options), plain)


@pytest.mark.parametrize("method, family", sorted(tiny.UNDEFINED))
def test_undefined_methods_say_so(method, family):
    with pytest.raises(UnsupportedModelError, match=f"{method.rstrip('+')}.*newline token"):
        fopru.METHODS[method](retention=0.3).prune(tiny.model(family), batch(family))


# One by one


def test_uniform_is_a_lattice_and_what_is_left_is_spread():
    grid = Grid((View(6, 8),))
    image = picture()
    assert kept(fopru.Uniform(k=12), image).tolist() == [
        r * 8 + c for r in (1, 3, 5) for c in (1, 3, 5, 7)
    ]
    for k in range(1, 49):
        chosen = kept(fopru.Uniform(k=k), image)
        assert len(chosen) == k
        high, wide = lattice(6, 8, k)
        assert high * wide <= k
    assert fopru.Uniform(k=13).n_keep(grid) == 13


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 9, 48])
def test_divprune_is_max_min(seed, k):
    image = picture(seed)
    x = F.normalize(image.features.double(), dim=1)
    distance = 1 - x @ x.T
    chosen = [max(range(48), key=lambda i: sorted(distance[i].tolist())[1])]
    while len(chosen) < k:
        rest = [j for j in range(48) if j not in chosen]
        chosen.append(max(rest, key=lambda j: min(distance[i, j] for i in chosen)))
    assert kept(fopru.METHODS["divprune"](k=k), image).tolist() == sorted(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_dpp_maximises_determinants_greedily(seed):
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed)).double()
    weights = torch.rand(12, generator=torch.Generator().manual_seed(seed)).double()
    x = F.normalize(x, dim=1) * weights[:, None]
    kernel = x @ x.T
    chosen = []
    for _ in range(6):
        rest = [j for j in range(12) if j not in chosen]
        chosen.append(
            max(rest, key=lambda j: torch.linalg.det(kernel[[*chosen, j]][:, [*chosen, j]]))
        )
    assert greedy_map(F.normalize(x, dim=1), 6, weights).tolist() == sorted(chosen)


def test_dpp_has_an_order_even_where_features_depend_on_each_other():
    x = unit(torch.randn(20, 3))
    assert len(set(greedy_map(x, 15).tolist())) == 15


@pytest.mark.parametrize("sign", [1, -1])
def test_cdpruner_weighs_by_relevance_to_the_text(sign):
    image = picture()
    relevance = sign * torch.stack(
        [F.cosine_similarity(image.features, t[None]) for t in image.text]
    ).mean(0)
    low, high = relevance.min(), relevance.max()
    q = (relevance - low + 1e-6) / (high - low + 1e-6)
    expected = greedy_map(unit(image.features), 7, q.double())
    assert torch.equal(kept(fopru.METHODS["cdpruner"](k=7, sign=sign), image), expected)


def test_cdpruner_reads_the_question():
    model = tiny.model()
    image = [tiny.image(seed=3)]
    pruner = fopru.METHODS["cdpruner"](k=6)
    texts = [f"USER: <image> {w} ASSISTANT:" for w in ("w1 w2 w3", "w30 w41 w52")]
    one, other = (pruner.prune(model, tiny.inputs("llava", image, t)).images[0] for t in texts)
    assert not torch.equal(one.significance, other.significance)


@pytest.mark.parametrize("k", [1, 7, 20, 31, 48])
def test_vispruner_by_hand(k):
    image = picture(1)
    cls = image.tap("cls").tolist()
    order = sorted(range(48), key=lambda i: -cls[i])
    important = int(k * 0.5)
    rest, goal = order[important:], k - important
    x = F.normalize(image.vision, dim=1)
    while len(rest) > goal:
        m = min(8, len(rest) - goal)
        a, b = rest[0::2], rest[1::2]
        alike = {i: max(float(x[i] @ x[j]) for j in b) for i in a}
        rest = sorted(a, key=lambda i: -alike[i])[m:] + b
    assert kept(fopru.METHODS["vispruner"](k=k), image).tolist() == sorted(order[:important] + rest)


def test_dart_keeps_pivots_and_what_is_least_like_them():
    image = picture(2)
    norms = image.keys().norm(dim=2).mean(1)
    pivots = norms.sort(descending=True).indices[:3].tolist()
    rest = [j for j in range(48) if j not in pivots]
    alike = [
        max(float(F.cosine_similarity(image.features[j], image.features[p], dim=0)) for p in pivots)
        for j in rest
    ]
    others = [j for _, j in sorted(zip(alike, rest, strict=True))][: 24 - 3]
    assert kept(fopru.METHODS["dart"](k=24), image).tolist() == sorted(pivots + others)


def test_pool_averages_cells_and_says_how_many():
    image = picture()
    pruner = fopru.METHODS["pool"](k=13)
    assert pruner.n_keep(image.grid) == 12
    pruned, features = pruner._prune_image(image)
    for members, feature in zip(pruned.sources, features, strict=True):
        assert len(members) == 4
        torch.testing.assert_close(feature, image.features[members].mean(0))
    assert pruned.kept[0] == 0
    assert all(k in m for k, m in zip(pruned.kept, pruned.sources, strict=True))


@pytest.mark.parametrize("k", [1, 5, 24, 30, 47])
def test_tome_conserves_mass_and_covers_every_token_once(k):
    image = picture(3)
    pruned, features = fopru.METHODS["tome"](k=k)._prune_image(image)
    assert sorted(torch.cat(pruned.sources).tolist()) == list(range(48))
    for members, place, feature in zip(pruned.sources, pruned.kept, features, strict=True):
        assert place == members.min()
        torch.testing.assert_close(feature, image.features[members].mean(0), atol=1e-5, rtol=1e-4)


def test_tome_merges_the_most_alike_pair_first():
    image = picture(4)
    pruned, _ = fopru.METHODS["tome"](k=47)._prune_image(image)
    (pair,) = [m.tolist() for m in pruned.sources if len(m) == 2]
    x = F.normalize(image.features, dim=1)
    best = max(itertools.product(range(0, 48, 2), range(1, 48, 2)), key=lambda p: x[p[0]] @ x[p[1]])
    assert pair == sorted(best)


def test_visionzip_by_hand():
    image = picture(5)
    pruned, features = fopru.METHODS["visionzip"](k=32)._prune_image(image)
    count = 5  # floor(32 * 10 / 64)
    cls = image.tap("cls").tolist()
    dominant = sorted(sorted(range(48), key=lambda i: -cls[i])[: 32 - count])
    rest = [i for i in range(48) if i not in dominant]
    step = len(rest) // count
    targets = rest[::step][:count]
    keys = F.normalize(image.keys().mean(1), dim=1)
    groups = {t: [] for t in targets}
    for i in rest:
        if i not in targets:
            groups[max(targets, key=lambda t: float(keys[i] @ keys[t]))].append(i)
    assert pruned.kept.tolist() == sorted(dominant + targets)
    by_place = dict(zip(pruned.kept.tolist(), features, strict=True))
    sources = dict(zip(pruned.kept.tolist(), pruned.sources, strict=True))
    for i in dominant:
        assert torch.equal(by_place[i], image.features[i])
    for t, members in groups.items():
        mean = image.vision[members].mean(0) if members else 0
        expected = image.family.projector(image.vision[t] + mean)
        torch.testing.assert_close(by_place[t], expected, atol=1e-5, rtol=1e-4)
        assert sorted(sources[t].tolist()) == sorted([t, *members])


def test_prumerge_by_hand():
    image = picture(6)
    pruned, features = fopru.METHODS["prumerge"](k=10)._prune_image(image)
    a = image.tap("cls_wide", -1)
    chosen = sorted(a.sort(descending=True).indices[:9].tolist())
    dropped = [i for i in range(48) if i not in chosen]
    keys = F.normalize(image.tap("keys", -1), dim=1)
    expected = {}
    for i in chosen:
        alike = keys @ keys[i]
        near = [j for j in alike.sort(descending=True).indices.tolist() if j != i][:32]
        expected[i] = image.vision[i] + sum(a[j] * image.vision[j] for j in near)
    expected[dropped[-1]] = sum(a[j] * image.vision[j] for j in dropped)
    assert pruned.kept.tolist() == sorted(expected)
    for place, feature in zip(pruned.kept.tolist(), features, strict=True):
        torch.testing.assert_close(
            feature, image.family.projector(expected[place]), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("method", ["prumerge", "prumerge+"])
def test_adaptive_prumerge_keeps_outliers(method):
    image = picture(7)
    pruner = fopru.METHODS[method](adaptive=True)
    assert not pruner.fixed_k
    with pytest.raises(ValueError, match="adaptive=True: how many tokens are kept depends"):
        pruner.n_keep(image.grid)
    a = image.tap("cls_wide", -1)
    q1, q3 = a.quantile(0.25), a.quantile(0.75)
    outliers = set((a > q3 + 1.5 * (q3 - q1)).nonzero().flatten().tolist())
    assert outliers
    chosen = kept(pruner, image)
    if method == "prumerge":
        assert len(chosen) == len(outliers) + 1
        assert outliers <= set(chosen.tolist())
    else:
        step = max(1, (48 // len(outliers)) // 3)
        expected = outliers | set(range(0, 48, step))
        assert expected <= set(chosen.tolist())
        assert len(chosen) <= len(expected) + 1


@pytest.mark.parametrize(
    "method, arguments, message",
    [
        ("vispruner", {"ratio": 1.5}, r"ratio=1.5: must be a number in \[0, 1\]"),
        ("visionzip", {"contextual": 1.0}, r"contextual=1.0: must be a number in \[0, 1\)"),
        ("cdpruner", {"sign": 0}, "sign=0: must be 1 or -1"),
        ("prumerge", {"adaptive": "yes"}, "adaptive='yes': must be one of False, True"),
    ],
)
def test_bad_arguments(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        fopru.METHODS[method](**arguments)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_keys_and_features_of_the_tower_stand_where_their_tokens_do(family):
    """Projecting what is tapped before the projector gives the tokens; keys are the block's own."""
    model, inputs = tiny.model(family), batch(family)
    pruner = fopru.METHODS["vispruner"](0.5)
    dart = fopru.METHODS["dart"](0.5)
    for image in fopru.encode(model, inputs, [pruner, dart]).images:
        patches = image.patches
        again = image.family.projector(image.vision[patches])
        torch.testing.assert_close(again, image.features[patches], atol=1e-5, rtol=1e-4)
        layer = image.family.blocks[image.family.block(None)]
        before = image.family.tower.config.num_hidden_layers
        assert image.keys().shape == (len(patches), 4, 8)
        assert before == 4
        assert layer.self_attn.k_proj.out_features == 32
