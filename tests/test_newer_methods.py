"""Newer methods against brute force in float64, written here from the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
import zoo
from test_methods import kept, picture, pruned_image

import fopru
from fopru.encoding import VISION, Tap
from fopru.families import Family, Grid, UnsupportedModelError, View

HEIGHT, WIDTH = 6, 8
N = HEIGHT * WIDTH
KS = [1, 5, 17, 33, 47]


def noise(seed=0):
    """A picture of noise."""
    return picture(seed, HEIGHT, WIDTH)


def best_first(scores):
    """Places from the largest score to the smallest, ties to the lower."""
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))


def cosines(features):
    points = F.normalize(features.double(), dim=1)
    return points @ points.T


def hiprune(middle, last, k, alpha):
    chosen = set()
    for anchor in best_first(middle)[: round(k * alpha / 5)]:
        near = {anchor, anchor - 1, anchor + 1, anchor - WIDTH, anchor + WIDTH} & set(range(N))
        if len(chosen | near) > k:
            break
        chosen |= near
    for i in best_first(last):
        if len(chosen) < k:
            chosen.add(i)
    return sorted(chosen)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_hiprune_keeps_anchors_with_what_is_around_them(alpha, k):
    image = noise(k)
    middle, last = image.tap("received", 1), image.tap("received")
    found = kept(fopru.HiPrune(tokens=k, alpha=alpha, object_layer=1), image).tolist()
    assert found == hiprune(middle, last, k, alpha)
    assert kept(fopru.HiPrune(tokens=k, alpha=alpha), image).tolist() == found  # 3/8 of 4 blocks


@pytest.mark.parametrize("k", KS)
def test_hiprune_without_anchors_is_fopru_on_attention_received(k):
    image = noise()
    expected = kept(fopru.FoPru(tokens=k, axis="received"), image)
    assert torch.equal(kept(fopru.HiPrune(tokens=k, alpha=0), image), expected)
    if k <= 25:
        assert torch.equal(kept(fopru.HiPrune(tokens=k), image), expected)


def test_the_blocks_that_the_authors_choose():
    deep = Family.of(zoo.model("llava"))
    deep.blocks = [None] * 24
    assert (deep.nearest_block(3 / 8), deep.nearest_block(1 / 4)) == (8, 5)
    windows = Family.of(zoo.model("qwen2_5_vl"))
    windows.blocks = [None] * 32
    windows.config.vision_config.fullatt_block_indexes = [7, 15, 23, 31]
    assert (windows.nearest_block(3 / 8), windows.nearest_block(1 / 4)) == (15, 7)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_scope_takes_the_largest_gain_of_coverage(alpha, k):
    image = noise(k)
    alike, weight = cosines(image.vision).tolist(), (image.tap("cls").double() ** alpha).tolist()
    covered, chosen = [0.0] * N, []
    while len(chosen) < k:
        gains = [sum(max(0, alike[u][v] - covered[u]) for u in range(N)) for v in range(N)]
        rest = [v for v in range(N) if v not in chosen]
        best = max(rest, key=lambda v: round(gains[v] * weight[v], 9))
        chosen.append(best)
        covered = [max(c, alike[u][best]) for u, c in enumerate(covered)]
    assert kept(fopru.SCOPE(tokens=k, alpha=alpha), image).tolist() == sorted(chosen)


def test_scope_gives_what_adds_nothing_to_the_lower_index():
    image = noise()
    image.learned[VISION] = torch.ones(N, 32)  # the first covers all
    image.learned[Tap(2, "cls")] = torch.arange(N).float() + 1
    assert kept(fopru.SCOPE(tokens=4), image).tolist() == [0, 1, 2, N - 1]


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("crops", [1, 5, 16, 100])
def test_holov_gives_each_run_its_quota(crops, k):
    image = noise(k)
    scores = image.tap("cls") ** 8  # far from even, so that quotas exceed runs
    image.learned[Tap(2, "cls")] = scores
    parts, size, more = [], *divmod(N, min(crops, N))
    for c in range(min(crops, N)):
        start = parts[-1][-1] + 1 if parts else 0
        parts.append(list(range(start, start + size + (c < more))))
    means = [math.fsum(scores[i].item() for i in part) / len(part) for part in parts]
    shares = [mean / math.fsum(means) for mean in means]
    quotas = [math.floor(k * share) for share in shares]
    for c in best_first(shares)[: k - sum(quotas)]:
        quotas[c] += 1
    quotas = [min(q, len(part)) for q, part in zip(quotas, parts, strict=True)]
    while sum(quotas) < k:
        room = [s * (len(p) - q) for s, p, q in zip(shares, parts, quotas, strict=True)]
        quotas[max(range(len(parts)), key=lambda c: room[c])] += 1
    chosen = []
    for part, quota in zip(parts, quotas, strict=True):
        chosen += [part[i] for i in best_first(scores[part])[:quota]]
    assert kept(fopru.HoloV(tokens=k, crops=crops), image).tolist() == sorted(chosen)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("window", [1, 3, 4, 6])
def test_vscan_takes_its_local_half_window_by_window_and_averages_the_rest(window, k):
    image = noise(k)
    shallow, last = image.tap("cls", 0), image.tap("cls")
    high, wide = HEIGHT // window, WIDTH // window
    limit, count = -(-(k // 2) // (high * wide)), {}
    chosen = []
    for i in best_first(shallow):
        of = min(i // WIDTH // window, high - 1), min(i % WIDTH // window, wide - 1)
        if len(chosen) < k // 2 and count.get(of, 0) < limit:
            count[of] = count.get(of, 0) + 1
            chosen.append(i)
    chosen += [i for i in best_first(last) if i not in chosen][: k - len(chosen)]
    chosen.sort()
    alike, members = cosines(image.features), {i: [i] for i in chosen}
    for i in set(range(N)) - set(chosen):
        members[max(chosen, key=lambda j: alike[i, j])].append(i)
    pruner = fopru.VScan(tokens=k, window=window, shallow_layer=0)
    pruned, features = pruned_image(pruner, image)
    assert pruned.kept.tolist() == chosen
    means = torch.stack([image.features[members[i]].double().mean(0) for i in chosen])
    torch.testing.assert_close(features.double(), means, atol=1e-6, rtol=0)
    assert pruned.mass.tolist() == [len(members[i]) for i in chosen]


def test_vscans_window_fits_a_small_grid_and_one_that_is_larger_is_refused():
    image = noise()
    six, none = fopru.VScan(tokens=9, window=6), fopru.VScan(tokens=9)
    assert torch.equal(kept(six, image), kept(none, image))
    with pytest.raises(ValueError, match=r"window=7: the grid has 6 x 8 visual tokens"):
        kept(fopru.VScan(tokens=9, window=7), image)


@pytest.mark.parametrize("k", KS)
def test_mmtok_covers_words_and_tokens(k):
    image = noise(k)
    text, features = (F.normalize(x.double(), dim=1) for x in (image.text, image.features))
    words = (text @ features.T / 0.02).softmax(1)
    tokens = (cosines(image.vision) / 0.2).softmax(1)

    def covered(chosen):
        return words[:, chosen].amax(1).mean() + 0.5 * tokens[:, chosen].amax(1).mean()

    chosen = []
    while len(chosen) < k:
        rest = [v for v in range(N) if v not in chosen]
        chosen.append(max(rest, key=lambda v: float(covered([*chosen, v]))))
    assert kept(fopru.MMTok(tokens=k), image).tolist() == sorted(chosen)


def prunesid(vision, scores, k):
    soft = vision.double().sigmoid()
    soft = soft - soft.mean(1, keepdim=True)
    count = max(1, k // 4)
    values, vectors = torch.linalg.eigh(soft @ soft.T)  # its right singular vectors, otherwise
    loads = vectors[:, values.argsort(descending=True)[:count]].abs()
    alike = cosines(vision)
    pairs = [float(alike[i, j]) for i in range(N) for j in range(i)]
    limit = k / 32 * sum(pairs) / len(pairs)
    orders, sizes, survivors = [], [], []
    for g in range(count):
        stay, go = [], []
        for i in best_first(scores):
            if int(loads[i].argmax()) == g:
                fits = all(alike[i, j] <= limit for j in stay)
                (stay if fits else go).append(i)
        orders.append(stay + go)
        sizes.append(len(stay + go))
        survivors.append(len(stay))
    caps = [min(5 * math.ceil(k / 64), c, m) for c, m in zip(sizes, survivors, strict=True)]
    while sum(caps) < k:
        caps = [min(cap + 1, c) for cap, c in zip(caps, sizes, strict=True)]
    low = [min(1, c) for c in sizes]
    ends = [
        round(max(0, k - sum(low)) * sum(survivors[: g + 1]) / sum(survivors)) for g in range(count)
    ]
    quotas = [min(low[g] + ends[g] - (ends[g - 1] if g else 0), caps[g]) for g in range(count)]
    for g in best_first(survivors):
        while sum(quotas) < k and quotas[g] < caps[g]:
            quotas[g] += 1
    return sorted(i for order, q in zip(orders, quotas, strict=True) for i in order[:q])


@pytest.mark.parametrize("k", [4, 5, 17, 33, 47])
@pytest.mark.parametrize("seed", range(3))
def test_prunesid_takes_from_every_direction(seed, k):
    image = noise(seed)
    centre = torch.randn(1, 32) * 2
    image.learned[VISION] = image.vision + centre  # alike, so that duplicates go
    expected = prunesid(image.vision, image.tap("cls"), k)
    assert kept(fopru.PruneSID(tokens=k), image).tolist() == expected


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("hiprune", {"alpha": 1.5}, r"alpha=1.5: must be a number in \[0, 1\]"),
        ("hiprune", {"object_layer": 1.5}, "object_layer=1.5: must be an integer"),
        ("scope", {"alpha": -1}, "alpha=-1: must be a number of at least 0"),
        ("scope", {"alpha": math.inf}, "alpha=inf: must be a number"),
        ("holov", {"crops": 0}, "crops=0: must be an integer of at least 1"),
        ("vscan", {"window": 0}, "window=0: must be an integer of at least 1"),
        ("vscan", {"shallow_layer": "a"}, "shallow_layer='a': must be an integer"),
        ("mmtok", {"tau_text": 0}, "tau_text=0: must be a number above 0"),
        ("mmtok", {"alpha": True}, "alpha=True: must be a number"),
    ],
)
def test_arguments_are_checked(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        fopru.METHODS[method](0.5, **arguments)


@pytest.mark.parametrize(("method", "name"), [("hiprune", "object"), ("vscan", "shallow")])
def test_blocks_that_do_not_exist_are_refused(method, name):
    pruner = fopru.METHODS[method](0.5, **{f"{name}_layer": 4})
    with pytest.raises(ValueError, match="has 4 blocks"):
        pruner.taps(noise().family)


def test_mmtok_needs_a_question():
    from dataclasses import replace

    with pytest.raises(ValueError, match="'mmtok' covers the words of the prompt"):
        kept(fopru.MMTok(0.5), replace(noise(), text=torch.empty(0, 48)))


def test_vscan_refuses_newline_tokens_and_hiprune_steps_over_them():
    from dataclasses import replace

    grid = Grid((View(HEIGHT, WIDTH - 1, newline=True),))
    image = replace(noise(), grid=grid)
    with pytest.raises(UnsupportedModelError, match="'vscan' cuts the grid into windows"):
        kept(fopru.VScan(0.5), image)
    middle = torch.zeros(N)
    middle[9] = 1  # the second row's second patch; 7 and 15 are newline tokens
    image.learned[Tap(1, "received")] = middle
    image.learned[Tap(2, "received")] = -torch.arange(N).float()
    found = kept(fopru.HiPrune(tokens=10, alpha=0.5), image).tolist()
    assert found == sorted({9, 8, 10, 1, 17} | {0, 2, 3, 4, 5})
