import copy

import pytest
import reference
import tiny
import torch
from test_pruner import FAMILIES, answers, batch
from transformers import DynamicCache, GenerationConfig, pipeline
from transformers.generation.streamers import BaseStreamer, TextIteratorStreamer

import fopru


@pytest.mark.parametrize("family", FAMILIES)
def test_output_starts_with_the_original_prompt_and_goes_on_as_pruned(family):
    model, inputs, pruner = tiny.model(family), batch(family), fopru.FoPru(0.25)
    expected = answers(model, pruner.prune(model, inputs))
    with pruner(model) as run:
        assert run.last is None
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    prompt = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :prompt], inputs["input_ids"])
    assert torch.equal(out[:, prompt:], expected)
    assert run.last.images[0].n_kept < run.last.images[0].n_full
    assert "max_new_tokens" not in run.last


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_return_sequences": 2, "num_beams": 2},
        {"cache_implementation": "static"},
    ],
)
def test_retention_one_changes_nothing(family, options):
    model, inputs = tiny.model(family), batch(family)
    plain = model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
    with fopru.FoPru(1.0)(model):
        assert torch.equal(
            model.generate(**inputs, max_new_tokens=6, do_sample=False, **options), plain
        )
        logits = model(**inputs).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[mask], model(**inputs).logits[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("limits", [{"max_length": 150, "min_length": 150}, {"max_length": 140}])
def test_lengths_count_the_original_prompt(limits):
    model, inputs = tiny.model(), batch("llava")
    plain = model.generate(**inputs, do_sample=False, **limits)
    with fopru.FoPru(0.25)(model):
        by_name = model.generate(**inputs, do_sample=False, **limits)
        by_config = model.generate(
            **inputs,
            generation_config=GenerationConfig(
                do_sample=False, pad_token_id=0, suppress_tokens=[4], **limits
            ),
        )
    assert by_name.shape == plain.shape == (2, limits["max_length"])
    assert torch.equal(by_config, by_name)


def test_return_dict_scores_and_positional_arguments():
    model, inputs = tiny.model(), tiny.inputs()
    config = GenerationConfig(
        max_new_tokens=4,
        do_sample=False,
        suppress_tokens=[4],
        return_dict_in_generate=True,
        output_scores=True,
    )
    with fopru.FoPru(0.25)(model):
        ids = inputs.pop("input_ids")
        out = model.generate(ids, config, **inputs)
        loss_and_logits = model(ids, inputs["pixel_values"], inputs["attention_mask"], labels=ids)
    assert out.sequences.shape == (1, ids.shape[1] + 4)
    assert torch.equal(out.sequences[0, ids.shape[1] :], torch.stack(out.scores).argmax(-1)[:, 0])
    assert loss_and_logits.logits.shape[1] == ids.shape[1] - 48
    assert loss_and_logits.loss.isfinite()


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended = True


def test_streamers_see_the_original_prompt_then_the_new_tokens():
    model, inputs, recorder = tiny.model(), tiny.inputs(), Recorder()
    with fopru.FoPru(0.25)(model):
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False, streamer=recorder)
        text = TextIteratorStreamer(tiny.tokenizer(), skip_prompt=True)
        model.generate(**inputs, max_new_tokens=5, do_sample=False, streamer=text)
    assert torch.equal(recorder.values[0], inputs["input_ids"])
    assert torch.equal(torch.cat([v.flatten() for v in recorder.values]), out[0])
    assert recorder.ended
    answer = tiny.tokenizer().decode(out[0, inputs["input_ids"].shape[1] :])
    assert "".join(text).split() == answer.split()


