"""However a pruned model is made to answer, it answers as the same tokens would at full length.

Ways of asking that once gave wrong answers without a word, each over the families it touches.
"""

import copy
import threading
from dataclasses import replace

import pytest
import tiny
import torch
import transformers
import zoo
from transformers import DynamicCache, StoppingCriteria, TextIteratorStreamer
from transformers.models.ministral3 import modeling_ministral3

import fopru
from fopru.families import Family
from fopru.versions import CHUNKS, INSTALLED

TEXT = "USER: <image> w1 w2 w3 ASSISTANT:"
PLAIN = fopru.FoPru(0.25)
MASS = fopru.FoPru(0.25, weights="mass")
INSIDE = [fopru.METHODS["fastv"](0.25), fopru.METHODS["pyramiddrop"](0.25)]
ALL = [PLAIN, MASS, *INSIDE]
TOLD = dict(max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)


def called(pruner):
    return f"{pruner.name}-{pruner.weights}"


WHOLE = ("llava", "gemma3", "qwen2_5_vl", "qwen3_5")
"""Types on which the quick tests ask with every pruner: towers with and without a CLS token, layers
that see a window, positions of three axes, linear attention. On the others they ask with one pruner
before the language model and with one inside it; the slow tests with every one."""


def everywhere(pruners):
    for family in zoo.FAMILIES:
        for pruner in pruners:
            quick = family in WHOLE or pruner in (PLAIN, INSIDE[0])
            told = {"id": f"{family}-{called(pruner)}", "marks": () if quick else pytest.mark.slow}
            yield pytest.param(family, pruner, **told)


def asked(family, seed=0, text=TEXT):
    return zoo.inputs(family, [tiny.image(60, 44, seed=seed)], text)


def pair(family):
    images = [tiny.image(60, 44), tiny.image(44, 70, seed=1)]
    return zoo.inputs(family, images, [TEXT, "w7 USER: <image> w4 w5 w6 w8 ASSISTANT:"])


def logits(model, inputs, **options):
    return torch.cat(model.generate(**inputs, **TOLD | options).logits)


# Loops of one's own


@pytest.mark.parametrize("family, pruner", everywhere([*ALL, replace(PLAIN, positions="preserve")]))
def test_a_loop_of_forwards_goes_on_where_the_pruned_prompt_ended(family, pruner):
    """Whatever mask the caller keeps, position ids left out, one row of the prompt padded."""
    model, inputs = zoo.model(family), pair(family)
    if pruner in INSIDE and family in zoo.SPATIAL:
        pytest.skip("steps of models with M-RoPE want position ids without pruning too")
    length = inputs["input_ids"].shape[1]
    masks = {"whole": inputs["attention_mask"], "none": None, "short": None}
    with pruner(model) as run, torch.no_grad():
        expected = model.generate(**inputs, **TOLD)
        # methods inside the model have callers who see a whole, padded prompt
        for name in ("whole",) if pruner in INSIDE else masks:
            out, found = model(**inputs), []
            mask = run.last["attention_mask"].clamp(max=1) if name == "short" else masks[name]
            for step in range(5):
                found.append(out.logits[:, -1])
                if mask is not None:
                    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                out = model(
                    input_ids=expected.sequences[:, length + step, None],
                    attention_mask=mask,
                    past_key_values=out.past_key_values,
                )
            torch.testing.assert_close(
                torch.cat(found), torch.cat(expected.logits), atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("family, pruner", everywhere(ALL))
def test_conversations_take_turns(family, pruner):
    """A's steps are as without B, whose prompt came between, be the cache A's own or a copy."""
    model = zoo.model(family)
    first, second = asked(family), asked(family, 7, "w7 w8 w9 USER: <image> w4 ASSISTANT:")

    def steps(cache):
        found = []
        for token in (9, 11, 13):
            out = model(input_ids=torch.tensor([[token]]), past_key_values=cache)
            found.append(out.logits[:, -1])
        return torch.cat(found)

    with torch.no_grad(), pruner(model):
        expected = steps(model(**first).past_key_values)
        cache = model(**first).past_key_values
        model(**second)
        copied = copy.deepcopy(cache)
        assert torch.equal(steps(cache), expected)
        assert torch.equal(steps(copied), expected)


def test_a_mask_of_another_length_is_refused():
    model, inputs = tiny.model(), tiny.inputs()
    with PLAIN(model), torch.no_grad():
        cache = model(**inputs).past_key_values
        with pytest.raises(ValueError, match=r"attention_mask of 30 columns: .* it has 22.* or 70"):
            model(
                input_ids=torch.tensor([[9]]),
                attention_mask=torch.ones(1, 30).long(),
                past_key_values=cache,
            )
        with pytest.raises(ValueError, match="a batch of 3 rows goes on with a KV cache .* had 2"):
            two = model(**pair("llava")).past_key_values
            model(input_ids=torch.full((3, 1), 9), past_key_values=two)


@pytest.mark.parametrize("pruner", ALL, ids=called)
def test_rows_of_a_cache_are_selected_with_what_is_known_of_them(pruner):
    model, inputs = zoo.model("llava"), pair("llava")
    token = torch.full((3, 1), 9)
    with torch.no_grad(), pruner(model):
        expected = model(
            input_ids=token[:2],
            attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1),
            past_key_values=model(**inputs).past_key_values,
        ).logits[:, -1]
        cache, rows = model(**inputs).past_key_values, torch.tensor([1, 0, 1])
        fopru.applying.select_rows(cache, rows)
        mask = torch.nn.functional.pad(inputs["attention_mask"][rows], (0, 1), value=1)
        found = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(found, expected[rows], atol=1e-5, rtol=1e-5)


