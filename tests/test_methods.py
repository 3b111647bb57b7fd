"""Selections and mergers against brute force, written here from the formulas."""

import itertools
import re
import warnings
from dataclasses import replace

import pytest
import reference
import tiny
import torch
import torch.nn.functional as F
import zoo
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import fopru
from fopru import picking
from fopru.choosing import pruned_image
from fopru.encoding import VISION, EncodedImage, Tap
from fopru.families import Family, Grid, UnsupportedModelError, View
from fopru.methods import pool, vispruner
from fopru.picking import greedy_map, lattice, unit

CASES = tiny.method_cases()
BEFORE = sorted({method for method, _ in CASES})
"""Methods that work before the language model."""


def batch(family):
    images = [
        tiny.image(*size, seed=seed) for seed, size in enumerate([(64, 40), (90, 30), (40, 40)])
    ]
    texts = ["USER: <image> w1 w2 w3 ASSISTANT:", "w7 USER: <image> w4 <image> w5 ASSISTANT:"]
    return tiny.inputs(family, images, texts)


def picture(seed=0, height=6, width=8, dtype=torch.float32):
    """One encoded picture with everything that a method may ask for, made of noise."""
    torch.manual_seed(seed)
    n, model = height * width, tiny.model(dtype=dtype)
    family = Family.of(model)
    heads = family.tower.config.num_attention_heads
    read, last = family.block(None), family.block(-1)
    scores = {Tap(read, axis): torch.rand(n) for axis in ("received", "given", "cls")}
    scores |= {Tap(b, axis): torch.rand(n) for b in (0, 1) for axis in ("received", "cls")}
    scores |= {Tap(b, "keys"): torch.randn(n, heads * 8) for b in (read, last)}
    scores |= {Tap(last, "cls_wide"): torch.rand(n) ** 12, VISION: torch.randn(n, 32)}
    grid = Grid((View(height, width),))
    return EncodedImage(family, 0, torch.randn(n, 48), grid, scores, text=torch.randn(5, 48))


def kept(pruner, image):
    return pruned_image(pruner, image)[0].kept


# The matrix


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
    assert kept(fopru.Uniform(tokens=12), image).tolist() == [
        r * 8 + c for r in (1, 3, 5) for c in (1, 3, 5, 7)
    ]
    for k in range(1, 49):
        chosen = kept(fopru.Uniform(tokens=k), image)
        assert len(chosen) == k
        high, wide = lattice(6, 8, k)
        assert high * wide <= k
    assert fopru.Uniform(tokens=13).n_keep(grid) == 13


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
    assert kept(fopru.METHODS["divprune"](tokens=k), image).tolist() == sorted(chosen)


@pytest.mark.parametrize("sign", [1, -1])
def test_cdpruner_weighs_by_relevance_to_the_text(sign):
    image = picture()
    relevance = sign * torch.stack(
        [F.cosine_similarity(image.features, t[None]) for t in image.text]
    ).mean(0)
    low, high = relevance.min(), relevance.max()
    q = (relevance - low + 1e-6) / (high - low + 1e-6)
    expected = greedy_map(unit(image.features), 7, q.double())
    assert torch.equal(kept(fopru.METHODS["cdpruner"](tokens=7, sign=sign), image), expected)


def test_cdpruner_reads_the_question():
    model = tiny.model()
    image = [tiny.image(seed=3)]
    pruner = fopru.METHODS["cdpruner"](tokens=6)
    texts = [f"USER: <image> {w} ASSISTANT:" for w in ("w1 w2 w3", "w30 w41 w52")]
    one, other = (pruner.prune(model, tiny.inputs("llava", image, t)).images[0] for t in texts)
    assert not torch.equal(one.significance, other.significance)


def test_cdpruner_needs_a_question():
    image = replace(picture(), text=torch.empty(0, 48))
    with pytest.raises(ValueError, match="'cdpruner' weighs visual tokens by the prompt's"):
        kept(fopru.METHODS["cdpruner"](0.5), image)
    inputs = tiny.inputs(texts="<image>")
    with pytest.raises(ValueError, match="the prompt of row 0 has none"):
        fopru.METHODS["cdpruner"](0.5).prune(tiny.model(), inputs)


