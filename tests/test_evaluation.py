import re
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import zoo
from PIL import Image
from transformers import CLIPImageProcessorPil

import fopru
from fopru.applying import cache_name
from fopru.evaluation import Example, answer, controls, evaluate, statistics
from fopru.evaluation.asking import answer_ids, generate, inputs_of
from fopru.evaluation.evidence import cover, frame
from fopru.evaluation.metrics import METRICS, Metric, f1
from fopru.families import Grid, View
from fopru.methods import FastV


def examples(n=5):
    """Questions on three pictures; the right answers are words that the model might say."""
    images = [tiny.image(40, 40, seed) for seed in range(3)]
    return [
        Example(
            f"q{i}",
            ("reading", "counting")[i % 2],
            images[i // 2],
            f"w{i} w{i + 5}",
            "w7 w9"[: 2 + 3 * (i % 2)],
            evidence=((0, 0, 20, 10),) if i else (),
            scene={"image_id": str(i // 2)},
        )
        for i in range(n)
    ]


def test_the_frame_is_what_the_processor_cuts_out():
    """A picture that is red inside the frame and blue outside of it comes out all red."""
    processor = tiny.processor()
    for width, height in ((100, 50), (50, 100), (640, 480), (64, 64)):
        x0, y0, x1, y1 = frame(Image.new("RGB", (width, height)), processor)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 2] = 255
        pixels[round(y0) : round(y1), round(x0) : round(x1)] = (255, 0, 0)
        seen = processor.image_processor(
            Image.fromarray(pixels), return_tensors="np", do_normalize=False, resample=0
        )["pixel_values"][0]
        assert seen[0].mean() > 0.97
        assert (x1 - x0) == pytest.approx(min(width, height))


def test_processors_with_tiles_or_a_fixed_size_see_the_whole_picture():
    image = tiny.image(100, 50)
    assert frame(image, tiny.processor("llava_next")) == (0, 0, 100, 50)
    processor = tiny.processor()
    processor.image_processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False
    )
    assert frame(image, processor) == (0, 0, 100, 50)
    processor.image_processor = zoo.image_processor("mistral3")  # pads the pictures of a batch
    assert frame(image, processor) == (0, 0, 100, 50)


def test_cover_is_the_share_of_each_patch_under_the_boxes():
    grid = Grid((View(2, 4),))
    share = cover(grid, (0, 0, 80, 40), [(10, 0, 30, 40), (70, 30, 200, 90)])
    expected = [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0.25]]
    torch.testing.assert_close(share.view(2, 4), torch.tensor(expected, dtype=torch.float64))
    with_newlines = cover(Grid((View(2, 4, newline=True),)), (0, 0, 80, 40), [(0, 0, 80, 40)])
    assert with_newlines.view(2, 5).tolist() == [[1, 1, 1, 1, 0]] * 2
    cropped = cover(Grid((View(1, 2),)), (20, 0, 60, 40), [(0, 0, 30, 40)])
    assert cropped.tolist() == [0.5, 0]


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("positions", ["reindex", "preserve"])
def test_evaluate_says_what_pruned_generation_says(family, positions):
    model, processor = tiny.model(family), tiny.processor(family)
    asked = examples()
    # half of the right answers are what the model says with all tokens
    said = list(answer(model, processor, asked, max_new_tokens=2))
    asked = [
        Example(e.id, e.task, e.image, e.question, s if i % 2 else e.answer, scene=e.scene)
        for i, (e, s) in enumerate(zip(asked, said, strict=True))
    ]
    found = evaluate(
        model,
        processor,
        asked,
        ("fopru", "random"),
        (0.5,),
        positions,
        seeds=(0, 3),
        max_new_tokens=2,
    )
    assert len(found) == len(asked) * 4
    runs = {
        ("full", 1.0, 0): fopru.FoPru(1.0),
        ("fopru", 0.5, 0): fopru.FoPru(0.5, positions=positions),
        ("random", 0.5, 0): fopru.Random(0.5, positions=positions),
        ("random", 0.5, 3): fopru.Random(0.5, seed=3, positions=positions),
    }
    for (method, retention, seed), pruner in runs.items():
        rows = found[(found.method == method) & (found.seed == seed)]
        with pruner(model):
            expected = list(answer(model, processor, asked, max_new_tokens=2))
        assert rows.prediction.tolist() == expected, method
        assert rows.retention.unique().tolist() == [retention]
        assert rows.exact.tolist() == [s == e.answer for s, e in zip(expected, asked, strict=True)]
        one_by_one = [
            evaluate(
                model,
                processor,
                [e],
                (method,) if method != "full" else (),
                (0.5,),
                positions,
                seeds=(seed,),
                max_new_tokens=2,
            )
            .query("method == @method")
            .loglik.item()
            for e in asked
        ]
        np.testing.assert_allclose(rows.loglik, one_by_one, atol=1e-4)