def test_pipelines():
    model, processor = tiny.model(), tiny.processor()
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": tiny.image()},
                {"type": "text", "text": "w1 w2"},
            ],
        }
    ]

    def ask():
        return pipe(
            text=messages,
            return_full_text=False,
            generate_kwargs={"do_sample": False, "max_new_tokens": 5},
        )[0]["generated_text"]

    with fopru.FoPru(1.0)(model):
        same = ask()
    assert same == ask()
    with fopru.FoPru(0.25)(model) as run:
        pruned = ask()
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = tiny.inputs(texts=text)
    direct = answers(model, fopru.FoPru(0.25).prune(model, inputs))[0, :5]
    assert pruned.split() == processor.decode(direct).split()
    assert run.last.images[0].n_kept == 16


def test_text_only_calls_pass_through():
    model = tiny.model()
    inputs = {"input_ids": torch.tensor([[5, 9, 10, 6]]), "attention_mask": torch.ones(1, 4).long()}
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with fopru.FoPru(0.25)(model) as run:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    assert run.last is None


@pytest.mark.parametrize("positions", ["reindex", "preserve"])
def test_an_outer_loop_of_forward_calls_equals_generate(positions):
    model, inputs = tiny.model(), tiny.inputs()
    with fopru.FoPru(0.25, positions=positions)(model) as run:
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:]
        cache, found = DynamicCache(config=model.config.text_config), []
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits
        length = inputs["input_ids"].shape[1]
        for step in range(4):
            logits[..., tiny.IMAGE_TOKEN_ID] = -torch.inf
            found.append(logits[:, -1].argmax(-1))
            place = length + step if positions == "preserve" else cache.get_seq_length()
            logits = model(
                input_ids=found[-1][:, None],
                past_key_values=cache,
                position_ids=torch.tensor([[place]]),
            ).logits
    assert torch.equal(torch.cat(found), expected)
    assert cache.get_seq_length() == run.last["input_ids"].shape[1] + 4


@pytest.mark.parametrize("positions", ["reindex", "preserve"])
@pytest.mark.parametrize("weights", ["none", "mass", "restore"])
def test_a_second_turn_goes_on_where_the_pruned_prompt_ended(positions, weights):
    model, inputs = tiny.model(), batch("llava")
    pruner = fopru.FoPru(0.25, positions=positions, weights=weights)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    words = torch.tensor([[9, 10, 11], [12, 13, 14]])
    with pruner(model) as run:
        first = model.generate(**inputs, **options)
        longer = torch.cat([first.sequences, words], 1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 7), value=1)
        found = []
        for arguments in (
            {"input_ids": longer, "attention_mask": mask},  # the whole conversation
            {"input_ids": longer, "attention_mask": mask, "pixel_values": inputs["pixel_values"]},
        ):
            cache = copy.deepcopy(first.past_key_values)
            found.append(model.generate(**arguments, past_key_values=cache, **options))
        short = first.past_key_values.get_seq_length()
        assert short == run.last["input_ids"].shape[1] + 3
        # by hand: the last token that was said is not in the cache yet
        new = torch.cat([first.sequences[:, -1:], words], 1)
        logits = model(input_ids=new, past_key_values=copy.deepcopy(first.past_key_values)).logits
        apart = model.generate(**dict(zip(inputs, inputs.values(), strict=True)), **options)
        assert torch.equal(apart.sequences, first.sequences)
        # all at once, without a cache: the same kept tokens, and the text that follows
        kept = run.last
        later = torch.cat([first.sequences[:, inputs["input_ids"].shape[1] :], words], 1)
        whole = {
            "input_ids": torch.cat([kept["input_ids"], later], 1),
            "attention_mask": torch.nn.functional.pad(kept["attention_mask"], (0, 7), value=1),
            "mm_encoder_outputs": kept["mm_encoder_outputs"],
        }
        if kept.get("position_ids") is not None:
            ahead = kept["position_ids"][:, -1:] + torch.arange(1, 8)
            whole["position_ids"] = torch.cat([kept["position_ids"], ahead], 1)
        else:
            whole["position_ids"] = (whole["attention_mask"].cumsum(1) - 1).clamp(min=0)
        expected = model(**whole).logits[:, -1]
    for second in found:
        assert torch.equal(second.sequences[:, : longer.shape[1]], longer)
        assert torch.equal(second.sequences, found[0].sequences)
    torch.testing.assert_close(logits[:, -1], expected, atol=1e-5, rtol=1e-5)
    expected[:, tiny.IMAGE_TOKEN_ID] = -torch.inf
    assert torch.equal(found[0].sequences[:, longer.shape[1]], expected.argmax(-1))


