import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from making import build
from making import train as training
from making.recipe import FIRST, Recipe, Stage
from making.targets import IGNORE, SLOTS, Batches, isolated, patch_labels
from making.train import Student, train
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import fopru
from fopru.evaluation import answer
from fopru.pocket import scenes
from fopru.pocket.objects import Objects
from fopru.pocket.papers import Receipt

TINY = Recipe(
    stages=(Stage("tower", 2, 2, 1e-3, warmup=1), Stage("answers", 3, 2, 1e-3, decay=0.5)),
    width=32,
    layers=2,
    compiled=False,
)


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch):
    monkeypatch.setattr(training, "quick_accuracy", partial(training.quick_accuracy, n=1))


def test_resuming_after_a_stop_is_bitwise_the_same_run(tmp_path):
    whole = train(tmp_path / "whole", tmp_path / "a", TINY, evaluate_every=100)
    for stop in (1, 2, 4):
        train(tmp_path / "parts", tmp_path / "b", TINY, evaluate_every=100, stop_after=stop)
    parts = train(tmp_path / "parts", tmp_path / "b", TINY, evaluate_every=100)
    other = parts.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in whole.state_dict().items())

    log = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "parts")]
    assert log[0] == log[1]


def test_a_checkpoint_of_another_recipe_or_a_damaged_one_is_refused_and_stays(tmp_path):
    out, saved = tmp_path / "out", tmp_path / "checkpoint.pt"
    train(out, tmp_path, TINY, stop_after=1)

    def refused(message, recipe=TINY):
        before = saved.read_bytes()
        with pytest.raises(ValueError, match=message):
            train(out, tmp_path, recipe)
        assert saved.read_bytes() == before and not out.exists()

    whole = saved.read_bytes()
    refused("holds a run with seed=0, not 1: use another folder", replace(TINY, seed=1))
    refused("holds a run with dense=output, not own", replace(TINY, dense="own"))
    refused("holds a run with captions=False, not True", replace(TINY, captions=True))
    damaged = r"checkpoint\.pt is not a whole checkpoint of a training run: delete it"
    saved.write_bytes(whole[:2000])
    refused(damaged)
    torch.save({"recipe": asdict(TINY)}, saved)
    refused(damaged)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_a_sentence_and_loses_nothing(tmp_path, monkeypatch, error):
    out, saved = tmp_path / "out", tmp_path / "checkpoint.pt"
    train(out, tmp_path, TINY, stop_after=2)
    before = saved.read_bytes()

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Student, "forward", full)
        with pytest.raises(ValueError, match="device='cpu': has too little memory for 2 pictures"):
            train(out, tmp_path, TINY)
    assert saved.read_bytes() == before
    train(out, tmp_path, TINY, stop_after=3)