def test_the_text_of_a_prompt_is_what_no_config_names():
    """Of bos, eos (of the config or of generation), padding and placeholders nothing is left."""
    model = tiny.model()
    model.generation_config.eos_token_id = [3, 7]
    inputs = tiny.inputs(texts=["<s> USER: <image> w1 </s> \n w2", "USER: w3"])
    encoded = fopru.encode(model, inputs, [fopru.FoPru()])
    table = model.get_input_embeddings().weight
    for row, words in enumerate((["USER:", "w1", "w2"], ["USER:", "w3"])):
        assert torch.equal(encoded.text(row), table[[tiny.WORDS.index(word) for word in words]])


@pytest.mark.parametrize("listed", [32, 2])
@pytest.mark.parametrize("k", [1, 7, 20, 31, 48])
def test_vispruner_by_hand(monkeypatch, k, listed):
    monkeypatch.setattr(vispruner, "LISTED", listed)
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
    assert kept(fopru.METHODS["vispruner"](tokens=k), image).tolist() == sorted(
        order[:important] + rest
    )


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
    assert kept(fopru.METHODS["dart"](tokens=24), image).tolist() == sorted(pivots + others)


def test_pool_averages_cells_and_says_how_many():
    image = picture()
    pruner = fopru.METHODS["pool"](tokens=13)
    assert pruner.n_keep(image.grid) == 12
    pruned, features = pruned_image(pruner, image)
    for members, feature in zip(pruned.sources, features, strict=True):
        assert len(members) == 4
        torch.testing.assert_close(feature, image.features[members].mean(0))
    assert pruned.kept[0] == 0


def test_every_token_is_in_a_cell_of_the_pool_that_holds_it():
    image = picture(height=5, width=7)
    for k in range(1, 36):
        pruner = fopru.METHODS["pool"](tokens=k)
        pruned, _ = pruned_image(pruner, image)
        high, wide = pool.shape(5, 7, pruned.n_kept)
        for token, cell in enumerate(pruned.owner.tolist()):
            (row, column), (i, j) = divmod(token, 7), divmod(cell, wide)
            assert i * 5 // high <= row < -(-(i + 1) * 5 // high)
            assert j * 7 // wide <= column < -(-(j + 1) * 7 // wide)


@pytest.mark.parametrize("k", [1, 5, 24, 30, 47])
def test_tome_conserves_mass_and_covers_every_token_once(k):
    image = picture(3)
    pruned, features = pruned_image(fopru.METHODS["tome"](tokens=k), image)
    assert sorted(torch.cat(pruned.sources).tolist()) == list(range(48))
    for members, place, feature in zip(pruned.sources, pruned.kept, features, strict=True):
        assert place == members.min()
        torch.testing.assert_close(feature, image.features[members].mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [4, 11, 23, 40])
