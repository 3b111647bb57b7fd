import hashlib
from itertools import pairwise

import numpy as np
import pytest

import fopru
from fopru.pocket import scenes
from fopru.pocket.diagrams import Diagram
from fopru.pocket.drawing import COLORS, SIZE
from fopru.pocket.objects import FACTS, POPULAR, SHAPES, Objects
from fopru.pocket.papers import Chart, Receipt
from fopru.pocket.second import Busy

KINDS = [kind for world in scenes.WORLDS.values() for kind in world.kinds]


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def boxes_of(scene):
    for kind, boxes in {
        Objects: lambda: [scene.sign.box, *(t.box for t in scene.things)],
        Busy: lambda: [part.box for part in (*scene.signs, *scene.things)],
        Receipt: lambda: [box for line in scene.lines for box in line.boxes],
        Diagram: lambda: list(scene.boxes.values()),
        Chart: lambda: [b.box for b in scene.bars] + [g for b in scene.bars for g in b.glyphs],
    }.items():
        if isinstance(scene, kind):
            return boxes()
    raise AssertionError(type(scene))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_seed_gives_the_same_scene_and_other_seeds_give_others(kind):
    first, again, other = (scenes.scene(seed, kind) for seed in ((1, 2), (1, 2), (1, 3)))
    assert digest(first.image) == digest(again.image) != digest(other.image)
    assert first.truth() == again.truth() != other.truth()
    assert first.image.size == (SIZE, SIZE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_drawn_stays_apart_and_inside(kind):
    for seed in range(60):
        boxes = boxes_of(scenes.scene(seed, kind))
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            for a, b, c, d in boxes[:i]:
                assert x1 <= a or c <= x0 or y1 <= b or d <= y0


def test_boxes_hold_the_pixels_of_what_is_there():
    for seed in range(30):
        scene = scenes.scene(seed, Objects)
        pixels = np.asarray(scene.image).astype(int)
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            color = np.array(COLORS[thing.color])
            same = (np.abs(pixels[y0:y1, x0:x1] - color).sum(-1) == 0).mean()
            assert same > 0.2, thing
        receipt, chart = scenes.scene(seed, Receipt), scenes.scene(seed, Chart)
        glyphs = [(scene, g) for g in scene.sign.glyphs]
        glyphs += [(receipt, g) for line in receipt.lines for g in (line.item_box, *line.glyphs)]
        glyphs += [(chart, g) for bar in chart.bars for g in bar.glyphs]
        for drawn, (x0, y0, x1, y1) in glyphs:
            ink = np.asarray(drawn.image).astype(int)[y0:y1, x0:x1].sum(-1)
            assert np.ptp(ink) > 300  # ink on paper
        for bar in chart.bars:
            x0, y0, x1, y1 = bar.box
            inner = np.asarray(chart.image)[y0 + 1 : y1 - 2, x0 + 1 : x1 - 2]
            assert (inner == COLORS[bar.color]).all()


def test_bars_are_as_high_as_their_values():
    for seed in range(30):
        bars = sorted(scenes.scene(seed, Chart).bars, key=lambda bar: int(bar.value))
        heights = [bar.box[3] - bar.box[1] for bar in bars]
        assert all(low < high for low, high in pairwise(heights))


def test_arrows_do_not_cross_and_leave_each_box_once():
    for seed in range(200):
        scene = scenes.scene(seed, Diagram)
        assert len(scene.arrows) >= 2
        sources = [a.source for a in scene.arrows]
        assert len(set(sources)) == len(sources)
        pairs = {frozenset((a.source, a.target)) for a in scene.arrows}
        assert len(pairs) == len(sources)
        for i, one in enumerate(scene.arrows):
            for other in scene.arrows[:i]:
                assert not crossing(one, other), (seed, one, other)


def crossing(one, other):
    def side(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    a, b, c, d = one.start, one.end, other.start, other.end
    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def test_answers_follow_from_the_ground_truth():
    rng = np.random.default_rng(0)
    counts = {"yes": 0, "no": 0}
    for seed in range(80):
        scene = scenes.scene(seed, Objects)
        names = [thing.name for thing in scene.things]
        for q in scenes.questions(scene, rng):
            words = q.text.rstrip("?").split()
            if q.task == "presence":
                counts[q.answer] += 1
                pair = tuple(words[-2:])
                assert (q.answer == "yes") == (" ".join(pair) in names)
                assert len(q.evidence) == names.count(" ".join(pair))
                if q.variant == "popular":
                    assert pair in POPULAR
                if q.variant == "adversarial":
                    assert any(pair[0] in name for name in names)
                    assert any(pair[1] in name for name in names)
            elif q.task == "reading":
                assert q.answer == scene.sign.text
            elif q.task == "counting":
                assert q.answer == str(len(q.evidence))
            elif q.task == "knowledge":
                assert q.answer in q.choices
                assert len(set(q.choices)) == 3
                if q.variant == "fact":
                    group = next(k for k in FACTS if k in q.text)
                    assert [c for c in q.choices if c in FACTS[group]] == [q.answer]
                elif q.variant == "number":
                    assert q.answer == max(q.choices, key=int)
                else:
                    shapes = {t.shape for t in scene.things}
                    assert [c for c in q.choices if c in shapes] == [q.answer]
            elif q.variant == "color":
                assert [t.color for t in scene.things if t.shape == words[-1]] == [q.answer]
            elif q.variant == "shape":
                assert [t.shape for t in scene.things if t.color == words[-2]] == [q.answer]
    assert counts["yes"] == counts["no"]


def test_answers_about_papers_follow_from_the_ground_truth():
    rng = np.random.default_rng(0)
    for seed in range(60):
        for kind in (Receipt, Diagram, Chart):
            scene = scenes.scene(seed, kind)
            for q in scenes.questions(scene, rng):
                words = q.text.split("?")[0].split()
                if kind is Receipt:
                    prices = {line.item: line.price for line in scene.lines}
                    pair = (words[-1], q.answer) if q.variant == "price" else (q.answer, words[-1])
                    assert prices[pair[0]] == pair[1]
                elif kind is Diagram:
                    pair = (words[2], q.answer) if q.variant == "target" else (q.answer, words[-1])
                    assert pair in {(a.source, a.target) for a in scene.arrows}
                    for choice in set(q.choices) - {q.answer}:
                        wrong = (pair[0], choice) if q.variant == "target" else (choice, pair[1])
                        assert wrong not in {(a.source, a.target) for a in scene.arrows}
                else:
                    values = {bar.color: int(bar.value) for bar in scene.bars}
                    if q.variant == "value":
                        assert str(values[words[-2]]) == q.answer
                    else:
                        best = max if q.variant == "highest" else min
                        assert q.answer == best(values, key=values.get)


def test_the_vocabulary_holds_every_word():
    rng = np.random.default_rng(0)
    known = {*scenes.WORDS, *"0123456789"}
    for seed in range(200):
        scene = scenes.scene(seed)
        said = [f"{q.text} {q.answer}" for q in scenes.questions(scene, rng)]
        for text in (*said, scene.caption, scenes.CAPTION):
            for word in text.replace("?", " ").replace(",", " ").split():
                assert word in known or word.isdigit(), word


def test_no_thing_is_so_common_that_it_need_not_be_looked_for():
    things = [t.name for i in range(300) for t in scenes.scene((9, i), Objects).things]
    shares = [things.count(name) / len(things) for name in set(things)]
    assert max(shares) < 0.12
    assert {name.split()[1] for name in things} == set(SHAPES)


def test_samples():
    examples = fopru.pocket.sample("counting", n=7, seed=3)
    assert [e.id for e in fopru.pocket.sample("counting", n=9, seed=3)][:7] == [
        e.id for e in examples
    ]
    assert {e.task for e in examples} == {"counting"}
    assert all(
        a.image is b.image
        for a, b in pairwise(examples)
        if a.scene["image_id"] == b.scene["image_id"]
    )
    assert len({e.scene["image_id"] for e in examples}) == 3
    assert {e.task for e in fopru.pocket.sample(n=100)} == set(scenes.TASKS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "poetry"}, "task='poetry': must be one of 'presence', 'attributes'"),
        ({"world": "third"}, "world='third': must be one of 'first', 'second', 'combinations'"),
        ({"task": "counting", "world": "combinations"}, "task='counting': must be one of 'pres"),
        ({"n": -1}, "n=-1: must be an integer of at least 0"),
        ({"n": 2.5}, "n=2.5: must be an integer of at least 0"),
        ({"seed": -1}, "seed=-1: must be an integer of at least 0"),
        ({"seed": "1"}, "seed='1': must be an integer"),
    ],
)
def test_bad_samples(arguments, message):
    with pytest.raises(ValueError, match=message):
        fopru.pocket.sample(**arguments)