def test_other_errors_are_not_taken_for_a_want_of_memory(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Student, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(tmp_path / "out", tmp_path, TINY)


KILLED = """
import sys
sys.path.insert(0, {data!r})
import making.train
from making.recipe import Recipe, Stage
making.train.quick_accuracy = lambda *args: {{}}
stages = (
    Stage("tower", 60, 4, 2e-3),
    Stage("answers", 60, 2, 2e-3, few=0.5),
    Stage("answers", 80, 4, 2e-3, warmup=0, decay=0.5),
)
recipe = Recipe(stages=stages, width=32, layers=2, compiled=False)
making.train.train(sys.argv[1], sys.argv[1], recipe, save_every=float(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_hundred_steps_that_were_killed_again_and_again_are_bitwise_the_same(tmp_path):
    """Killed (SIGKILL) while it learns, after its first, third and fifth checkpoint."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(data=str(Path(__file__).parents[2] / "data")))

    def begin(folder, seconds):
        told = [sys.executable, script, tmp_path / folder, str(seconds)]
        return subprocess.Popen(told, stderr=subprocess.DEVNULL)

    assert begin("whole", 1e9).wait() == 0
    saved, stops = tmp_path / "parts" / "checkpoint.pt", []
    for more in (1, 3, 5):
        process, seen = begin("parts", 0.2), set()
        while len(seen) <= more:  # the first is the one that was there
            assert process.poll() is None, "it ended before it was killed"
            seen.add(saved.stat().st_mtime_ns if saved.exists() else None)
            sleep(0.02)
        process.kill()
        process.wait()
        stops.append(torch.load(saved, weights_only=True)["step"])
    assert 0 < stops[0] < stops[1] < stops[2] < 200
    assert begin("parts", 0.2).wait() == 0
    one, other = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert one["step"] == other["step"] == 200
    assert_same(one, other)


COMPILED = """
import sys
sys.path.insert(0, {data!r})
import making.train
from making.recipe import Recipe, Stage
making.train.quick_accuracy = lambda *args: {{}}
stages = (Stage("answers", 3, 1, 2e-3), Stage("answers", 4, 2, 2e-3, warmup=0))
recipe = Recipe(stages=stages, width=32, layers=1, text_tokens=32)
making.train.train(sys.argv[1], sys.argv[1], recipe, stop_after=int(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_compiled_run_that_goes_on_in_a_later_stage_is_bitwise_the_same(tmp_path):
    """What torch compiles depends on what the process compiled before."""
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED.format(data=str(Path(__file__).parents[2] / "data")))
    states = []
    for folder, stops in (("whole", (7,)), ("parts", (5, 7))):
        for stop in stops:
            subprocess.run([sys.executable, script, tmp_path / folder, str(stop)], check=True)
        states.append(torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True))
    assert states[0]["step"] == states[1]["step"] == 7
    assert_same(*states)


def assert_same(one, other):
    """Equal to the bit, through all lists and dictionaries."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def test_captions_are_no_answer_unless_the_recipe_says_so():
    processor, caption = build.processor(scenes.WORDS), scenes.CAPTION.removesuffix("?")

    def asked(recipe):
        batches = Batches(processor, replace(recipe, text_tokens=600))
        texts = [text for step in (2, 3, 4) for text in batches[step].text]
        return [caption in processor.tokenizer.decode(text) for text in texts]

    assert not any(asked(TINY))
    assert all(asked(replace(TINY, captions=True)))


def test_patches_are_told_names_and_colours_only():
    """No answer: no number that a digit is part of, no price on a word, no place, no end."""
    scene = scenes.scene(3, Receipt)
    assert Recipe().slots == ("name", "color")
    labels = patch_labels(scene, 14, ("color", "name"))
    everything = patch_labels(scene, 14)
    places = [list(SLOTS).index(slot) for slot in ("color", "name")]
    assert (labels == everything[places]).all()
    assert Batches(build.processor(scenes.WORDS), TINY)[0].patches.shape == (2, 2, 256)


def student_of(recipe):
    processor = build.processor(scenes.WORDS)
    model = build.model(build.config(processor, width=32, text_layers=2))
    data = Batches(processor, recipe)
    return Student(model, processor, data.prompt_ids[0], recipe), data


@pytest.mark.parametrize("dense", ["own", "output"])
def test_a_head_of_its_own_leaves_the_decoders_words_alone(dense):
    student, data = student_of(replace(TINY, dense=dense))
    tower, text = student(data[0], answers=False)
    tower.backward()
    words = student.model.get_input_embeddings().weight
    assert text is None and student.model.lm_head.weight is words
    assert (words.grad is None) == (dense == "own")
    assert student.model.model.multi_modal_projector.linear_2.weight.grad.abs().sum() > 0


def test_the_decoder_sees_every_visual_token_in_training():
    student, data = student_of(TINY)
    seen = []
    student.model.model.language_model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    student(data[2], answers=True)
    (embeds,) = seen
    before = len(data.prompt_ids[0])
    assert embeds.shape[1] == before + 256 + TINY.text_tokens
    found = student.model.get_image_features(data[2].pixels, return_dict=True).pooler_output
    torch.testing.assert_close(embeds[:, before : before + 256], torch.stack([*found]))


def test_the_recipe_of_the_first_weights_stays_what_their_card_says():
    assert len(FIRST.schedule) == 7500
    assert sum(stage.steps * stage.batch for stage in FIRST.stages) == 220_800


def test_recipes_without_dense_labels_learn_from_captions(tmp_path):
    recipe = TINY.without_dense_labels()
    assert [s.learns for s in recipe.stages] == ["captions", "answers"]
    assert [s.steps for s in recipe.shortened(2).stages] == [1, 1]
    processor = build.processor(scenes.WORDS)
    batch = Batches(processor, recipe)[0]
    assert batch.text.shape == (2, recipe.caption_tokens)
    told = processor.tokenizer.decode(batch.text[0][batch.labels[0] != IGNORE])
    scene = scenes.scene((scenes.TRAINING, 0, 0, 0), world=recipe.world)
    assert told == f"{scene.caption}</s>".replace(",", " ,").replace("</s>", " </s>")
    train(tmp_path / "out", tmp_path / "checkpoints", recipe, evaluate_every=100)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_is_saved_loads_with_the_auto_classes(tmp_path):
    processor = build.processor(scenes.WORDS)
    model = build.model(build.config(processor, width=32)).eval()
    build.save(model, processor, tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    tower = [name for name in names if name.startswith("vision_tower.")]
    assert tower and all(name.startswith("vision_tower.vision_model.") for name in tower)  # vLLM's
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    again = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    assert loaded.dtype == torch.float32
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    inputs = [
        p(
            images=scenes.scene(0).image.resize((301, 257)),
            text=p.apply_chat_template(chat, add_generation_prompt=True),
            return_tensors="pt",
        )
        for p in (processor, again)
    ]
    assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])
    logits = loaded(**inputs[0]).logits
    half = model.half().float()  # weights are float16 on disk
    torch.testing.assert_close(logits, half(**inputs[0]).logits)


