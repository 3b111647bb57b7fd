import numpy as np
import pytest
import torch
from making import build
from making.recipe import Recipe, Stage
from making.targets import IGNORE, SLOTS, Batches, isolated, patch_labels
from making.train import train
from transformers import AutoModelForImageTextToText, AutoProcessor

import fopru
from fopru.evaluation import answer
from fopru.pocket import scenes
from fopru.pocket.objects import Objects
from fopru.pocket.papers import Receipt

TINY = Recipe(
    stages=(Stage("tower", 2, 2, 1e-3, warmup=1), Stage("answers", 3, 2, 1e-3, decay=0.5)), width=32
)


def test_resuming_after_a_stop_is_bitwise_the_same_run(tmp_path):
    whole = train(tmp_path / "whole", tmp_path / "a", TINY, evaluate_every=100)
    for stop in (1, 2, 4):
        train(tmp_path / "parts", tmp_path / "b", TINY, evaluate_every=100, stop_after=stop)
    parts = train(tmp_path / "parts", tmp_path / "b", TINY, evaluate_every=100)
    other = parts.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in whole.state_dict().items())

    log = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "parts")]
    assert log[0] == log[1]

    with pytest.raises(ValueError, match="holds a run with seed=0, not 1"):
        train(tmp_path / "parts", tmp_path / "b", Recipe(**{**vars(TINY), "seed": 1}))
    saved = tmp_path / "b" / "checkpoint.pt"
    saved.write_bytes(saved.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a whole checkpoint"):
        train(tmp_path / "parts", tmp_path / "b", TINY)


def test_recipes_without_dense_labels_learn_from_captions(tmp_path):
    recipe = TINY.without_dense_labels()
    assert [s.learns for s in recipe.stages] == ["captions", "answers"]
    assert [s.steps for s in recipe.shortened().stages] == [1, 1]
    processor = build.processor(scenes.WORDS)
    batch = Batches(processor, recipe)[0]
    assert batch.text.shape == (2, recipe.caption_tokens)
    told = processor.tokenizer.decode(batch.text[0][batch.labels[0] != IGNORE])
    scene = scenes.scene((scenes.TRAINING, 0, 0, 0))
    assert told == f"{scene.caption}</s>".replace(",", " ,").replace("</s>", " </s>")
    train(tmp_path / "out", tmp_path / "checkpoints", recipe, evaluate_every=100)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_is_saved_loads_with_the_auto_classes(tmp_path):
    processor = build.processor(scenes.WORDS)
    model = build.model(build.config(processor, width=32)).eval()
    build.save(model, processor, tmp_path)
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