def test_the_log_likelihood_is_that_of_the_answer_after_the_prompt():
    model, processor = tiny.model(), tiny.processor()
    (e,) = examples(2)[1:]
    loglik = evaluate(model, processor, [e], ()).loglik.item()
    prompt = f"USER: <image> {e.question} ASSISTANT:"
    inputs = processor(images=e.image, text=prompt, return_tensors="pt")
    ids = processor.tokenizer(f"{e.answer}</s>", add_special_tokens=False).input_ids
    expected = 0.0
    for token in ids:
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1].double()
        expected += logits.log_softmax(-1)[token].item()
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert loglik == pytest.approx(expected, abs=1e-4)


def test_each_picture_goes_through_the_tower_once(monkeypatch):
    model, processor = tiny.model(), tiny.processor()
    seen = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len((*args, *kwargs.values())[0])),
        with_kwargs=True,
    )
    methods = ("fopru", "cls", "uniform")
    for batch_size in (1, 3, 64):  # questions on one picture are never torn apart
        seen.clear()
        evaluate(model, processor, examples(), methods, (0.5, 0.25), batch_size=batch_size)
        assert sum(seen) == 3
    handle.remove()


def test_the_oracle_keeps_the_evidence_first_and_the_table_says_how_much():
    model, processor = tiny.model(), tiny.processor()
    found = evaluate(model, processor, examples(), ("oracle", "random"), (0.25,), max_new_tokens=1)
    # 20 x 10 of 40 x 40 pixels are 4 x 2 of 8 x 8 patches, and 16 are kept
    with_evidence = found[found.id != "q0"]
    assert (with_evidence.evidence == 8).all()
    assert (with_evidence[with_evidence.method == "oracle"].found == 1).all()
    assert (with_evidence[with_evidence.method == "random"].found < 1).any()
    assert found[found.id == "q0"].found.isna().all()
    assert (found[found.method == "oracle"].kept == 16).all()
    assert set(found[found.method == "random"].seed) == {0, 1, 2, 3, 4}