def test_the_tokenizer_reads_and_writes_plain_words():
    tokenizer = build.tokenizer(scenes.WORDS)
    ids = tokenizer("Is THERE a red zebra, if 47?").input_ids
    words = tokenizer.decode(ids).split()
    assert words == ["<s>", "is", "there", "a", "red", "<unk>", ",", "<unk>", "47", "?"]
    assert tokenizer.decode(tokenizer("top left", add_special_tokens=False).input_ids) == "top left"


def words_of(labels, patch):
    return {
        name: words[label]
        for (name, words), label in zip(SLOTS.items(), labels[:, patch], strict=True)
        if label != IGNORE
    }


def test_patch_labels_name_what_covers_the_patch():
    scene = scenes.scene(5, Objects)
    labels = patch_labels(scene, 14)
    assert labels.shape == (len(SLOTS), 256)
    for thing in scene.things:
        row, column = thing.y // 14, thing.x // 14
        if thing.shape in ("circle", "square", "cross") and thing.radius > 12:
            words = words_of(labels, row * 16 + column)
            assert (words["name"], words["color"]) == (thing.shape, thing.color)
            assert words["row"] in thing.place
            assert words["column"] in thing.place
            assert "to" not in words
    empty = np.ones((224, 224), bool)
    for x0, y0, x1, y1 in [scene.sign.box, *(t.box for t in scene.things)]:
        empty[y0:y1, x0:x1] = False
    free = empty.reshape(16, 14, 16, 14).all((1, 3)).ravel()
    assert (labels[0, free] == SLOTS["name"].index("nothing")).all()
    assert (labels[1:, free] == IGNORE).all()


def test_patch_labels_of_papers_say_what_belongs_together():
    scene = scenes.scene(3, Receipt)
    labels = patch_labels(scene, 14)
    for line in scene.lines:
        x0, y0, x1, y1 = line.item_box
        words = words_of(labels, (y0 + y1) // 2 // 14 * 16 + (x0 + x1) // 2 // 14)
        number = {"tens": line.price[0], "ones": f"##{line.price[1]}"}
        assert words == {"name": line.item, **number}
    named = {words_of(labels, i).get("to") for i in range(256)} - {None}
    assert named <= {line.item for line in scene.lines}


def test_packed_questions_hold_the_answers_and_do_not_see_each_other():
    """A question in a packed sequence gets the logits that it gets alone."""
    processor = build.processor(scenes.WORDS)
    model = build.model(build.config(processor, width=32)).eval()
    batch = Batches(processor, Recipe(stages=(Stage("answers", 1, 1, 1e-3),)))[0]
    tokenizer = processor.tokenizer
    for segment in range(1, int(batch.segments.max()) + 1):
        labels = batch.labels[0][batch.segments[0] == segment]
        assert tokenizer.eos_token_id == labels[-1]
        assert (labels != IGNORE).sum() >= 2
    embeds = model.get_input_embeddings()(batch.text)
    prefix = torch.randn(1, 20, 32)
    mask, positions = isolated(20, batch.segments, batch.offsets)
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    decoder = model.model.language_model
    packed = decoder(
        inputs_embeds=torch.cat([prefix, embeds], 1), attention_mask=bias, position_ids=positions
    ).last_hidden_state[0, 20:]
    second = batch.segments[0] == 2
    alone = decoder(inputs_embeds=torch.cat([prefix, embeds[:, second]], 1)).last_hidden_state
    torch.testing.assert_close(packed[second], alone[0, 20:], atol=1e-5, rtol=1e-4)


def test_the_shipped_model_reads_signs_and_needs_the_picture():
    """A floor far below the model card's number; the card has the number with its interval."""
    model, processor = fopru.load("pocket")
    examples = fopru.pocket.sample("reading", n=40, seed=77)
    right = sum(
        a == e.answer for a, e in zip(answer(model, processor, examples), examples, strict=True)
    )
    assert right >= 20
