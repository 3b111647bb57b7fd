"""SparseVLM against its formulas in float64, layer after layer by hand."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
import zoo

import fopru
from fopru.families import Family
from fopru.methods.sparsevlm import SparseVLM, density_peaks

TEXTS = ["USER: <image> w1 w2 w3 ASSISTANT:", "w7 USER: <image> w4 w5 w6 <image> w8 w9 ASSISTANT:"]


def largest(score, places, count):
    """The places of largest score, ties to the lower."""
    return sorted(places, key=lambda i: (-float(score[i]), i))[:count]


def peaks(points, count):
    """Density peaks: point -> the centre that it goes to."""
    m = len(points)
    apart = [[float((a - b).norm()) for b in points] for a in points]
    density = [math.exp(-sum(d**2 for d in sorted(row)[:count]) / count) for row in apart]
    score = []
    for i in range(m):
        denser = [j for j in range(m) if (-density[j], j) < (-density[i], i)]
        near = min((apart[i][j] for j in denser), default=max(map(max, apart)))
        score.append(density[i] * near)
    centres = largest(score, range(m), count)
    near = [min(sorted(centres), key=lambda c: row[c]) for row in apart]
    return [i if i in centres else near[i] for i in range(m)]


def raters(pictures, text):
    """Which of the text tokens get more than the mean."""
    votes = [0.0] * len(text)
    for v in pictures:
        shares = (text @ v).softmax(0)
        votes = [vote + float(share) for vote, share in zip(votes, shares, strict=True)]
    mean = sum(votes) / len(votes)
    return [vote > mean * (1 + 1e-9) for vote in votes]


@torch.no_grad()
def by_hand(net, inputs, length, after, retention, reindex, recycle=True):
    """Last logits of one prompt, of which `length` tokens are the prompt, and after each layer the
    column in whose slot each visual token is (None where it is gone).

    An eager decoder put together from the model's own modules, on the tokens that are left.
    """
    ids, family = inputs["input_ids"], Family.of(net)
    encoded = fopru.encode(net, inputs)
    hidden = net.get_input_embeddings()(ids).clone()
    hidden[ids == family.image_token_id] = torch.cat([image.features for image in encoded.images])
    hidden = hidden[0]
    where = family.position_ids(inputs, torch.ones_like(ids), [i.grid for i in encoded.images])
    where = where[-3:] if family.spatial else where
    visual = (ids[0] == family.image_token_id).nonzero().flatten().tolist()
    pictures, start = [], 0
    for image in encoded.images:
        pictures.append(visual[start : start + image.grid.n_tokens])
        start += image.grid.n_tokens
    text = list(range(visual[-1] + 1, length))
    chosen = raters(hidden[visual].double(), hidden[text].double())
    words = [c for c, flag in zip(text, chosen, strict=True) if flag]
    columns, slot = list(range(ids.shape[1])), {v: v for v in visual}
    slots, stage, maps = [], 0, None
    for i, layer in enumerate(family.decoder.layers):
        if i - 1 in after:
            stage += 1
            share = retention ** (stage / len(after))
            here = [c for c in columns if c in slot]
            at = {c: p for p, c in enumerate(columns)}
            score = {c: sum(float(maps[at[w], at[c]]) for w in words) / len(words) for c in here}
            kept = largest(score, here, max(1, math.floor(len(visual) * share + 1e-9)))
            moved, states = {}, hidden.double().clone()
            for picture in pictures:
                gone = [c for c in here if c in picture and c not in kept]
                if not gone or not recycle:
                    continue
                best = sorted(largest(score, gone, len(gone) * 3 // 10 + 1))
                points = hidden[[at[c] for c in best]].double() / hidden.shape[1] ** 0.5
                centre = [best[j] for j in peaks(points, len(best) // 10 + 1)]
                moved |= dict(zip(best, centre, strict=True))
                for c in set(centre):
                    members = [at[b] for b in best if moved[b] == c]
                    states[at[c]] = hidden[members].double().mean(0)
            moved |= {c: c for c in kept}
            slot = {v: moved.get(s) for v, s in slot.items()}
            columns = [c for c in columns if c not in slot or moved.get(c) == c]
            hidden = states[[at[c] for c in columns]].to(hidden)
        places = torch.arange(len(columns))[None] if reindex else where[..., columns]
        waves = family.decoder.rotary_emb(hidden[None], position_ids=places)
        mask = torch.full((len(columns),) * 2, -1e30, dtype=hidden.dtype).triu(1)
        told = dict(attention_mask=mask[None, None], position_embeddings=waves)
        normed = layer.input_layernorm(hidden[None])
        maps = layer.self_attn(normed, **told)[1][0].double().mean(0)
        hidden = layer(hidden[None], **told)[0]
        slots.append([slot[v] for v in visual])
    return net.lm_head(family.decoder.norm(hidden))[-1], slots


def asked(family, text=TEXTS[0]):
    images = [tiny.image(60, 44, seed=seed) for seed in range(text.count("<image>"))]
    return zoo.inputs(family, images, text)


CASES = [
    ("llava", "sdpa", TEXTS[0], (1,), 0.1, None, True),  # two clusters
    ("llava", "eager", TEXTS[1], (0, 1, 3), 0.1, "reindex", True),
    ("llava", "sdpa", TEXTS[1], (0, 2), 0.3, None, False),
    ("qwen2_5_vl", "sdpa", TEXTS[1], (0, 1, 3), 0.1, None, True),
]


@pytest.mark.parametrize("family, attention, text, after, retention, positions, recycle", CASES)
def test_layer_after_layer(family, attention, text, after, retention, positions, recycle):
    """What the prompt keeps, what it becomes, and each step on its cache."""
    inputs, net = asked(family, text), zoo.model(family, attention, torch.float64)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    length = inputs["input_ids"].shape[1]
    pruner = SparseVLM(retention, after_layers=after, recycle=recycle, positions=positions)
    told = dict(max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with pruner(net) as run:
        out = net.generate(**inputs, **told)
    eager = zoo.model(family, "eager", torch.float64)
    for step, found in enumerate(out.logits):
        longer = {**inputs, "input_ids": out.sequences[:, : length + step]}
        if "mm_token_type_ids" in inputs:
            longer["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, step))
        want, slots = by_hand(
            eager, longer, length, after, retention, positions == "reindex", recycle
        )
        torch.testing.assert_close(found[0], want, atol=1e-5, rtol=1e-5, check_dtype=False)
    visual = (inputs["input_ids"][0] == Family.of(net).image_token_id).nonzero().flatten()
    for i, layer in enumerate(slots):
        expected = [-1 if c is None else visual.tolist().index(c) for c in layer]
        assert run.prompt.owners(i)[0].tolist() == expected
        assert run.visual_counts[i] == [len(set(expected) - {-1})]
    assert run.kept[0].tolist() == sorted(set(expected) - {-1})
    start = 0
    for image in run.images:
        own = [o - start if o >= 0 else -1 for o in expected[start : start + image.n_full]]
        assert image.kept[image.owner].where(image.owner >= 0, -1).tolist() == own
        start += image.n_full
    assert any(image.mass.max() > 1 for image in run.images) == recycle


@pytest.mark.parametrize("count", [1, 3, 7])
def test_groups_around_density_peaks(count):
    torch.manual_seed(count)
    points = torch.randn(40, 5).double()
    points[20:30] += 3
    points[7] = points[3]
    assert density_peaks(points, count).tolist() == peaks(points, count)
    same = density_peaks(torch.ones(6, 2).double(), count - count // 7)
    assert same.tolist()[: count - count // 7] == list(range(count - count // 7))


@pytest.mark.parametrize("n", [1, 9, 30, 300])
def test_a_tenth_of_the_best_three_tenths_are_centres(n):
    torch.manual_seed(n)
    scores, hidden = torch.rand(n), 3 * torch.randn(n, 4)
    best = sorted(largest(scores, range(n), math.floor(3 * n / 10) + 1))
    went, found = [-1] * n, peaks(hidden[best].double() / 2, len(best) // 10 + 1)
    for i, centre in zip(best, found, strict=True):
        went[i] = best[centre]
    assert SparseVLM().clusters(scores, hidden).tolist() == went


def test_raters_are_what_the_picture_votes_for():
    torch.manual_seed(0)
    hidden = torch.randn(60, 48)
    visual = torch.zeros(60, dtype=torch.bool)
    visual[2:30] = visual[35:40] = True
    found = SparseVLM().raters(hidden, visual)
    assert found.tolist() == [False] * 40 + raters(hidden[visual].double(), hidden[40:].double())
    assert 0 < found.sum() < 20
    hidden[40:] = hidden[40]
    assert SparseVLM().raters(hidden, visual).tolist() == [False] * 40 + [True] * 20


def test_what_was_recycled_for_one_question_is_recycled_for_another():
    texts = [TEXTS[0], "w8 " + TEXTS[0]]
    net, images = zoo.model("llava"), [tiny.image(60, 44, seed=i) for i in range(len(texts))]
    inputs = zoo.inputs("llava", images, texts)
    other = [text.replace("w2", "w11 w12 w13 w14") for text in texts]
    pruner = SparseVLM(0.2)
    with torch.no_grad():
        with pruner(net) as first:
            expected = net(**inputs).logits
        with pruner(net, first) as again:
            torch.testing.assert_close(net(**inputs).logits, expected)
        with pruner(net, first) as later:
            net(**zoo.inputs("llava", images, other))
        with pruner(net) as own:
            net(**zoo.inputs("llava", images, other))
    for run in (again, later):
        assert [i.owner.tolist() for i in run.images] == [i.owner.tolist() for i in first.images]
    assert not torch.equal(own.kept[0], later.kept[0])


def test_beams_know_their_pictures():
    net, images = zoo.model("llava"), [tiny.image(60, 44, seed=i) for i in range(3)]
    inputs = zoo.inputs("llava", images, TEXTS)
    with SparseVLM(0.2)(net) as run:
        net.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        assert [image.sample for image in run.images] == [0, 1, 2, 2, 3, 3]
        sizes = [sum(i.n_kept for i in run.images if i.sample == row) for row in range(4)]
        assert sizes == [len(kept) for kept in run.kept] == run.visual_counts[-1]


@pytest.mark.parametrize(
    "layers, after",
    [
        (4, [0, 1, 2]),
        (5, [1, 2, 3]),
        (24, [1, 4, 11]),
        (28, [2, 5, 13]),
        (32, [2, 6, 15]),
        (40, [3, 8, 19]),
    ],
)
def test_stages_lie_as_deep_in_any_model(layers, after):
    stages = SparseVLM(0.125).stages(layers)
    assert [i - 1 for i in stages] == after
    assert list(stages.values()) == pytest.approx([0.5, 0.25, 0.125])
    exact = SparseVLM(0.25, after_layers=(0, layers - 2)).stages(layers)
    assert exact == {1: pytest.approx(0.5), layers - 1: pytest.approx(0.25)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"after_layers": 3}, "after_layers=3: must be a tuple"),
        ({"after_layers": ()}, r"after_layers=\(\): must be a tuple"),
        ({"after_layers": (1, -1)}, "after_layers=-1: must be an integer of at least 0"),
        ({"after_layers": (2, 2)}, r"after_layers=\(2, 2\): must increase"),
        ({"recycle": 1}, "recycle=1: must be True or False"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseVLM(0.5, **arguments)


def test_what_cannot_be_done_is_refused():
    net = zoo.model("llava")
    with pytest.raises(ValueError, match=r"after_layers=\(1, 4\): must be below 4, the last of"):
        SparseVLM(0.5, after_layers=(1, 4))(net)
    with pytest.raises(ValueError, match="at least 4 layers; this model has 3"):
        SparseVLM(0.5)(tiny.model())
    with SparseVLM(0.5)(net), pytest.raises(ValueError, match="a prompt ends with its picture"):
        net(**asked("llava", "w1 <image>"))


@torch.no_grad()
def test_pictures_that_were_encoded_elsewhere_count_as_one_a_row():
    net, inputs = zoo.model("llava"), asked("llava")
    with SparseVLM(0.5)(net):
        expected = net(**inputs).logits
    with SparseVLM(0.5)(net) as run:
        found = net(**dict(fopru.pruned.whole(fopru.encode(net, inputs)))).logits
    assert torch.equal(found, expected)
    short = fopru.FoPru(0.5).prune(net, inputs)
    with SparseVLM(0.5)(net) as run:  # before the language model, then inside it
        net.generate(**short, max_new_tokens=2, do_sample=False)
    n = short.images[0].n_kept
    assert run.visual_counts[0] == [n] and run.visual_counts[-1][0] < n