def test_blind_controls_show_other_pictures():
    asked = examples()
    assert all(np.ptp(np.asarray(e.image)) == 0 for e in controls.grey(asked))
    for before, after in zip(asked, controls.swapped(asked), strict=True):
        assert (before.id, before.answer) == (after.id, after.answer)
        assert before.image is not after.image
    model, processor = tiny.model(), tiny.processor()
    found = evaluate(model, processor, asked, (), blind=("grey", "swapped"), max_new_tokens=1)
    assert found.method.value_counts().to_dict() == {"full": 5, "grey": 5, "swapped": 5}
    assert (
        found.query("method == 'full'").loglik.tolist()
        != found.query("method == 'grey'").loglik.tolist()
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"methods": ("foopru",)}, "methods='foopru': .* Did you mean 'fopru'.*Those.*oracle"),
        ({"blind": ("dark",)}, "blind='dark': must be one of 'none', 'grey', 'swapped'"),
        ({"retentions": (0.5, 1.5)}, r"retention=1.5: must be a number in \(0, 1\]"),
        ({"methods": [controls.Later(FastV())]}, "'fastv-later' needs several .* 'q4' and 0 oth"),
        ({"methods": "fopru"}, r"methods='fopru': must be a list; write \['fopru'\]"),
        ({"methods": fopru.FoPru()}, r"methods=FoPru\(.*: must be a list"),
        ({"methods": [5]}, "methods: 5 is neither a name nor a pruner"),
        ({"methods": ["fopru", fopru.FoPru()]}, "methods: two of them are called 'fopru'"),
        ({"methods": {"full": "fopru"}}, "methods: 'full' cannot be a label"),
        ({"methods": [fopru.FoPru(tokens=9)]}, "methods: 'fopru' has tokens=9.*leave it out"),
        (
            {"tokens": [9], "retentions": [0.5]},
            r"retentions=\[0.5\] and tokens=\[9\]: give one of them",
        ),
        ({"tokens": 9}, r"tokens=9: must be a list"),
        ({"tokens": []}, r"tokens=\[\]: 'fopru' needs at least one"),
        ({"tokens": [9, 9]}, r"tokens=\[9, 9\]: each may stand there once"),
        ({"tokens": [0]}, "tokens=0: must be an integer of at least 1"),
        ({"tokens": [9], "methods": ["fastv"]}, "tokens=9: methods inside .* take `retention`"),
        ({"retentions": 0.5}, r"retentions=0.5: must be a list"),
        ({"retentions": ()}, r"retentions=\[\]: 'fopru' needs at least one"),
        ({"seeds": 3}, r"seeds=3: must be a list"),
        ({"seeds": ()}, r"seeds=\[\]: 'random' needs at least one"),
        ({"blind": "grey"}, r"blind='grey': must be a list"),
        ({"blind": ("grey", "grey")}, r"blind=\['grey', 'grey'\]: each may stand there once"),
        ({"batch_size": 0}, "batch_size=0: must be an integer of at least 1"),
        ({"max_new_tokens": 0.5}, "max_new_tokens=0.5: must be an integer of at least 1"),
        ({"examples": []}, r"examples=\[\]: there is no question"),
        ({"examples": examples()[0]}, "examples=Example.*: must be a list"),
        ({"examples": ["q0"]}, "examples: 'q0' is no fopru.evaluation.Example"),
        ({"examples": examples() * 2}, "examples: id 'q0' stands there 2 times"),
        (
            {"examples": [replace(examples()[0], question="what is <image> ?")]},
            "examples: question 'q0' holds '<image>', which stands for the picture",
        ),
        (
            {"examples": examples()[:2], "blind": ["swapped"]},
            "blind='swapped': task 'reading' has one picture only",
        ),
    ],
)
def test_bad_arguments(arguments, message, monkeypatch):
    """Before anything is computed."""
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    with pytest.raises(ValueError, match=message):
        evaluate(tiny.model(), tiny.processor(), **{"examples": examples(), **arguments})


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_swapped_never_shows_the_true_picture(n):
    """Two questions a picture, each with a copy of it, as the rows of a dataset have them."""
    asked = [
        Example(str(i), "t", tiny.image(40, 40, seed=i // 2), "w1", "w2") for i in range(2 * n)
    ]
    shown = [np.asarray(e.image) for e in controls.swapped(asked)]
    for e, image in zip(asked, shown, strict=True):
        assert not np.array_equal(np.asarray(e.image), image)
    assert len({image.tobytes() for image in shown}) == n


def test_methods_may_be_names_pruners_and_labels():
    model, processor, asked = tiny.model(), tiny.processor(), examples()
    arguments = {"retentions": (0.25,), "seeds": (3,), "max_new_tokens": 1}
    pruners = [
        fopru.FoPru(0.9, layer=0),
        fopru.Random(),
        Kept(chosen=tuple(range(16))),
        fopru.FoPru(weights="mass"),
        fopru.FoPru(weights="restore"),
        controls.Shuffled(fopru.FoPru()),
    ]
    found = evaluate(model, processor, asked, pruners, **arguments)
    labels = ["fopru, layer=0", "random", f"Kept, chosen={tuple(range(16))}"]
    labels += ["fopru-mass", "fopru-restore", "fopru-shuffled"]
    assert found.method.unique().tolist() == ["full", *labels]
    assert set(found.retention) == {0.25, 1.0}
    named = evaluate(
        model, processor, asked, {"a": fopru.FoPru(layer=0), "b": "random"}, **arguments
    )
    for label, name in (("fopru, layer=0", "a"), ("random", "b")):
        one, other = found[found.method == label], named[named.method == name]
        assert one.seed.tolist() == other.seed.tolist()
        np.testing.assert_allclose(one.loglik, other.loglik, atol=1e-5)


def test_an_answer_is_generated_and_not_supposed():
    """Where the right answer is what the model says, its length and settings count all the same."""
    model, processor, asked = tiny.model(), tiny.processor(), examples()
    said = list(answer(model, processor, asked, max_new_tokens=3))
    asked = [replace(e, answer=s.upper()) for e, s in zip(asked, said, strict=True)]
    for n in (1, 3):
        found = evaluate(model, processor, asked, (), max_new_tokens=n)
        assert found.prediction.tolist() == [" ".join(s.split()[:n]) for s in said]
    assert found.exact.all() and (found.score == 1).all()
    model.generation_config.suppress_tokens += [tiny.WORDS.index(s.split()[1]) for s in said]
    expected = list(answer(model, processor, asked, max_new_tokens=3))
    assert evaluate(model, processor, asked, (), max_new_tokens=3).prediction.tolist() == expected


def test_the_answer_follows_the_prompt_as_the_model_would_go_on():
    processor = tiny.processor()
    tokens = processor.tokenizer

    def words(prompt, text):
        return tokens.convert_ids_to_tokens(answer_ids(processor, prompt, text)[0])

    assert words("USER: w1 ASSISTANT:", "w7 w8") == ["w7", "w8", "</s>"]
    assert words("USER: w1 ASSISTANT: ", "w7") == ["w7", "</s>"]
    assert words("USER: w1 </s>", "w7") == ["w7", "</s>"]
    assert words("USER: w1 ASSISTANT:", "") == ["</s>"]
    for prompt, whole in (
        ("assistant\n", "assistant\nw7</s>"),  # one character, one token
        ("ASSISTANT:", "ASSISTANT: w7</s>"),
    ):
        seen = SimpleNamespace(tokenizer=Letters())
        assert prompt + "".join(map(chr, answer_ids(seen, prompt, "w7")[0])) == whole
    with pytest.raises(ValueError, match="answer='\\\\nw7': the tokenizer joins its beginning"):
        answer_ids(SimpleNamespace(tokenizer=Letters()), "assistant\n", "\nw7")


class Letters:
    """A tokenizer of single characters, but for two line feeds that follow one another."""

    eos_token, all_special_tokens = "</s>", ["</s>"]

    def __call__(self, texts):
        return SimpleNamespace(input_ids=[[*map(ord, t.replace("\n\n", "\r"))] for t in texts])


def test_no_picture_is_no_tokens():
    model, processor, asked = tiny.model(), tiny.processor(), examples()
    found = evaluate(model, processor, asked, (), blind=("none",), max_new_tokens=2)
    rows = found[found.method == "none"]
    assert (rows.kept == 0).all() and (rows.retention == 0).all()
    for row, e in zip(rows.itertuples(), asked, strict=True):
        text = processor(text=f"USER:  {e.question} ASSISTANT:", return_tensors="pt")
        with torch.no_grad():
            expected = model.generate(**text, max_new_tokens=2, do_sample=False)
        new = expected[0, text["input_ids"].shape[1] :]
        assert row.prediction == processor.decode(new, skip_special_tokens=True).strip().lower()


def test_a_smaller_picture_has_fewer_patches():
    model, processor, asked = tiny.model(), tiny.processor(), examples()
    found = evaluate(model, processor, asked, ("smaller",), (1.0, 0.3, 0.01), max_new_tokens=2)
    full = found[found.method == "full"]
    smaller = found[found.method == "smaller"].set_index("retention")
    # of 8 x 8 patches: 19 would fit 4 x 4, and nothing fits less than one
    assert smaller.groupby(level=0).kept.unique().map(list).to_dict() == {
        1.0: [64],
        0.3: [16],
        0.01: [1],
    }
    np.testing.assert_allclose(smaller.loc[1.0].loglik, full.loglik, atol=1e-4)
    assert (smaller.loc[0.3].loglik.to_numpy() != full.loglik.to_numpy()).all()
    with pytest.raises(fopru.UnsupportedModelError, match="'smaller' .* this one sees 2 views"):
        evaluate(tiny.model("llava_next"), tiny.processor("llava_next"), asked, ("smaller",))


def test_shuffling_takes_the_order_and_nothing_else():
    model, processor = tiny.model(), tiny.processor()
    inputs = processor(
        images=[e.image for e in examples()],
        text=[f"USER: <image> {e.question} ASSISTANT:" for e in examples()],
        padding=True,
        return_tensors="pt",
    )
    for positions in ("reindex", "preserve"):
        pruned = fopru.FoPru(0.25, positions=positions).prune(model, inputs)
        mixed = controls.shuffled(pruned, seed=1)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
        assert order.tolist() != sorted(order.tolist())
        torch.testing.assert_close(mixed.features[0], pruned.features[0][order])
        visual = pruned["input_ids"][0] == model.config.image_token_id
        if positions == "preserve":
            expected = pruned["position_ids"][0][visual][order]
            assert mixed["position_ids"][0][visual].tolist() == expected.tolist()
            assert torch.equal(
                mixed["position_ids"][0][~visual], pruned["position_ids"][0][~visual]
            )
        else:
            assert "position_ids" not in mixed


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "cdpruner"])
def test_asked_later_the_other_question_has_decided(method):
    model, processor = tiny.model(layers=4), tiny.processor()
    asked = examples()[:4]
    arguments = {"retentions": (0.25,), "max_new_tokens": 2}
    pruner = fopru.METHODS[method](0.25)
    both = (method, controls.Later(pruner))
    found = evaluate(model, processor, asked, both, **arguments)
    now, later = (found[found.method == m] for m in (method, f"{method}-later"))
    # tokens that one question chose, and the other answers by
    swapped = [1, 0, 3, 2]
    same = [fopru.evaluation.Example(**{**vars(e), "question": "w1"}) for e in asked]
    alike = evaluate(model, processor, same, both, **arguments)
    for part in (now, later):
        assert (part.kept == 16).all()
    for one, other in zip(
        *(alike[alike.method == m].loglik for m in (method, f"{method}-later")), strict=True
    ):
        assert one == pytest.approx(other, abs=1e-5)
    assert not np.allclose(now.loglik, later.loglik, atol=1e-6)
    for row, other in enumerate(swapped):
        texts = [f"USER: <image> {asked[i].question} ASSISTANT:" for i in (row, other)]
        mine, yours = (
            processor(images=asked[row].image, text=text, return_tensors="pt") for text in texts
        )
        ids = processor.tokenizer(f"{asked[row].answer}</s>", add_special_tokens=False).input_ids
        with torch.no_grad():
            if method == "cdpruner":
                (kept,) = pruner.prune(model, yours).images
                chosen = Kept(0.25, chosen=tuple(kept.kept.tolist()))
                expected = stepwise(model, chosen.prune(model, mine), ids)
            else:
                with pruner(model) as run:
                    model(**yours)
                with pruner(model, run) as again:
                    expected = stepwise(model, mine, ids)
                assert [k.tolist() for k in again.kept] == [k.tolist() for k in run.kept]
        assert later.loglik.iloc[row] == pytest.approx(expected, abs=1e-4)


