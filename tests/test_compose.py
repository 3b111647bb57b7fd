"""Methods that are put together, against brute force in float64, written here from the rules."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
import zoo
from test_generic import TYPES
from test_methods import NoFloat64, kept, picture, pruned_image, tied
from test_pruner import SIZES, TEXTS
from test_zoo import WHOLE
from torch.utils._pytree import tree_map

import fopru
from fopru import MMR, Adaptive, Cells, Compose, Halves, Holds, MaxMin, Top, picking
from fopru.adaptive import factor
from fopru.encoding import Tap
from fopru.evaluation import Example
from fopru.evaluation.asking import inputs_of
from fopru.families import Family, Grid, View

HEIGHT, WIDTH = 6, 8
N = HEIGHT * WIDTH
KS = [1, 2, 5, 17, 33, 47]
RECEIVED = fopru.FoPru(axis="received")
PICKS = [Top(), Cells(), Cells(0.5), MaxMin(), Halves(), MMR()]


def noise(seed=0):
    return picture(seed, HEIGHT, WIDTH)


def composed(pick, **arguments):
    return Compose(scorer=RECEIVED, pick=pick, **arguments)


def scores_of(image):
    return image.tap("received").double().tolist()


def cosines(image):
    points = F.normalize(image.features.double(), dim=1)
    return (points @ points.T).tolist()


def best_first(scores):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


# Selectors


def grown(chosen, k, value):
    """Add the place of largest value until there are k."""
    while len(chosen) < k:
        rest = [i for i in range(N) if i not in chosen]
        chosen.append(max(rest, key=lambda i: value(i, chosen)))
    return sorted(chosen)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_halves(share, k):
    image = noise(k)
    alike, best = cosines(image), best_first(scores_of(image))
    chosen = best[: max(1, math.floor(k * share))]
    expected = grown(chosen, k, lambda i, chosen: -max(alike[i][j] for j in chosen))
    assert kept(composed(Halves(share), tokens=k), image).tolist() == expected


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 0.8])
def test_mmr(balance, k):
    image = noise(k)
    alike, scores = cosines(image), scores_of(image)
    low, high = min(scores), max(scores)

    def value(i, chosen):
        score = (scores[i] - low) / (high - low)
        return balance * score - (1 - balance) * max(alike[i][j] for j in chosen)

    expected = grown([best_first(scores)[0]], k, value)
    assert kept(composed(MMR(balance), tokens=k), image).tolist() == expected


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("newline", [False, True])
def test_cells(newline, share, k):
    grid = Grid((View(HEIGHT, WIDTH - newline, newline=newline),))
    image = replace(noise(k), grid=grid)
    scores = scores_of(image)
    high, wide = picking.lattice(HEIGHT, WIDTH, max(1, math.floor(k * share)))
    assert high * wide <= k
    cells = {}
    for i in best_first(scores):
        cell = i // WIDTH * high // HEIGHT, i % WIDTH * wide // WIDTH
        cells.setdefault(cell, i)
    assert len(cells) == high * wide
    chosen = list(cells.values())
    chosen += [i for i in best_first(scores) if i not in chosen][: k - len(chosen)]
    assert kept(composed(Cells(share), tokens=k), image).tolist() == sorted(chosen)


@pytest.mark.parametrize("k", KS)
def test_what_equals_what(k):
    image = noise(k)
    scorer = kept(replace(RECEIVED, tokens=k), image)
    for pick in (Top(), Halves(1), MMR(1.0), Cells(1e-9)):
        assert torch.equal(kept(composed(pick, tokens=k), image), scorer)
    diverse = kept(fopru.DivPrune(tokens=k), image)
    assert torch.equal(kept(composed(MaxMin(), tokens=k), image), diverse)
    assert torch.equal(kept(Compose(tokens=k, pick=MaxMin()), image), diverse)


@pytest.mark.parametrize("pick", PICKS)
def test_ties_go_to_the_lower_index(pick):
    image = tied(constant=True)
    expected = range(40)
    if isinstance(pick, Cells):  # the first of each cell, and the first of the rest
        high, wide = picking.lattice(24, 24, picking.floor_share(40, pick.share))
        firsts = {
            (-(-a * 24 // high)) * 24 + -(-b * 24 // wide) for a in range(high) for b in range(wide)
        }
        rest = [i for i in range(576) if i not in firsts]
        expected = sorted([*firsts, *rest[: 40 - len(firsts)]])
    assert kept(composed(pick, tokens=40), image).tolist() == list(expected)


@pytest.mark.parametrize("budget", [fopru.Share(), Holds()])
@pytest.mark.parametrize("pick", PICKS)
def test_the_last_bit_picks_nothing(monkeypatch, pick, budget):
    """Neither the number of threads, nor the size of a product, nor noise in the last bit."""
    image, pruner = tied(), composed(pick, budget=budget)
    expected = kept(pruner, image)
    draw, threads = torch.Generator().manual_seed(1), torch.get_num_threads()
    try:
        for number, block, held in ((2, 2**22, 2**24), (1, 5000, 0)):
            torch.set_num_threads(number)
            monkeypatch.setattr(picking, "BLOCK_ELEMENTS", block)
            monkeypatch.setattr(picking, "HELD_ELEMENTS", held)
            noisy = image.tap("received") * (1 + 2e-7 * torch.rand(576, generator=draw))
            found = kept(pruner, replace(image, learned={**image.learned, READ: noisy}))
            assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(threads)


READ = Tap(2, "received")


@torch.no_grad()
@pytest.mark.parametrize("budget", [Holds(), Adaptive("rank", (((48, 9.0),),))])
@pytest.mark.parametrize("pick", [Cells(), Halves(), MMR()])
def test_no_float64_on_a_gpu_that_has_none(pick, budget):
    image = noise(3)
    pruner = composed(pick, budget=budget, retention=0.3)
    expected = kept(pruner, image)

    def moved(tensor):
        tensor = tensor.clone()
        tensor.gpu = True
        return tensor

    there = replace(
        image, features=moved(image.features), learned=tree_map(moved, dict(image.learned))
    )
    with NoFloat64():
        assert torch.equal(kept(pruner, there), expected)


# Budgets


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_holds_is_the_smallest_number_that_holds_the_share(seed, share):
    image = noise(seed)
    image.learned[READ] = image.tap("received") ** 4
    scores = sorted(scores_of(image), reverse=True)
    k = next(k for k in range(1, N + 1) if math.fsum(scores[:k]) >= share * math.fsum(scores))
    for pick in PICKS:
        pruner = composed(pick, budget=Holds(), retention=share)
        assert pruner.budgets_of(image) == [k]
        assert torch.equal(kept(pruner, image), kept(composed(pick, tokens=k), image))


def test_holds_of_equal_scores_is_their_share_and_1_is_all():
    image = noise()
    image.learned[READ] = torch.full((N,), 0.1)
    for k in range(1, N + 1):
        assert composed(Top(), budget=Holds(), retention=k / N).budgets_of(image) == [k]
    image.learned[READ] = F.one_hot(torch.tensor(7), N).float()
    assert kept(composed(Top(), budget=Holds(), retention=0.999), image).tolist() == [7]
    assert kept(composed(Top(), budget=Holds(), retention=1), image).tolist() == list(range(N))


@pytest.mark.parametrize("scores", [torch.zeros(N), torch.linspace(-1e-3, 1, N)])
@pytest.mark.parametrize("budget", [Holds(), Adaptive("entropy", (((48, 9.0),),))])
def test_significance_that_has_no_shares_is_refused(budget, scores):
    image = noise()
    image.learned[READ] = scores
    with pytest.raises(ValueError, match="scores of at least 0 that are not all 0; here they lie"):
        kept(composed(Top(), budget=budget), image)


def spent(pictures, scale):
    """The mean share that pictures keep, and the largest step that one token is in it."""
    shares = [
        sum(min(n, max(1, math.floor(scale * m + 0.5))) for n, m in picture)
        / sum(n for n, _ in picture)
        for picture in pictures
    ]
    return math.fsum(shares) / len(shares)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.1, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["one size", "sizes", "views", "one", "equal"])
def test_the_factor_spends_the_promised_mean(kind, share):
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(20, 400, (30, 3), generator=draw).tolist()
    measures = (1 + 30 * torch.rand(30, 3, generator=draw)).double().tolist()
    pictures = tuple(
        tuple(
            (100 if kind in ("one size", "equal") else n, 7.3 if kind == "equal" else m)
            for n, m in list(zip(row, values, strict=True))[: 3 if kind == "views" else 1]
        )
        for row, values in zip(sizes, measures, strict=True)
    )[: 1 if kind == "one" else 30]
    least = spent(pictures, 0)  # a token of each view stays in any case
    scale, largest = factor(pictures, share), max(1 / sum(n for n, _ in p) for p in pictures)
    off = abs(spent(pictures, scale) - max(share, least))
    assert off <= largest / 2 + 1e-9
    if kind in ("one size", "sizes", "views"):  # with many pictures one token is little of the mean
        assert off <= largest / 10
    for noise in (1 - 1e-6, 1 + 1e-6):  # between two steps, where rounding changes nothing
        assert spent(pictures, scale * noise) == spent(pictures, scale)


def kept_shares(model, processor, pruners, examples):
    """The share that each pruner keeps of each picture: a list for each pruner."""
    shares = [[] for _ in pruners]
    for e in examples:
        inputs = inputs_of(processor, [e])
        encoded = fopru.encode(model, inputs, pruners)
        for pruner, found in zip(pruners, shares, strict=True):
            images = pruner.compact(encoded).images
            found.append(sum(i.n_kept for i in images) / sum(i.n_full for i in images))
    return shares


def validation(n):
    """A question about each of n pictures, of all tasks."""
    pictures = {}
    for e in fopru.pocket.benchmark("validation"):
        pictures.setdefault(id(e.image), e)
    found = list(pictures.values())
    return found[:: len(found) // n][:n]


@pytest.mark.parametrize(
    "n, by",
    [
        (12, "rank"),
        (12, "entropy"),
        pytest.param(60, "rank", marks=pytest.mark.slow),
        pytest.param(60, "entropy", marks=pytest.mark.slow),
    ],
)
def test_adaptive_retention_spends_the_promised_mean(n, by):
    model, processor = fopru.load("pocket")
    examples = validation(n)
    pruner = Compose(scorer=RECEIVED, budget=Adaptive(by), retention=0.25)
    pruner = fopru.calibrate(model, processor, examples, pruner)
    measures = [measure for ((_, measure),) in pruner.budget.pictures]
    retentions = (0.05, 0.1, 0.25, 0.5)
    pruners = [replace(pruner, retention=retention) for retention in retentions]
    found = kept_shares(model, processor, pruners, examples)
    for retention, shares in zip(retentions, found, strict=True):
        assert abs(sum(shares) / n - retention) <= 0.5 / 256
        assert max(shares) - min(shares) > 0.1 * retention  # it adapts
        assert [shares[i] for i in sorted(range(n), key=measures.__getitem__)] == sorted(shares)


def test_the_measures_by_hand():
    image = noise()
    values = torch.linalg.svdvals(F.normalize(image.features.double(), dim=1)).tolist()
    parts = [value / math.fsum(values) for value in values]
    rank = math.exp(-math.fsum(p * math.log(p) for p in parts if p))
    assert Adaptive("rank").measure(image) == pytest.approx(rank)
    scores = scores_of(image)
    parts = [score / math.fsum(scores) for score in scores]
    entropy = math.exp(-math.fsum(p * math.log(p) for p in parts))
    (scored,) = composed(Top()).scored(image)
    assert Adaptive("entropy").measure(scored) == pytest.approx(entropy)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_calibration_of_several_views_and_of_methods_that_read_the_question(family):
    model, processor = tiny.model(family), tiny.processor(family)
    images = [tiny.image(*size, seed=seed) for seed, size in enumerate([(64, 40), (90, 30)])]
    examples = [
        Example(f"q{i}", "t", images[i // 2], f"w{i} w{i + 5}", "w7", scene={"image_id": i // 2})
        for i in range(4)
    ]
    for scorer, count in ((RECEIVED, 2), (fopru.CDPruner(), 4)):  # 2 questions on each picture
        pruner = Compose(0.3, scorer=scorer, pick=Halves(), budget=Adaptive("entropy"))
        pruner = fopru.calibrate(model, processor, examples, pruner)
        assert len(pruner.budget.pictures) == 4
        assert len(set(pruner.budget.pictures)) == count
        (shares,) = kept_shares(model, processor, [pruner], examples)
        assert sum(shares) / 4 == pytest.approx(
            spent(pruner.budget.pictures, factor(pruner.budget.pictures, 0.3))
        )
        assert abs(sum(shares) / 4 - 0.3) < 0.02


# Models


@pytest.mark.parametrize(
    "family",
    [f if f in WHOLE else pytest.param(f, marks=pytest.mark.slow) for f in zoo.EVERY],
)
def test_every_type(family):
    model = zoo.model(family)
    images = [tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES)]
    inputs = zoo.inputs(family, images, TEXTS)
    scorer = RECEIVED if family in zoo.FAMILIES else fopru.CDPruner()
    pruners = [Compose(0.3, scorer=scorer, pick=pick) for pick in PICKS]
    pruners.append(Compose(0.6, scorer=scorer, pick=Halves(), budget=Holds()))
    for pruner in pruners:
        with torch.no_grad(), pruner(model) as session:
            assert model(**inputs).logits.isfinite().all()
        for image in session.last.images:
            assert torch.equal(image.kept, image.kept.unique())
            if pruner.fixed_k:
                assert image.n_kept == pruner.n_keep(image.grid)
            else:
                assert 0 < image.n_kept < image.n_full
        found = [image.kept for image in session.last.images]
        if pruner.pick in (Top(), MaxMin()) and scorer is RECEIVED:
            same = scorer if pruner.pick == Top() else fopru.DivPrune()
            expected = replace(same, retention=0.3).prune(model, inputs).images
            assert all(torch.equal(k, i.kept) for k, i in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:fopru has no adapter")
def test_cells_want_to_know_where_tokens_sit():
    model = zoo.model(TYPES[0])
    with pytest.raises(fopru.UnsupportedModelError, match="where in the picture a token sits"):
        Compose(scorer=fopru.CDPruner(), pick=Cells()).taps(Family.of(model))


def test_frames_of_a_clip_share_a_budget():
    model, inputs = zoo.model("llava_onevision"), zoo.video("llava_onevision")
    for budget in (fopru.Share(), Holds()):
        pruner = Compose(0.4, scorer=fopru.EVS(), pick=Halves(0.9), budget=budget, per="clip")
        (image,) = pruner.prune(model, inputs).images
        first = image.grid.views[0].n_tokens
        assert set(range(first)) & set(image.kept.tolist())
        assert image.n_kept < image.n_full
    with pytest.raises(ValueError, match="per='view': must be one of 'clip'"):
        Compose(scorer=fopru.EVS())
    with pytest.raises(ValueError, match="per='clip': must be one of 'view'"):
        Compose(scorer=RECEIVED, pick=Cells(), per="clip")


def test_tables():
    pruner = Compose(scorer=RECEIVED, pick=MMR(0.3), budget=Holds())
    assert pruner.label == (
        "Compose, scorer=(fopru, axis=received), pick=MMR(balance=0.3), budget=Holds()"
    )
    assert Compose(scorer=fopru.FoPru(), weights="mass").label == "Compose-mass, scorer=fopru"
    measured = Compose(pick=MaxMin(), budget=Adaptive(pictures=(((48, 9.0),),)))
    assert measured.label == "Compose, pick=MaxMin(), budget=Adaptive(by='rank')"
    assert (measured.asks, measured.needs) == (False, frozenset())
    assert Compose(scorer=fopru.CDPruner()).asks
    images = [tiny.image(40, 40, seed) for seed in range(2)]
    examples = [Example(f"q{i}", "t", images[i], f"w{i} w7", "w7") for i in range(2)]
    model, processor = tiny.model(), tiny.processor()
    budgets = [0.8, 0.3]
    table = fopru.evaluate(model, processor, examples, [pruner, "cluster-mean"], budgets)
    wanted = [
        pruned.images[0].n_kept
        for e in examples
        for share in budgets
        for inputs in [inputs_of(processor, [e])]
        for pruned in [replace(pruner, retention=share).prune(model, inputs)]
    ]
    assert table[table.method == pruner.label].kept.tolist() == wanted
    with pytest.raises(ValueError, match=r"tokens=9: with budget=Holds\(\) the picture says"):
        fopru.evaluate(model, processor, examples, [pruner], tokens=[9])


# What is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, r"scorer=None: Top\(\) reads scores; give a pruner"),
        ({"pick": MaxMin(), "budget": Holds()}, r"scorer=None: Holds\(\) reads scores"),
        (
            {"pick": MaxMin(), "budget": Adaptive("entropy")},
            r"scorer=None: Adaptive\(by='entropy'\) reads scores",
        ),
        ({"scorer": "fopru"}, "scorer='fopru': must be a pruner, such as"),
        ({"scorer": fopru.FoPru}, "scorer=<class .*must be a pruner, such as"),
        ({"scorer": fopru.Random()}, "scorer='random': this method has no score"),
        ({"scorer": fopru.DivPrune()}, "scorer='divprune': this method has no score"),
        ({"scorer": composed(Top())}, "scorer='Compose': this method has no score of its own"),
        ({"scorer": fopru.ToMe()}, "scorer='tome': must be a method that selects"),
        ({"scorer": fopru.VisionZip()}, "scorer='visionzip': must be a method that selects"),
        ({"scorer": fopru.FastV()}, "scorer='fastv': .* drops them inside it"),
        ({"scorer": fopru.FoPru(0.5)}, "scorer='fopru' has retention=0.5, which would count"),
        ({"scorer": fopru.FoPru(tokens=5)}, "scorer='fopru' has tokens=5"),
        ({"scorer": fopru.FoPru(weights="mass")}, "scorer='fopru' has weights='mass'"),
        ({"scorer": fopru.FoPru(per="clip")}, "scorer='fopru' has per='clip'"),
        ({"pick": "top"}, r"pick='top': must be a Pick, such as Top\(\)"),
        ({"pick": MMR}, "pick=<class .*: must be a Pick"),
        ({"budget": 0.8}, r"budget=0.8: must be a Budget, such as Share\(\)"),
        ({"budget": Holds(), "tokens": 9}, r"tokens=9: with budget=Holds\(\) the picture says"),
        ({"budget": Adaptive(), "tokens": 9}, r"tokens=9: with budget=Adaptive\(by='rank'\)"),
        ({"budget": Holds(), "retention": 0}, r"retention=0: must be a number in \(0, 1\]"),
        ({"budget": Holds(), "retention": 1.1}, r"retention=1.1: must be a number in \(0, 1\]"),
        ({"layer": 2}, "layer=2: give it to the scorer"),
    ],
)
def test_refusals(arguments, message):
    scorer = {} if arguments.get("pick") == MaxMin() or not arguments else {"scorer": RECEIVED}
    with pytest.raises(ValueError, match=message):
        Compose(**{**scorer, **arguments})


@pytest.mark.parametrize(
    "kind, value, message",
    [
        (Cells, 0, r"share=0: must be a number in \(0, 1\]"),
        (Halves, 1.5, r"share=1.5: must be a number in \(0, 1\]"),
        (MMR, -0.1, r"balance=-0.1: must be a number in \[0, 1\]"),
        (Adaptive, "size", "by='size': must be one of 'rank', 'entropy'"),
    ],
)
def test_arguments_of_the_parts(kind, value, message):
    with pytest.raises(ValueError, match=message):
        kind(value)


def test_budgets_that_depend_on_the_picture_say_so():
    grid = Grid((View(HEIGHT, WIDTH),))
    with pytest.raises(ValueError, match=r"Holds\(\): how many tokens are kept depends on the p"):
        composed(Top(), budget=Holds()).n_keep(grid)
    with pytest.raises(ValueError, match="how many tokens are kept depends on the picture"):
        composed(Top(), budget=Holds(), retention=1).budgets(grid)
    pruner = composed(Top(), budget=Adaptive())
    with pytest.raises(ValueError, match=r"rank'\): what the mean is taken over is not known; use"):
        kept(pruner, noise())
    model, processor = tiny.model(), tiny.processor()
    with pytest.raises(ValueError, match=r"examples=\[\]: there is no picture to measure"):
        fopru.calibrate(model, processor, [], pruner)
    with pytest.raises(ValueError, match="examples: 'a.png' is no fopru.evaluation.Example"):
        fopru.calibrate(model, processor, ["a.png"], pruner)
    for other in (RECEIVED, composed(Top())):
        with pytest.raises(ValueError, match="must be a fopru.Compose with an Adaptive budget"):
            fopru.calibrate(model, processor, [], other)


def test_parts_of_ones_own_in_a_few_lines():
    class First(fopru.Pick):
        scored = False

        def select(self, image, k):
            return torch.arange(k)

    assert kept(Compose(tokens=5, pick=First()), noise()).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(NotImplementedError, match="Pick must override `select`"):
        kept(composed(fopru.Pick()), noise())


# Averages of clusters


@pytest.mark.parametrize("k", KS)
def test_cluster_mean(k):
    image = noise(k)
    alike, centres = cosines(image), kept(fopru.DivPrune(tokens=k), image).tolist()
    members = {c: [c] for c in centres}
    for i in sorted(set(range(N)) - set(centres)):
        members[max(centres, key=lambda c: alike[i][c])].append(i)
    pruned, features = pruned_image(fopru.ClusterMean(tokens=k, weights="mass"), image)
    assert pruned.kept.tolist() == centres
    means = torch.stack([image.features[members[c]].double().mean(0) for c in centres])
    torch.testing.assert_close(features.double(), means, atol=1e-6, rtol=0)
    assert [sorted(members[c]) for c in centres] == [s.tolist() for s in pruned.sources]
    assert pruned.mass.tolist() == [len(members[c]) for c in centres]