# Ways of generating


@pytest.mark.parametrize("family", [f for f in zoo.FAMILIES if not f.startswith("qwen")])
def test_guidance_leaves_the_conditional_logits_as_they_are(family):
    """(Qwen's models fail under guidance without pruning too.)"""
    model, inputs = zoo.model(family), asked(family)
    with MASS(model):
        guided = model.generate(**inputs, **TOLD, guidance_scale=1.8)
        path = iter(guided.sequences[0, -5:].tolist())

        def follow(ids, scores):
            return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([next(path)]), 0)

        alone = logits(model, inputs, logits_processor=[follow])
    found = torch.cat(guided.logits)
    torch.testing.assert_close(found.log_softmax(-1), alone.log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family, pruner", everywhere([PLAIN, MASS]))
def test_drafted_tokens_change_nothing(family, pruner):
    """Prompt lookup past Gemma 3's window; another model, and the model itself, as assistant."""
    words = torch.randperm(53, generator=torch.Generator().manual_seed(0)).tolist()
    text = "USER: <image> " + " ".join(f"w{i}" for i in words) + " w1 w2 ASSISTANT:"
    model, inputs = zoo.model(family), asked(family, text=text)
    if family in zoo.LINEAR:
        pytest.skip("transformers drafts no tokens for models with a state")
    if family == "paligemma":
        pytest.skip("transformers' own drafts change its answers, pruned or not")
    with pruner(model):
        plain = logits(model, inputs, max_new_tokens=12)
        found = logits(model, inputs, max_new_tokens=12, prompt_lookup_num_tokens=3)
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
        other = type(model)(model.config).eval()
        other.generation_config.eos_token_id = None
        for assistant in (other, model):
            found = logits(model, inputs, max_new_tokens=12, assistant_model=assistant)
            torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["prumerge", "visionzip", "tome", "divprune"])
def test_kept_tokens_carry_no_gradients(name):
    """Assisted generation copies what it is called with, and training reaches the LLM only."""
    model, inputs = zoo.model("llava"), asked("llava")
    with fopru.METHODS[name](0.25)(model) as run:
        plain = logits(model, inputs)
        torch.testing.assert_close(logits(model, inputs, assistant_model=model), plain)
        model(**inputs)
    assert not any(features.requires_grad for features in run.last.features)