@dataclass(frozen=True)
class Kept(fopru.Pruner):
    """Keeps what it is told to."""

    chosen: tuple[int, ...] = ()

    def select(self, image, k):
        return torch.tensor(self.chosen)


def stepwise(model, inputs, ids):
    """The log-likelihood of token ids after a prompt, one step at a time on its cache."""
    inputs = dict(inputs)
    total, cache, mask = 0.0, None, inputs["attention_mask"]
    for token in ids:
        out = model(**inputs, **{cache_name(model): cache}, use_cache=True)
        total += out.logits[0, -1].double().log_softmax(-1)[token].item()
        cache, mask = out.past_key_values, torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        inputs = {"input_ids": torch.tensor([[token]]), "attention_mask": mask}
    return total


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "cdpruner", "oracle"])
def test_methods_that_read_the_question_do_not_see_the_answer(method):
    """Their choice is made at the prompt's end, before the right answer is read out."""
    model, processor, asked = tiny.model(layers=4), tiny.processor(), examples()
    found = evaluate(model, processor, asked, (method,), (0.25,), max_new_tokens=2)
    table = found[found.method == method]
    if method == "oracle":
        other = [fopru.evaluation.Example(**{**vars(e), "answer": "w3 w4 w5"}) for e in asked]
        again = evaluate(model, processor, other, (method,), (0.25,), max_new_tokens=2)
        assert again[again.method == method].prediction.tolist() == table.prediction.tolist()
        return
    pruner = fopru.METHODS[method](0.25)
    for e, loglik in zip(asked, table.loglik, strict=True):
        text = f"USER: <image> {e.question} ASSISTANT:"
        inputs = processor(images=e.image, text=text, return_tensors="pt")
        ids = processor.tokenizer(f"{e.answer}</s>", add_special_tokens=False).input_ids
        with torch.no_grad():
            if method == "cdpruner":
                expected = stepwise(model, pruner.prune(model, inputs), ids)
            else:
                with pruner(model):
                    expected = stepwise(model, inputs, ids)
        assert loglik == pytest.approx(expected, abs=1e-4)


