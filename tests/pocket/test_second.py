"""The second world: what training refuses, what it expects, and what is harder."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from making import build
from making.recipe import Recipe, Stage
from making.targets import Batches

import fopru
from fopru.pocket import scenes
from fopru.pocket.answers import legal
from fopru.pocket.objects import PAIRS, SHAPES
from fopru.pocket.papers import ITEMS
from fopru.pocket.second import (
    COMPANIONS,
    NEW_DIGITS,
    NEW_PAIRS,
    Bars,
    Busy,
    numbers,
    prices,
)

SECOND, NEW = (scenes.WORLDS[name] for name in ("second", "combinations"))


def together(scene):
    """What is combined in a picture: pairs of colour and shape, its numbers, items with prices."""
    truth = scene.truth()
    things = {(o["color"], o["shape"]) for o in truth.get("objects", ())}
    said = [sign["text"] for sign in truth.get("signs", ())]
    said += [bar["value"] for bar in truth.get("bars", ())]
    bought = {(ITEMS.index(line["item"]), int(line["price"])) for line in truth.get("lines", ())}
    return things, {*said, *(str(price) for _, price in bought)}, bought


def digits(text):
    return set(pairwise(text))


def test_what_is_kept_from_training_leaves_all_of_its_parts_in_it():
    assert len(NEW_PAIRS) == 12 and set(PAIRS) > NEW_PAIRS
    assert Counter(shape for _, shape in NEW_PAIRS) == dict.fromkeys(SHAPES, 2)
    assert max(Counter(color for color, _ in NEW_PAIRS).values()) == 2
    for place in (0, 1):
        assert sorted(pair[place] for pair in NEW_DIGITS) == [*"0123456789"]
    for item in range(len(ITEMS)):
        assert len(prices(item, True)) >= 6  # a receipt has up to six, all different
        assert not {*prices(item, True)} & {*prices(item, False)}
        assert {*prices(item, True), *prices(item, False)} == {*map(int, numbers(2, False))}
    for length in (2, 3):
        assert not {*numbers(length, True)} & {*numbers(length, False)}
        assert len(numbers(length, True)) + len(numbers(length, False)) == 9 * 10 ** (length - 1)
        assert all(digits(n) & NEW_DIGITS for n in numbers(length, True))


def test_training_refuses_the_combinations_in_pictures_and_in_questions(monkeypatch):
    """A pair that is only ever asked about where it is not would be learned as a no."""
    drawn, draw = [], scenes.scene
    monkeypatch.setattr(
        scenes, "scene", lambda *args, **given: drawn.append(draw(*args, **given)) or drawn[-1]
    )
    stages = (Stage("tower", 20, 8, 1e-3, few=0.5), Stage("answers", 50, 8, 1e-3, few=0.3))
    processor = build.processor(scenes.WORDS)
    batches = Batches(processor, Recipe(stages=stages))
    asked = []
    for step in range(len(batches)):
        asked += [processor.tokenizer.decode(row) for row in batches[step].text]
    assert len(drawn) == 8 * 70
    seen = Counter()
    for scene in drawn:
        things, said, bought = together(scene)
        assert not things & NEW_PAIRS
        assert not any(digits(number) & NEW_DIGITS for number in said)
        assert not any(price in prices(item, True) for item, price in bought)
        seen.update(things=len(things), numbers=len(said), prices=len(bought))
    assert min(seen.values()) > 200, seen
    pairs = re.findall(r"is there a (\w+) (\w+)", " ".join(asked))
    assert len(pairs) > 300 and not {*pairs} & NEW_PAIRS


def test_all_that_is_combined_in_the_other_world_is_new():
    for kind in NEW.kinds:
        for seed in range(40):
            things, said, bought = together(scenes.scene((7, seed), kind))
            assert things <= NEW_PAIRS
            assert bought or all(digits(number) & NEW_DIGITS for number in said)
            assert all(price in prices(item, True) for item, price in bought)


def test_companions_come_together():
    assert len(COMPANIONS) == 16 and not {*COMPANIONS} & NEW_PAIRS
    assert all(COMPANIONS[other] == one for one, other in COMPANIONS.items())
    beside, apart, count = 0, 0, 0
    for seed in range(400):
        (things, _, _) = together(scenes.scene((7, seed), Busy))
        for pair in COMPANIONS:
            if pair in things:
                beside += COMPANIONS[pair] in things
                count += 1
        apart += len(things) / len(PAIRS)
    assert beside / count > 3 * apart / 400


def test_training_asks_for_no_companion_that_is_absent(monkeypatch):
    ask = scenes.questions
    batches = Batches(build.processor(scenes.WORDS), Recipe(stages=(Stage("answers", 3, 8, 1e-3),)))
    assert all(batches[step].segments.any() for step in range(3))
    for variant, some in (("likely", False), ("random", True)):
        monkeypatch.setattr(
            scenes, "questions", lambda *args, v=variant: [q for q in ask(*args) if q.variant == v]
        )
        assert any(batches[step].segments.any() for step in range(3)) == some


def test_it_is_harder():
    busy = [scenes.scene((7, seed), Busy) for seed in range(60)]
    assert {len(scene.things) for scene in busy} == {3, 4, 5, 6, 7}
    assert min(t.radius for scene in busy for t in scene.things) < 8
    for scene in busy:
        assert {sign.color for sign in scene.signs} == {"white", "black"}
        assert all(len(sign.text) == len(sign.glyphs) == 3 for sign in scene.signs)
    assert {len(scenes.scene((7, seed), Bars).bars) for seed in range(60)} == {4, 5, 6}
    assert len(scenes.scene((7, 1), Busy, crowded=True, world="second").things) >= 7


def test_answers_follow_from_the_ground_truth_and_are_legal():
    rng = np.random.default_rng(0)
    for seed in range(60):
        for kind in (*SECOND.kinds, *NEW.kinds):
            scene = scenes.scene((8, seed), kind)
            names = [t.name for t in getattr(scene, "things", ())]
            for q in scenes.questions(scene, rng):
                assert q.answer in (q.choices or legal(q.task, q.variant)), q
                if q.task == "presence":
                    assert (q.answer == "yes") == (" ".join(q.text[:-1].split()[-2:]) in names)
                elif q.task == "reading":
                    (sign,) = (s for s in scene.signs if s.color == q.text.split()[5])
                    assert (q.answer, q.evidence) == (sign.text, sign.glyphs)
    assert len(legal("reading", "white")) == 900
    assert len(legal("reading", "sign")) == 90


@pytest.mark.parametrize("world", ["second", "combinations"])
def test_samples(world):
    examples = fopru.pocket.sample(n=60, seed=3, world=world)
    assert [e.id for e in fopru.pocket.sample(n=70, seed=3, world=world)][:60] == [
        e.id for e in examples
    ]
    assert {e.task for e in examples} <= {*scenes.WORLDS[world].tasks}
    assert len({e.task for e in examples}) >= 5