@pytest.mark.parametrize("family", [f for f in zoo.FAMILIES if "gemma" not in f])
def test_a_prefill_in_chunks_is_that_in_one_piece(family):
    """(Gemma's pictures are read both ways, so it differs without pruning too.)"""
    model, inputs = zoo.model(family), asked(family)
    with PLAIN(model):
        whole = logits(model, inputs)
        if INSTALLED < CHUNKS:
            with pytest.raises(ValueError, match="prefill_chunk_size=7: .*chunks to wrong"):
                logits(model, inputs, prefill_chunk_size=7)
            return
        parts = logits(model, inputs, prefill_chunk_size=7)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family, pruner", everywhere(ALL))
def test_a_mask_that_is_left_out_is_inferred_as_without_pruning(family, pruner):
    model, inputs = zoo.model(family), pair(family)
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    for each in (replace(pruner, retention=1.0), pruner):
        with each(model):
            torch.testing.assert_close(logits(model, without), logits(model, inputs))
    with replace(pruner, retention=1.0)(model):
        found = logits(model, without)
    torch.testing.assert_close(found, logits(model, without), atol=1e-4, rtol=1e-4)


class Keyword(StoppingCriteria):
    def __init__(self, word, start):
        self.word, self.start = word, start

    def __call__(self, ids, scores, **kwargs):
        return (ids[:, self.start :] == self.word).any(1)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_functions_of_token_ids_see_the_whole_prompt(family):
    model, inputs = zoo.model(family), pair(family)
    prompt, seen = inputs["input_ids"], []

    def processor(ids, scores):
        seen.append(ids)
        return scores

    def allowed(row, ids):
        assert torch.equal(ids[: prompt.shape[1]], prompt[row])
        return [[9, 10, 11], [12, 13, 14]][row][ids.shape[0] - prompt.shape[1] :][:1] or [5]

    with PLAIN(model):
        free = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        word = free[0, prompt.shape[1] + 2].item()
        single = asked(family)
        stop = [Keyword(word, single["input_ids"].shape[1])]
        alone = model.generate(**single, max_new_tokens=8, do_sample=False)
        stopped = model.generate(
            **single, max_new_tokens=8, do_sample=False, stopping_criteria=stop
        )
        new = alone[0, single["input_ids"].shape[1] :]
        first = (new == word).nonzero()
        length = first[0].item() + 1 if len(first) else 8
        assert stopped.shape[1] - single["input_ids"].shape[1] == length
        model.generate(**inputs, max_new_tokens=2, num_beams=2, logits_processor=[processor])
        forced = model.generate(
            **inputs, max_new_tokens=3, num_beams=2, prefix_allowed_tokens_fn=allowed
        )
    for ids in seen:
        assert torch.equal(ids[:, : prompt.shape[1]], prompt.repeat_interleave(2, 0))
    assert forced[:, prompt.shape[1] :].tolist() == [[9, 10, 11], [12, 13, 14]]


@pytest.mark.parametrize("pruner", ALL, ids=called)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_model_may_say_the_placeholder_itself(family, pruner):
    """What it says is not judged as a caller's picture, with a cache or without."""
    model, inputs = zoo.model(family), asked(family)
    token = Family.of(model).image_token_id
    suppressed, model.generation_config.suppress_tokens = (
        model.generation_config.suppress_tokens,
        None,
    )

    def say(ids, scores):
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([token]), 0)

    try:
        with pruner(model):
            out = model.generate(
                **inputs, max_new_tokens=3, do_sample=False, logits_processor=[say]
            )
            cache = model(**inputs).past_key_values
            model(input_ids=torch.tensor([[token]]), past_key_values=cache)
    finally:
        model.generation_config.suppress_tokens = suppressed
    assert out[0, -3:].tolist() == [token] * 3


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("family", zoo.VIDEO)
def test_videos_lose_tokens_inside_the_model(family, name):
    model, inputs = zoo.model(family), zoo.video(family)
    with torch.no_grad(), fopru.METHODS[name](0.25)(model) as run:
        model(**inputs)
    first, last = run.visual_counts[0][0], run.visual_counts[-1][0]
    token = Family.of(model).reading(inputs).image_token_id
    assert first == inputs["input_ids"].eq(token).sum()
    assert last == pytest.approx(first / 4, abs=1)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_what_was_kept_inside_the_model_is_known_per_picture(family, name):
    model, inputs = zoo.model(family), pair(family)
    with fopru.METHODS[name](0.25)(model) as run:
        assert run.last is None and run.images == ()
        model.generate(**inputs, max_new_tokens=1)
    rows = [[] for _ in run.kept]
    starts = [0] * len(rows)
    assert len(run.last.images) == len(Family.of(model).grids(inputs))
    for image in run.last.images:
        assert image.n_kept <= image.n_full
        rows[image.sample].append(image.kept + starts[image.sample])
        starts[image.sample] += image.n_full
    for row, kept in zip(rows, run.kept, strict=True):
        assert torch.equal(torch.cat(row), kept)