def test_tome_by_hand(k):
    """Groups of tokens in place of owners, and pairs one by one."""
    image = picture(5)
    groups = [[i] for i in range(48)]
    while len(groups) > k:
        means = torch.stack([image.features[members].double().mean(0) for members in groups])
        x = F.normalize(means, dim=1)
        pairs = []
        for a in range(0, len(groups), 2):
            b = max(range(1, len(groups), 2), key=lambda j, a=a: x[a] @ x[j])
            pairs.append((x[a] @ x[b], a, b))
        pairs.sort(reverse=True)
        gone = pairs[: min(len(groups) // 2, len(groups) - k)]
        for _, a, b in gone:
            groups[b] = sorted(groups[b] + groups[a])
        groups = sorted(g for i, g in enumerate(groups) if i not in {a for _, a, _ in gone})
    pruned, _ = pruned_image(fopru.METHODS["tome"](tokens=k), image)
    assert [members.tolist() for members in pruned.sources] == groups


def test_tome_merges_the_most_alike_pair_first():
    image = picture(4)
    pruned, _ = pruned_image(fopru.METHODS["tome"](tokens=47), image)
    (pair,) = [m.tolist() for m in pruned.sources if len(m) == 2]
    x = F.normalize(image.features, dim=1)
    best = max(itertools.product(range(0, 48, 2), range(1, 48, 2)), key=lambda p: x[p[0]] @ x[p[1]])
    assert pair == sorted(best)


def test_visionzip_by_hand():
    image = picture(5)
    pruned, features = pruned_image(fopru.METHODS["visionzip"](tokens=32), image)
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
    pruned, features = pruned_image(fopru.METHODS["prumerge"](tokens=10), image)
    a = image.tap("cls_wide", -1)
    chosen = sorted(a.sort(descending=True).indices[:9].tolist())
    dropped = [i for i in range(48) if i not in chosen]
    keys = F.normalize(image.tap("keys", -1), dim=1)
    expected, neighbours = {}, {}
    for i in chosen:
        alike = keys @ keys[i]
        near = [j for j in alike.sort(descending=True).indices.tolist() if j != i][:32]
        expected[i] = image.vision[i] + sum(a[j] * image.vision[j] for j in near)
        neighbours[i] = near
    expected[dropped[-1]] = sum(a[j] * image.vision[j] for j in dropped)
    assert pruned.kept.tolist() == sorted(expected)
    for j in dropped[:-1]:  # of those that took it in, the one most like it; else the sum of all
        near = [i for i in chosen if j in neighbours[i]]
        owner = max(near, key=lambda i, j=j: float(keys[i] @ keys[j])) if near else dropped[-1]
        assert pruned.kept[pruned.owner[j]] == owner
    for place, feature in zip(pruned.kept.tolist(), features, strict=True):
        torch.testing.assert_close(
            feature, image.family.projector(expected[place]), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_received_attention_of_the_merging_methods_by_hand(tower):
    """In float64, of the tower's own queries and keys: VisionZip's averages over heads in the block
    that is read, PruMerge's goes over whole queries and keys in the last one."""
    net, inputs = tiny.model() if tower == "clip" else siglip(), dict(tiny.inputs())
    family = Family.of(net)
    assert family.n_prefix == int(tower == "clip")
    found = {}
    layers = [family.block(None), len(family.blocks) - 1]
    for layer in layers:
        for part in ("q_proj", "k_proj"):
            family.blocks[layer].self_attn.get_submodule(part).register_forward_hook(
                lambda module, args, out, name=(layer, part): found.update({name: out[0].double()})
            )
    told = {"tokens": 20, "attention": "received"}
    pruned = [fopru.METHODS[name](**told).prune(net, inputs) for name in ("visionzip", "prumerge")]
    for heads, layer, (image,) in zip((4, 1), layers, [p.images for p in pruned], strict=True):
        query, key = (
            found[layer, part].unflatten(1, (heads, -1)).transpose(0, 1)  # (h, T, d)
            for part in ("q_proj", "k_proj")
        )
        maps = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
        p = family.n_prefix
        want = maps[:, p:, p:].mean((0, 1))  # (N,)
        torch.testing.assert_close(image.significance.double(), want, atol=1e-6, rtol=1e-4)
        assert image.n_kept == 20
    first = want.sort(descending=True).indices[:19].sort().values
    assert set(first.tolist()) < set(pruned[1].images[0].kept.tolist())


def siglip():
    """A tiny LLaVA whose tower has no CLS token."""
    vision = tiny.configs("llava").vision_config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {name: vision[name] for name in (*names, "image_size", "patch_size")}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=tiny.configs("llava").text_config,
        image_token_index=tiny.IMAGE_TOKEN_ID,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    net = LlavaForConditionalGeneration(config).eval()
    tiny.shake(net)
    return net


@pytest.mark.parametrize("method", ["cls", "vispruner", "visionzip", "prumerge", "prumerge+"])
def test_the_cls_token_is_read_where_there_is_one(method):
    net, inputs, kind = tiny.model(), tiny.inputs(), fopru.METHODS[method]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = [kind(0.3, attention=a).prune(net, inputs) for a in (None, "cls", "received")]
    default, same, other = (p.images[0] for p in pruned)
    assert torch.equal(default.significance, same.significance)
    assert torch.equal(default.kept, same.kept) and not torch.equal(default.kept, other.kept)
    assert kind().label == method and kind(attention="received").label.endswith("=received")
    with pytest.warns(UserWarning, match=rf"Siglip.* no CLS token: method '{re.escape(method)}'"):
        (image,) = kind(0.3).prune(siglip(), inputs).images
    assert image.n_kept == kind(0.3).n_keep(image.grid) == 19


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


@pytest.mark.parametrize("method", ["prumerge", "prumerge+"])
@pytest.mark.parametrize("size, outlying", [((6, 8), 11), ((3, 3), 2), ((1, 1), 1)])
def test_adaptive_prumerge_with_many_outliers(method, size, outlying):
    """With more than a sixth of them, prumerge+ takes every token, and none is left to merge."""
    image = picture(0, *size)
    n, tap = len(image.features), Tap(3, "cls_wide")
    cls = torch.full((n,), 0.001)
    cls[:outlying] = 1.0
    image = replace(image, learned=image.learned | {tap: cls})
    pruned, features = pruned_image(fopru.METHODS[method](adaptive=True), image)
    every = method == "prumerge+" or n == 1
    assert pruned.n_kept == len(features) == (n if every else outlying + 1)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    "method, arguments, message",
    [
        ("vispruner", {"ratio": "half"}, r"ratio='half': must be a number in \[0, 1\]"),
        ("random", {"seed": 1.5}, "seed=1.5: must be an integer"),
        ("vispruner", {"ratio": 1.5}, r"ratio=1.5: must be a number in \[0, 1\]"),
        ("visionzip", {"contextual": 1.0}, r"contextual=1.0: must be a number in \[0, 1\)"),
        ("cdpruner", {"sign": 0}, "sign=0: must be 1 or -1"),
        ("prumerge", {"adaptive": "yes"}, "adaptive='yes': must be one of False, True"),
        ("prumerge", {"adaptive": True, "tokens": 9}, "tokens=9: with adaptive=True the scores"),
        ("cls", {"attention": "given"}, "attention='given': must be one of None, 'cls', 'rec"),
    ],
)
def test_bad_arguments(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        fopru.METHODS[method](**arguments)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_keys_and_features_of_the_tower_stand_where_their_tokens_do(family):
    """Projecting the tower's features gives the tokens, and block 3, which gets these features,
    makes its keys of them."""
    model, inputs = tiny.model(family), batch(family)
    pruners = [fopru.METHODS["vispruner"](0.5), fopru.METHODS["dart"](0.5, layer=3)]
    for image in fopru.encode(model, inputs, pruners).images:
        patches = image.patches
        vision = image.vision[patches]
        again = image.family.projector(vision)
        torch.testing.assert_close(again, image.features[patches], atol=1e-5, rtol=1e-4)
        block, keys = image.family.blocks[3], image.keys(3)
        expected = block.self_attn.k_proj(block.layer_norm1(vision)).unflatten(1, (4, 8))
        torch.testing.assert_close(keys[patches], expected, atol=1e-5, rtol=1e-4)
        for place in (~patches).nonzero().flatten().tolist():  # a newline has its row's mean
            row = (image.grid.view == image.grid.view[place]) & patches
            row &= image.grid.rows == image.grid.rows[place]
            torch.testing.assert_close(keys[place], keys[row].mean(0), atol=1e-5, rtol=1e-4)
    assert not model.model.multi_modal_projector._forward_pre_hooks


# Ties, and what they must not hang on


def tied(dtype=torch.float32, constant=False):
    """A picture in which every token has duplicates, or is like all others."""
    image = picture(8, 24, 24, dtype)
    draw = torch.Generator().manual_seed(0)
    of = torch.zeros(576).long() if constant else torch.randint(120, (576,), generator=draw)
    scores = {tap: values[of].to(dtype) for tap, values in image.learned.items()}
    return replace(image, features=image.features[of].to(dtype), learned=scores)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", BEFORE)
def test_the_last_bit_picks_nothing(monkeypatch, method, dtype, constant):
    """Neither the number of threads, nor the size of a product, nor noise in the last bit."""
    image, pruner = tied(dtype, constant), fopru.METHODS[method](0.25)
    expected, _ = pruned_image(pruner, image)
    draw = torch.Generator().manual_seed(1)
    attention = {Tap(b, a) for b in range(4) for a in ("received", "given", "cls", "cls_wide")}
    threads = torch.get_num_threads()
    try:
        for number, block, held in ((2, 2**22, 2**24), (1, 5000, 0), (2, 577, 2**24)):
            torch.set_num_threads(number)
            monkeypatch.setattr(picking, "BLOCK_ELEMENTS", block)
            monkeypatch.setattr(picking, "HELD_ELEMENTS", held)
            scores = {
                tap: values.float() * (1 + 2e-7 * torch.rand(576, generator=draw))
                if tap in attention
                else values
                for tap, values in image.learned.items()
            }
            found, _ = pruned_image(pruner, replace(image, learned=scores))
            assert torch.equal(found.kept, expected.kept)
            assert torch.equal(found.owner, expected.owner)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", ["fopru", "cls", "dart", "divprune", "dpp", "cdpruner"])
def test_of_tokens_that_are_all_alike_the_first_stay(method):
    assert kept(fopru.METHODS[method](tokens=40), tied(constant=True)).tolist() == list(range(40))


@pytest.mark.parametrize("method", BEFORE)
def test_a_picture_of_one_color_in_a_batch_and_alone(method):
    model, pruner = tiny.model(), fopru.METHODS[method](0.25)
    grey = Image.new("RGB", (40, 40), (90, 120, 60))
    alone = pruner.prune(model, tiny.inputs(images=[grey])).images[0]
    texts = ["USER: <image> w1 w2 w3 ASSISTANT:"] * 2
    both = pruner.prune(model, tiny.inputs(images=[grey, grey], texts=texts)).images
    assert [torch.equal(image.kept, alone.kept) for image in both] == [True, True]


@pytest.mark.parametrize("method", ["cdpruner", "dart", "divprune", "dpp"])
def test_of_a_picture_of_one_color_the_first_stay_where_positions_do_not_tell(method):
    """Qwen's tower has rotary positions only: its features are equal up to float32's rounding."""
    grey = Image.new("RGB", (64, 64), (90, 120, 60))
    inputs = zoo.inputs("qwen2_vl", [grey], ["w1 <image> w2 w3"])
    (image,) = fopru.METHODS[method](0.3).prune(zoo.model("qwen2_vl"), inputs).images
    assert image.kept.tolist() == list(range(image.n_kept))


# What it costs


@pytest.mark.parametrize("method", BEFORE)
def test_no_tensor_of_all_pairs(method):
    """Of 5,184 tokens, which are more than those whose pairs are held."""
    n = 72 * 72
    image = picture(9, 72, 72)
    k = n - 64 if method in ("vispruner", "tome") else 72
    with reference.LargestTensor() as made, torch.no_grad():
        pruned_image(fopru.METHODS[method](tokens=k), image)
    assert made.elements <= 2**22


@pytest.mark.parametrize("method", [m for m in BEFORE if fopru.METHODS[m].selects()])
def test_nothing_is_compared_where_all_are_kept(method):
    image = picture()
    image = replace(image, features=torch.full_like(image.features, torch.nan))
    if method != "cdpruner":  # whose score reads the features
        assert kept(fopru.METHODS[method](1.0), image).tolist() == list(range(48))
        pruned, _ = pruned_image(fopru.METHODS[method](1.0, weights="mass"), image)
        assert pruned.owner.tolist() == list(range(48))


class NoFloat64(TorchFunctionMode):
    """Tensors with `gpu` set are as on Apple's GPU: making float64 there is an error.

    Whatever an operation makes of such a tensor is one too, unless it moves to the CPU.
    """

    gpu = torch.device("mps")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        leaves, spec = tree_flatten((args, kwargs or {}))
        there = any(getattr(leaf, "gpu", False) for leaf in leaves if torch.is_tensor(leaf))
        if func == torch.Tensor.device.__get__ and there:
            return self.gpu
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        there |= self.gpu in devices
        args, kwargs = tree_unflatten(
            ["cpu" if isinstance(leaf, torch.device) else leaf for leaf in leaves], spec
        )
        out = func(*args, **kwargs)
        if func == torch.Tensor.cpu or torch.device("cpu") in devices:
            return out.clone()
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and there:
                assert leaf.dtype != torch.float64, f"{func.__name__} made float64 there"
                leaf.gpu = True
        return out


@torch.no_grad()
@pytest.mark.parametrize("method", BEFORE)
def test_no_float64_on_a_gpu_that_has_none(method):
    image = picture(3)
    arguments = [{}, {"weights": "mass"}] if fopru.METHODS[method].selects() else [{}]
    for more in arguments:
        expected, _ = pruned_image(fopru.METHODS[method](0.3, **more), image)
        tensors = [
            image.features.clone(),
            image.text.clone(),
            *map(torch.clone, image.learned.values()),
        ]
        for tensor in tensors:
            tensor.gpu = True
        features, text, *values = tensors
        there = replace(
            image,
            features=features,
            text=text,
            learned=dict(zip(image.learned, values, strict=True)),
        )
        with NoFloat64():
            found, tokens = pruned_image(fopru.METHODS[method](0.3, **more), there)
            assert tokens.gpu
        assert torch.equal(found.kept, expected.kept)
        assert torch.equal(found.owner, expected.owner)