def test_a_picture_for_a_cache_that_holds_tokens_is_refused():
    model, inputs = tiny.model(), tiny.inputs()
    for pruner in (fopru.FoPru(0.25), fopru.METHODS["fastv"](0.25)):
        with pruner(model):
            out = model(**inputs)
            with pytest.raises(ValueError, match="a picture was given together with a KV cache"):
                model(**inputs, past_key_values=out.past_key_values)
    with fopru.FoPru(0.25)(model):
        out = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        longer = {"input_ids": torch.cat([out.sequences, inputs["input_ids"]], 1)}
        with pytest.raises(ValueError, match="pictures belong to the beginning"):
            model.generate(
                **longer,
                pixel_values=inputs["pixel_values"].repeat(2, 1, 1, 1),
                past_key_values=out.past_key_values,
            )


def test_forward_without_cache_keeps_gapped_positions_right():
    model, inputs = tiny.model(), tiny.inputs()
    with fopru.FoPru(0.25, positions="preserve")(model) as run, torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0]
    expected = reference.masked_logits(model, inputs, run.last)[0]
    assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("how", ["argument", "config"])
def test_generate_with_preserved_positions_and_no_cache_is_refused(how):
    model, inputs = tiny.model(), tiny.inputs()
    options = (
        {"use_cache": False}
        if how == "argument"
        else {"generation_config": GenerationConfig(use_cache=False)}
    )
    with (
        fopru.FoPru(0.25, positions="preserve")(model),
        pytest.raises(ValueError, match="positions='preserve' with use_cache=False"),
    ):
        model.generate(**inputs, max_new_tokens=2, **options)


def test_already_pruned_inputs_pass_through():
    model, inputs = tiny.model(), tiny.inputs()
    pruned = fopru.FoPru(0.25).prune(model, inputs)
    expected = model.generate(**pruned, max_new_tokens=4, do_sample=False)
    with fopru.Random(0.5)(model):
        assert torch.equal(model.generate(**pruned, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize("error", [None, KeyError])
def test_leaving_restores_the_model(error):
    model, inputs = tiny.model(), tiny.inputs()
    before = copy.copy(model.__dict__)
    hooks = dict(model._forward_pre_hooks)
    expected = answers(model, inputs)
    try:
        with fopru.FoPru(0.25)(model):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            if error:
                raise error
    except KeyError:
        pass
    assert model.__dict__.keys() == before.keys()
    assert "generate" not in model.__dict__
    assert dict(model._forward_pre_hooks) == hooks
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert torch.equal(answers(model, inputs), expected)


def test_someone_elses_wrapper_on_the_instance_is_used_and_comes_back():
    model, inputs, calls = tiny.model(), tiny.inputs(), []
    inner = model.generate

    def theirs(**kwargs):
        calls.append(kwargs["input_ids"].shape[1])
        return inner(**kwargs)

    model.generate = theirs
    with fopru.FoPru(0.25)(model):
        model.generate(**inputs, max_new_tokens=1)
    assert model.generate is theirs
    assert calls == [inputs["input_ids"].shape[1] - 48]


def test_a_pruner_inside_a_pruner():
    model = tiny.model()
    with fopru.FoPru(0.25)(model):
        with (
            pytest.raises(RuntimeError, match="another pruner is at work on this LlavaFor"),
            fopru.Random(0.5)(model),
        ):
            pass
        assert "generate" in model.__dict__
    with fopru.Random(0.5)(model), fopru.FoPru(0.25)(tiny.model(seed=1)):
        pass