@pytest.mark.parametrize("positions", ["preserve", "reindex"])
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_queries_are_scaled_by_the_positions_of_the_tokens_that_are_left(
    name, positions, monkeypatch
):
    """Ministral 3 scales queries by their absolute positions."""
    seen, scale = [], modeling_ministral3.get_llama_4_attn_scale

    def noted(position_ids, *args):
        seen.append(position_ids)
        return scale(position_ids, *args)

    model, inputs = zoo.model("mistral3"), pair("mistral3")
    with fopru.METHODS[name](0.25, positions=positions)(model) as run, torch.no_grad():
        monkeypatch.setattr(modeling_ministral3, "get_llama_4_attn_scale", noted)
        out = model(**inputs, use_cache=True)
        prompt = seen[-1]
        model(input_ids=torch.full((2, 1), 9), past_key_values=out.past_key_values)
    last = run.layers[-1]
    assert last.index.shape[1] < inputs["input_ids"].shape[1]
    counted = ((~last.dead).cumsum(1) - 1).clamp(min=0)
    assert torch.equal(prompt, last.index if positions == "preserve" else counted)
    length = inputs["input_ids"].shape[1]
    after = torch.full((2, 1), length) if positions == "preserve" else counted[:, -1:] + 1
    assert torch.equal(seen[-1].expand(2, 1), after)


# Threads


@pytest.mark.parametrize("pruner", ALL, ids=called)
@pytest.mark.parametrize("family", ["llava", "internvl", "idefics3", "gemma3", "qwen2_5_vl"])
def test_threads_do_not_see_each_other(family, pruner):
    model = zoo.model(family)
    prompts = [asked(family, seed, f"USER: <image> w{9 + seed} w2 ASSISTANT:") for seed in range(6)]
    with pruner(model):
        expected = [logits(model, prompt) for prompt in prompts]
    found, start = [None] * 6, threading.Barrier(2)

    def work(mine):
        start.wait()
        for i in range(mine, 6, 2):
            found[i] = logits(model, prompts[i])

    with pruner(model):
        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_threads_may_project_tokens_of_their_own():
    """PruMerge projects what it made while another thread listens at the projector."""
    model, merging = zoo.model("llava"), fopru.METHODS["prumerge"](0.25)
    expected = merging.prune(model, asked("llava")).features[0]
    listening = fopru.METHODS["visionzip"](0.25)
    wanted, heard = threading.Event(), threading.Event()
    pictures = Family.pictures

    def slow(self, inputs):
        wanted.set()
        heard.wait(timeout=60)
        return pictures(self, inputs)

    encoded, found = fopru.encode(model, asked("llava"), [merging]), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Family, "pictures", slow)
        thread = threading.Thread(
            target=lambda: found.append(fopru.encode(model, asked("llava"), [merging, listening]))
        )
        thread.start()
        wanted.wait(timeout=60)
        torch.testing.assert_close(merging.compact(encoded).features[0], expected)
        heard.set()
        thread.join()
    torch.testing.assert_close(merging.compact(found[0]).features[0], expected)