def test_divergence_is_from_the_full_model_on_the_right_answer():
    model, processor, asked = tiny.model(), tiny.processor(), examples()
    found = evaluate(
        model, processor, asked, ("uniform",), (0.25,), blind=("grey",), max_new_tokens=1
    )
    rows = found.set_index("method")
    np.testing.assert_allclose(rows.loc["full"].kl, 0, atol=1e-6)
    assert rows.loc["grey"].kl.isna().all()
    e = asked[1]
    ids = processor.tokenizer(f"{e.answer}</s>", add_special_tokens=False).input_ids
    text = f"USER: <image> {e.question} ASSISTANT: {e.answer}</s>"
    inputs = processor(images=e.image, text=text, return_tensors="pt")
    logs = []
    with torch.no_grad():
        for pruner in (fopru.Random(1.0), fopru.METHODS["uniform"](0.25)):
            logits = model(**pruner.prune(model, inputs)).logits[0, -len(ids) - 1 : -1]
            logs.append(logits.double().log_softmax(-1))
    expected = torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="none")
    measured = found[(found.method == "uniform") & (found.id == e.id)].kl.item()
    assert measured == pytest.approx(expected.sum(-1).mean().item(), abs=1e-5)


def test_rows_come_question_by_question_in_the_order_of_the_settings():
    found = evaluate(
        tiny.model(),
        tiny.processor(),
        examples()[::-1],
        ("uniform", "fopru"),
        (0.5, 0.25),
        max_new_tokens=1,
        batch_size=2,
    )
    cells = list(zip(found.method, found.retention, strict=True))[:5]
    assert cells == [
        ("full", 1.0),
        ("uniform", 0.5),
        ("uniform", 0.25),
        ("fopru", 0.5),
        ("fopru", 0.25),
    ]
    assert found.id.drop_duplicates().tolist() == ["q4", "q3", "q2", "q1", "q0"]


