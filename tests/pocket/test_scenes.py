import hashlib
from itertools import pairwise

import numpy as np
import pytest

import fopru
from fopru.pocket import scenes


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_a_seed_gives_the_same_scene_and_other_seeds_give_others():
    first, again, other = scenes.scene((1, 2)), scenes.scene((1, 2)), scenes.scene((1, 3))
    assert digest(first.image) == digest(again.image) != digest(other.image)
    assert first.truth() == again.truth()
    assert first.image.size == (scenes.SIZE, scenes.SIZE)


def test_things_stay_apart_and_inside():
    for seed in range(60):
        scene = scenes.scene(seed)
        boxes = [scene.sign.box, *(thing.box for thing in scene.things)]
        assert 2 <= len(scene.things) <= 5
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            assert 0 <= x0 < x1 <= scenes.SIZE
            assert 0 <= y0 < y1 <= scenes.SIZE
            for a, b, c, d in boxes[:i]:
                assert x1 <= a or c <= x0 or y1 <= b or d <= y0


def test_boxes_hold_the_pixels_of_their_things():
    for seed in range(30):
        scene = scenes.scene(seed)
        pixels = np.asarray(scene.image).astype(int)
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            color = np.array(scenes.COLORS[thing.color])
            same = (np.abs(pixels[y0:y1, x0:x1] - color).sum(-1) == 0).mean()
            assert same > 0.2, thing
        for x0, y0, x1, y1 in scene.sign.glyphs:
            assert np.ptp(pixels[y0:y1, x0:x1].sum(-1)) > 300  # ink on board


def test_answers_follow_from_the_ground_truth():
    rng = np.random.default_rng(0)
    counts = {"yes": 0, "no": 0}
    for seed in range(80):
        scene = scenes.scene(seed)
        names = [thing.name for thing in scene.things]
        for q in scenes.questions(scene, rng):
            words = q.text.rstrip("?").split()
            if q.task == "presence":
                counts[q.answer] += 1
                assert (q.answer == "yes") == (" ".join(words[-2:]) in names)
                assert len(q.evidence) == names.count(" ".join(words[-2:]))
            elif q.task == "reading":
                assert q.answer == scene.sign.text
            elif q.task == "counting":
                assert q.answer == str(len(q.evidence))
            elif q.text.startswith("what color"):
                assert [t.color for t in scene.things if t.shape == words[-1]] == [q.answer]
            elif q.text.startswith("what shape"):
                assert [t.shape for t in scene.things if t.color == words[-2]] == [q.answer]
    assert counts["yes"] == counts["no"]


def test_the_vocabulary_holds_every_word():
    rng = np.random.default_rng(0)
    known = {*scenes.WORDS, *"0123456789"}
    for seed in range(100):
        for q in scenes.questions(scenes.scene(seed), rng):
            for word in f"{q.text.rstrip('?')} {q.answer}".split():
                assert word in known or word.isdigit(), word


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
    assert {e.task for e in fopru.pocket.sample(n=40)} == set(scenes.TASKS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "poetry"}, "task='poetry': must be one of 'presence', 'attributes'"),
        ({"n": -1}, "n=-1: must not be negative"),
        ({"seed": -1}, "seed=-1: must not be negative"),
    ],
)
def test_bad_samples(arguments, message):
    with pytest.raises(ValueError, match=message):
        fopru.pocket.sample(**arguments)