@pytest.mark.parametrize("pruner", ALL, ids=called)
def test_answers_stream_out_of_a_thread(pruner):
    model, inputs = zoo.model("llava"), asked("llava")
    streamer = TextIteratorStreamer(tiny.tokenizer(), skip_prompt=True, timeout=60)
    options = dict(max_new_tokens=5, do_sample=False)
    with pruner(model):
        expected = model.generate(**inputs, **options)
        arguments = dict(inputs, streamer=streamer, **options)
        thread = threading.Thread(target=model.generate, kwargs=arguments)
        thread.start()
        said = "".join(streamer)
        thread.join()
    answer = tiny.tokenizer().decode(expected[0, inputs["input_ids"].shape[1] :])
    assert said.split() == answer.split()


@pytest.mark.parametrize("pruner", ALL, ids=called)
def test_two_models_may_share_a_config(pruner):
    one = zoo.model("llava")
    other = type(one)(one.config).eval()
    other.load_state_dict(one.state_dict())
    other.generation_config = one.generation_config
    inputs = asked("llava")
    with pruner(one):
        expected = logits(one, inputs)
        with pruner(other):
            torch.testing.assert_close(logits(other, inputs), expected)
        torch.testing.assert_close(logits(one, inputs), expected)
        found = []
        with pruner(other):
            threads = [
                threading.Thread(target=lambda m=m: found.append(logits(m, inputs)))
                for m in (one, other) * 3
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(found) == 6
    for each in found:
        torch.testing.assert_close(each, expected)
    assert one.config.text_config._attn_implementation == "sdpa"
    assert one.config.vision_config._attn_implementation == "sdpa"


# Nothing is left behind


def traces(model):
    """What a block may have left on a model."""
    family = Family.of(model)
    return (
        {n for n in ("generate", "forward", "prepare_inputs_for_generation") if n in vars(model)},
        "__deepcopy__" in vars(model),
        [part.config._attn_implementation for part in (family.tower, family.decoder)],
        sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()),
    )


@pytest.mark.parametrize("pruner", ALL, ids=called)
def test_a_copy_made_within_the_block_is_a_model_of_its_own(pruner, tmp_path):
    model, inputs = zoo.model("llava"), asked("llava")
    expected, clean = logits(model, inputs), traces(model)  # transformers hooks its own at first
    with pruner(model):
        pruned = logits(model, inputs)
        copied = copy.deepcopy(model)
        model.save_pretrained(tmp_path)
        assert traces(copied) == clean
        torch.testing.assert_close(logits(copied, inputs), expected)
        with torch.no_grad():
            copied.lm_head.weight.zero_()
        torch.testing.assert_close(logits(model, inputs), pruned)
        with pruner(copied):
            assert (logits(copied, inputs) == 0).all()
    assert traces(model) == clean
    torch.testing.assert_close(logits(model, inputs), expected)
    saved = type(model).from_pretrained(tmp_path).eval()
    assert traces(saved)[:3] == clean[:3]
    assert "fopru" not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(logits(saved, inputs), expected)


@pytest.mark.parametrize("pruner", ALL, ids=called)
@pytest.mark.parametrize("place", ["tower", "decoder", "head"])
def test_an_interrupt_leaves_no_trace(pruner, place):
    model, inputs = zoo.model("llava"), asked("llava")
    expected, clean = logits(model, inputs), traces(model)  # transformers hooks its own at first
    family = Family.of(model)
    module = {"tower": family.tower, "decoder": family.decoder.layers[-1], "head": model.lm_head}
    calls = []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 2 or place == "tower":
            raise KeyboardInterrupt

    hook = module[place].register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), pruner(model):
            model.generate(**inputs, max_new_tokens=4)
    finally:
        hook.remove()
    assert traces(model) == clean
    torch.testing.assert_close(logits(model, inputs), expected)
    with pruner(model):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("family, pruner", everywhere(ALL))
def test_names_and_places_of_arguments_do_not_matter(family, pruner):
    model, inputs = zoo.model(family), asked(family)
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    options = dict(max_new_tokens=2, do_sample=False)
    with pruner(model), torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(model.forward(**inputs).logits, expected)
        assert torch.equal(model(inputs["input_ids"], **others).logits, expected)
        said = model.generate(**inputs, **options)
        assert torch.equal(model.generate(inputs=inputs["input_ids"], **others, **options), said)
        assert torch.equal(model.generate(inputs["input_ids"], **others, **options), said)