def test_bands_hold_for_all_cells_at_once():
    """Of many comparisons of equals about one in twenty finds any cell outside of its band."""
    rng = np.random.default_rng(0)
    missed = missed_singly = 0
    for _ in range(40):
        rows = [
            (f"q{i}", f"p{i}", "t", f"m{cell}", 0.5, 0, bool(rng.random() < 0.5))
            for i in range(80)
            for cell in range(12)
        ]
        table = statistics.bands(results(rows))
        singly = statistics.accuracy(results(rows))
        missed += bool(((table.low > 0.5) | (table.high < 0.5)).any())
        missed_singly += bool(((singly.low > 0.5) | (singly.high < 0.5)).any())
    assert missed <= 6 < missed_singly


def test_what_is_retained_is_measured_above_the_blind():
    rows = []
    for method, retention, right in (("full", 1.0, 9), ("grey", 1.0, 5), ("fopru", 0.5, 8)):
        rows += [(f"q{i}", f"p{i}", "t", method, retention, 0, i < right) for i in range(10)]
    table = statistics.retained(results(rows).assign(kept=1)).set_index("method")
    assert table.retained.to_dict() == pytest.approx({"full": 1.0, "grey": 0.0, "fopru": 0.75})
    known = results(rows).assign(kept=1, choice=lambda table: table.method != "grey")
    table = statistics.retained(known, value="choice").set_index("method")
    assert table.retained.to_dict() == {"full": 1.0, "grey": 0.0, "fopru": 1.0}


def test_scores_are_the_benchmarks_own():
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "task": ["presence"] * 2 + ["documents"] * 2,
            "method": "full",
            "retention": 1.0,
            "seed": 0,
            "metric": ["f1"] * 2 + ["anls"] * 2,
            "prediction": ["yes", "yes", "17", "18"],
            "answer": ["yes", "no", "17", "19"],
            "score": [1.0, 0.0, 1.0, 0.5],
        }
    )
    table = statistics.scores(frame).set_index("metric").score
    assert table.to_dict() == pytest.approx({"f1": 2 / 3, "anls": 0.75})


def test_a_metric_is_a_registered_pair(monkeypatch):
    first = Metric(lambda said, right: float(said[:1] == right[:1]), lambda rows: rows.score.min())
    monkeypatch.setitem(METRICS, "first letter", first)
    model, processor = tiny.model(), tiny.processor()
    asked = [replace(e, metric="first letter") for e in examples()]
    found = evaluate(model, processor, asked, (), (), max_new_tokens=1)
    expected = [float(r.prediction[:1] == r.answer[:1]) for r in found.itertuples()]
    assert found.score.tolist() == expected
    (row,) = statistics.scores(found.assign(task="all")).itertuples()
    assert (row.metric, row.score) == ("first letter", min(expected))


def test_intervals_resample_pictures_not_questions():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(50), 8)
    same = np.repeat(rng.integers(0, 2, 50), 8)  # all questions on a picture agree
    mean, low, high = statistics.interval(pd.Series(same), pd.Series(images))
    assert mean == same.mean()
    _, narrow_low, narrow_high = statistics.interval(pd.Series(same), pd.Series(np.arange(400)))
    assert (high - low) > 2 * (narrow_high - narrow_low)
    half = 1.96 * same.std() / 50**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def results(rows):
    columns = ["id", "image", "task", "method", "retention", "seed", "exact"]
    return pd.DataFrame(rows, columns=columns)


def test_seeds_are_averaged_per_question_and_differences_are_paired():
    rows = [(f"q{i}", f"p{i}", "t", "full", 1.0, 0, i % 2 == 0) for i in range(40)]
    rows += [
        (f"q{i}", f"p{i}", "t", "random", 0.5, s, i % 2 == 0 and s == 0)
        for i in range(40)
        for s in range(4)
    ]
    table = statistics.accuracy(results(rows)).set_index("method")
    assert table["n"].tolist() == [40, 40]
    assert table["mean"].to_dict() == {"full": 0.5, "random": 0.125}
    mean, low, high = statistics.difference(results(rows), ("full", 1.0), ("random", 0.5))
    assert mean == pytest.approx(0.375)
    # paired: 20 of 40 questions differ by 0.75, the others not at all
    assert (high - low) / 2 == pytest.approx(1.96 * 0.375 / 40**0.5, rel=0.15)
    for setting, there in ((("fopru", 0.5), "['full', 'random']"), (("full", 0.5), "at [1.0]")):
        why = re.escape(f"setting {setting} is not among the results, which hold ")
        with pytest.raises(ValueError, match=f"{why}.*{re.escape(there)}"):
            statistics.difference(results(rows), setting, ("random", 0.5))


def test_a_share_of_all_or_none_is_not_certain():
    rows = [(f"q{i}", f"p{i // 2}", "t", "full", 1.0, 0, True) for i in range(40)]
    rows += [(f"q{i}", f"p{i // 2}", "t", "random", 0.5, 0, False) for i in range(40)]
    table = statistics.accuracy(results(rows)).set_index("method")
    # 20 pictures, not 40 questions: (0.05 / 2) ** (1 / 20)
    assert table.loc["full", ["low", "high"]].tolist() == pytest.approx([0.025 ** (1 / 20), 1])
    assert table.loc["random", ["low", "high"]].tolist() == pytest.approx(
        [0, 1 - 0.025 ** (1 / 20)]
    )


def test_readings_are_known_said_and_malformed():
    rows = [(f"q{i}", f"p{i}", "t", "fopru", 0.5, 0, i < 2) for i in range(8)]
    frame = results(rows).assign(
        choice=[True] * 6 + [False, None], formed=[True] * 4 + [False] * 3 + [None]
    )
    table = statistics.readings(frame, table=statistics.means).set_index("reading")
    assert table["n"].to_dict() == {"known": 7, "said": 8, "malformed": 7}
    assert table["mean"].to_dict() == {
        "known": pytest.approx(6 / 7),
        "said": 0.25,
        "malformed": pytest.approx(3 / 7),
    }
    bands = statistics.readings(frame, ["task"]).set_index("reading")
    assert (bands.low <= bands["mean"]).all() and (bands.high >= bands["mean"]).all()
    with pytest.raises(ValueError, match="no question names its legal answers"):
        statistics.readings(frame.assign(choice=None))


def test_methods_inside_the_language_model_are_evaluated_within():
    model, processor, asked = tiny.model(), tiny.processor(), examples()
    found = evaluate(model, processor, asked, ("fastv",), (0.25,), max_new_tokens=2)
    rows = found[found.method == "fastv"]
    with fopru.METHODS["fastv"](0.25)(model):
        expected = list(answer(model, processor, asked, max_new_tokens=2))
    assert rows.prediction.tolist() == expected
    assert (rows.kept == 16).all()
    assert (rows.layer_weighted == (64 + 64 + 16) / 3).all()
    assert (rows.positions == "preserve").all()
    full = found[found.method == "full"]
    assert (full.layer_weighted == 64).all() and (full.positions == "reindex").all()


def answers_table(rows):
    names = [
        "id",
        "task",
        "image",
        "method",
        "retention",
        "kept",
        "exact",
        "prediction",
        "answer",
    ]
    return pd.DataFrame(rows, columns=[*names, "loglik"])