def test_inputs_that_were_pruned_elsewhere_carry_no_weights_of_another_prompt():
    model, first, second = zoo.model("llava"), asked("llava"), asked("llava", 1)
    pruned = PLAIN.prune(model, second)
    with torch.no_grad():
        expected = model(**pruned).logits
        with MASS(model):
            assert torch.equal(model(**pruned).logits, expected)
            model(**first)
            assert torch.equal(model(**pruned).logits, expected)


@pytest.mark.parametrize("pruner", ALL, ids=called)
def test_a_pruner_stays_attached_until_it_is_removed(pruner):
    model, inputs = zoo.model("llava"), asked("llava")
    expected, clean = logits(model, inputs), traces(model)
    with pruner(model) as run:
        pruned, kept = logits(model, inputs), run.kept
    handle = pruner.attach(model)
    try:
        torch.testing.assert_close(logits(model, inputs), pruned)
        assert torch.equal(handle.session.kept[0], kept[0])
        with pytest.raises(RuntimeError, match=r"another pruner is at work .* `remove\(\)` of its"):
            pruner.attach(model)
    finally:
        handle.remove()
    handle.remove()
    assert traces(model) == clean
    torch.testing.assert_close(logits(model, inputs), expected)


# What cannot be done is refused by name


@pytest.mark.parametrize("first, second", [(PLAIN, INSIDE[0]), (INSIDE[1], MASS)], ids=str)
def test_a_cache_of_another_kind_of_pruner_is_refused(first, second):
    model, inputs = zoo.model("llava"), asked("llava")
    with first(model):
        out = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
    with second(model), pytest.raises(ValueError, match="a pruner of another kind shortened"):
        model(input_ids=out.sequences[:, -1:], past_key_values=out.past_key_values)
    with second(model), torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize("pruner", INSIDE, ids=called)
@pytest.mark.parametrize(
    "options, reason",
    [
        ({"use_cache": False}, "use_cache=False: .*tokens are chosen once"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3: .*drafted tokens"),
        ({"prefill_chunk_size": 7}, "prefill_chunk_size=7: .*whole prompt"),
        ({"cache_implementation": "static"}, "a static cache .* use a dynamic cache"),
        ({"assistant_model": None}, "assistant_model=Llava.*: .*drafted tokens"),
    ],
)
def test_what_does_not_go_with_dropping_tokens_between_layers(pruner, options, reason):
    model = zoo.model("llava")
    if "assistant_model" in options:
        options = {"assistant_model": model}
    with pruner(model), pytest.raises(ValueError, match=reason):
        model.generate(**asked("llava"), max_new_tokens=2, **options)


@pytest.mark.parametrize("family, pruner", everywhere(ALL))
def test_embeddings_in_place_of_ids_are_refused_with_pictures(family, pruner):
    model, inputs = zoo.model(family), dict(asked(family))
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pruner(model), pytest.raises(ValueError, match="pictures were given with inputs_embeds"):
        model.generate(inputs_embeds=embeddings, **inputs)
    with pruner(model), pytest.raises(ValueError, match="pictures were given with inputs_embeds"):
        model(inputs_embeds=embeddings, **inputs)


def test_padded_prompts_without_a_mask_are_not_pruned_outside_of_a_block():
    model, inputs = zoo.model("llava"), dict(pair("llava"))
    expected = PLAIN.prune(model, inputs)
    del inputs["attention_mask"]
    with pytest.raises(ValueError, match="attention_mask is missing, and input_ids hold padding"):
        PLAIN.prune(model, inputs)
    single = {n: v for n, v in asked("llava").items() if n != "attention_mask"}
    assert PLAIN.prune(model, single)["attention_mask"].all()
    assert expected["attention_mask"].shape[0] == 2


@pytest.mark.parametrize("pruner", ALL, ids=called)
@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_5_vl"])
def test_a_cache_may_hold_the_text_before_the_picture(family, pruner):
    model, inputs = zoo.model(family), asked(family, text="w4 w5 USER: <image> w1 ASSISTANT:")
    cache = DynamicCache(config=Family.of(model).decoder.config)
    before = inputs["input_ids"][:, :2]
    if pruner in INSIDE:
        with pruner(model), torch.no_grad():
            model(input_ids=before, past_key_values=cache)
            with pytest.raises(ValueError, match="holds the first 2 tokens .* reads prompts whole"):
                model.generate(**inputs, past_key_values=cache, max_new_tokens=2)
        return
    with pruner(model), torch.no_grad():
        expected = logits(model, inputs)
        model(input_ids=before, past_key_values=cache)
        found = logits(model, inputs, past_key_values=cache)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pruner", INSIDE, ids=called)
def test_checkpointing_in_training_is_refused_inside_the_model(pruner):
    model, inputs = copy.deepcopy(zoo.model("llava")), asked("llava")
    model.train()
    model.gradient_checkpointing_enable()
    with pruner(model), pytest.raises(ValueError, match="gradient checkpointing runs layers"):
        model(**inputs)


@pytest.mark.parametrize("pruner", [PLAIN, MASS], ids=called)
def test_training_goes_through_checkpoints(pruner):
    model, inputs = copy.deepcopy(zoo.model("llava")), asked("llava")
    model.train()
    losses, gradients = [], []
    for checkpoint in (False, True):
        model.zero_grad()
        if checkpoint:
            model.gradient_checkpointing_enable()
        with pruner(model):
            out = model(**inputs, labels=inputs["input_ids"], use_cache=False)
            out.loss.backward()
        losses.append(out.loss.detach())
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("pruner", INSIDE, ids=called)
def test_a_sequence_longer_than_the_window_is_refused_inside_the_model(pruner):
    net = zoo.model("gemma3")
    config = copy.deepcopy(net.config)
    config.text_config.sliding_window = 8
    model = type(net)(config).eval()
    with pruner(model), pytest.raises(fopru.UnsupportedModelError, match="the window of 8"):
        model.generate(**asked("gemma3"), max_new_tokens=2)


RENAMED = {
    "past_key_values": "memory",
    "cache": "memory",
    "attention_mask": "masking",
    "position_embeddings": "rotations",
}


@pytest.mark.parametrize("name", ["cache", "attention_mask", "position_embeddings"])
@pytest.mark.parametrize("pruner", INSIDE, ids=called)
def test_a_renamed_layer_argument_is_an_error_that_names_the_version(pruner, name):
    """As if a later transformers called it something else: never on without it."""
    model = copy.deepcopy(zoo.model("llava"))
    names = {name} | ({"past_key_values"} if name == "cache" else set())
    for layer in Family.of(model).decoder.layers:
        forward = layer.forward

        def renamed(*args, forward=forward, **kwargs):
            back = {RENAMED[n]: n for n in names}
            return forward(*args, **{back.get(n, n): v for n, v in kwargs.items()})

        layer.forward = renamed
        call = type(layer).__call__
        layer.__class__ = type(
            "Renamed",
            (type(layer),),
            {
                "__call__": lambda self, *args, call=call, **kwargs: call(
                    self,
                    *args,
                    **{RENAMED[n] if n in names else n: v for n, v in kwargs.items()},
                )
            },
        )
    version = transformers.__version__
    with (
        pruner(model),
        pytest.raises(
            fopru.UnsupportedModelError, match=f"called without .*{version}, .* proven on 5.19 to"
        ),
    ):
        model.generate(**asked("llava"), max_new_tokens=2)


def test_masks_made_without_what_weights_need_are_an_error(monkeypatch):
    model = zoo.model("llava")
    with MASS(model):
        mask = transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["fopru_sdpa"]

        def without(*args, kv_offset, **kwargs):
            return mask(*args, **kwargs)

        monkeypatch.setitem(
            transformers.masking_utils.AttentionMaskInterface._global_mapping,
            "fopru_sdpa",
            without,
        )
        with pytest.raises(fopru.UnsupportedModelError, match="masks are made without kv_length"):
            model(**asked("llava"))