def test_flips_f1_and_the_area_under_the_curve():
    rows = []
    for i, (full, pruned) in enumerate(
        [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]
    ):
        for method, retention, kept, said, nats in (
            ("full", 1.0, 256, full, -1.0),
            ("fopru", 0.25, 64, pruned, -3.0),
            ("fopru", 0.0625, 16, "no", -4.0),
        ):
            row = (f"q{i}", "presence", f"p{i}", method, retention, kept, said == "yes", said)
            rows.append((*row, "yes", nats))
    table = answers_table(rows)
    flips = statistics.flips(table).set_index("retention")
    assert flips.loc[0.25, ["agrees", "lost", "gained", "nats"]].tolist() == [0.5, 0.25, 0.25, 2.0]
    assert flips.loc[0.0625, ["agrees", "lost", "gained"]].tolist() == [0.5, 0.5, 0.0]
    full = table[table.method == "full"]
    assert f1(full) == pytest.approx(2 * 2 / (2 * 2 + 0 + 2))
    # 0 at 16, one half at 64 and at 256: on a log axis two steps of the same width
    (area,) = statistics.area(table).area
    assert area == pytest.approx((0.25 + 0.5) / 2)
    # a method that reaches 64 only: all are compared from there on
    short = table[table.method == "fopru"].assign(method="row", kept=[64, 128] * 4)
    areas = statistics.area(pd.concat([table, short])).set_index("method")
    assert areas.start.unique().tolist() == [64]
    assert areas.area["fopru"] == pytest.approx(0.5)


def test_weighted_answers_are_those_inside_with():
    """The comparison prefills the shared picture once; generate inside `with` knows no sharing."""
    net, processor = fopru.load("pocket")
    asked = fopru.pocket.benchmark("validation", task="counting")[:8]
    found = evaluate(net, processor, asked, [fopru.FoPru(weights="mass")], (0.1,))
    said = found[found.method == "fopru-mass"].prediction.tolist()
    expected = []
    for e in asked:
        prompt = inputs_of(processor, [e])
        with fopru.FoPru(0.1, weights="mass")(net):
            expected += generate(net, processor, dict(prompt), 8)
    assert said == expected


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (controls.Shuffled(FastV()), "methods='fastv-shuffled': tokens are dropped inside"),
        (controls.Later(fopru.FoPru()), "methods='fopru-later': the same tokens are kept"),
        (controls.Later(controls.Oracle()), "methods='oracle-later': the same tokens are kept"),
    ],
)
def test_controls_are_put_on_what_they_make_sense_for(method, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny.model(), tiny.processor(), examples()[:4], [method], (0.25,))


def two_numberings():
    """Rows of one method with both kinds of position ids, and one that could not be asked."""
    rows = [
        (f"q{i}", f"p{i}", "t", method, retention, 0, i % 2 == 0)
        for i in range(6)
        for method, retention in (("full", 1.0), ("grey", 1.0), ("fopru", 0.5), ("fopru", 0.25))
    ]
    names = {"metric": "accuracy", "prediction": "a", "answer": "a", "loglik": -1.0, "score": 1.0}
    table = results(rows).assign(**names, positions="reindex", error=None)
    table["kept"] = (100 * table.retention).astype(int)
    return table


@pytest.mark.parametrize(
    "function",
    [
        *(statistics.means, statistics.accuracy, statistics.bands, statistics.per_question),
        *(statistics.retained, statistics.scores, statistics.flips, statistics.area),
        lambda table: statistics.difference(table, ("fopru", 0.5), ("full", 1.0)),
    ],
)
def test_position_ids_are_not_averaged_and_failures_not_counted(function):
    table = two_numberings()
    expected = function(table)
    failed = table.assign(id="q9", error="no such file", **dict.fromkeys(["exact", "kept"]))
    found = function(pd.concat([table, failed]))
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    else:
        np.testing.assert_equal(found, expected)
    counted = table.assign(budget=9)  # as 9 tokens of the same share would be
    with pytest.raises(ValueError, match="'f.*' has rows with budget nan and 9"):
        function(pd.concat([table.assign(budget=np.nan), counted]))
    both = table.assign(positions="preserve")
    with pytest.raises(ValueError, match="'f.*' has rows with positions 'reindex' and 'preserve'"):
        function(pd.concat([table, both]))


def test_prepare_makes_what_generate_and_encode_take():
    model, processor = fopru.load()
    (e,) = fopru.pocket.sample("reading", 1)
    inputs = fopru.prepare(processor, e.image, e.question)
    same = inputs_of(processor, [e])
    assert {name: value.tolist() for name, value in inputs.items()} == {
        name: value.tolist() for name, value in same.items()
    }
    several = fopru.prepare(processor, [e.image, e.image], e.question)
    assert len(fopru.encode(model, several).images) == 2
    with pytest.raises(ValueError, match="question='<image>\\?' holds '<image>'"):
        fopru.prepare(processor, e.image, "<image>?")


def test_committed_results_are_read_by_name():
    rows = fopru.pocket.results("efficiency/pocket")
    assert len(rows)
    for name in ("../secret", "", "a.b"):
        with pytest.raises(ValueError, match="is no name of a table"):
            fopru.pocket.results(name)
    with pytest.raises(FileNotFoundError):
        fopru.pocket.results("absent")
