"""The ways of asking. Each computes the truth, then asks inside the block, and compares."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Barrier, Thread

import cases
import torch
import torch.nn.functional as F
import zoo
from scene import Scene, Wrong
from transformers import DynamicCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import fopru
import fopru.applying
from fopru.families import Family

WAYS: dict[str, "Way"] = {}
TOLD = (9, 11, 13)
"""Tokens that own loops go on with."""


@dataclass(frozen=True)
class Way:
    run: Callable[[Scene], None]
    single: bool = False
    """Whether the batch is one row."""
    forward: bool = False
    """Whether the model is called without `generate`: no mask is inferred then, either side may be
    padded."""


def way(**traits):
    def register(run):
        WAYS[run.__name__] = Way(run, **traits)
        return run

    return register


def asked(scene, options, truth=None, logits=True, **more):
    """Truth by `truth` (or the same options), the answer in the block by `options`."""
    right = scene.truth(truth or options)
    with scene.block() as run:
        found = scene.ask(options, **more)
        scene.check(run)
    scene.same(found, right, logits)


def told(**options):
    return lambda prompt: dict(options)


# Greedy words, in ways that must not matter


@way()
def greedy(scene):
    asked(scene, told())


@way(single=True)
def lookup(scene):
    asked(scene, told(prompt_lookup_num_tokens=2 + scene.case.option % 2), told())


@way(single=True)
def assisted(scene):
    helper = cases.assistant(scene.case.family)
    asked(scene, told(assistant_model=helper), told())


@way(single=True)
def self_assisted(scene):
    asked(scene, told(assistant_model=scene.model), told())


@way()
def chunks(scene):
    asked(scene, told(prefill_chunk_size=(3, 7, 20)[scene.case.option % 3]), told())


@way()
def static_cache(scene):
    asked(scene, told(cache_implementation="static"), told())


@way()
def no_cache(scene):
    asked(scene, told(use_cache=False), told())


@way()
def cache_of_ones_own(scene):
    right = scene.truth(told())
    with scene.block() as run:
        cache = DynamicCache(config=scene.model.config.get_text_config())
        found = scene.ask(told(), past_key_values=cache)
        scene.check(run)
    scene.same(found, right)


@way()
def twice(scene):
    right = scene.truth(told())
    with scene.block() as run:
        for _ in range(2):
            scene.same(scene.ask(told()), right)
        scene.check(run)


@way()
def interrupted(scene):
    """A call that dies at its second step, then the same call whole."""
    right = scene.truth(told())

    steps = []

    def stop(ids, scores):
        steps.append(ids)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return scores

    with scene.block() as run:
        try:
            scene.ask(told(logits_processor=[stop]))
        except KeyboardInterrupt:
            pass
        else:
            raise Wrong("nothing was interrupted")
        found = scene.ask(told())
        scene.check(run)
    scene.same(found, right)


@way()
def lengths(scene):
    """`max_length` and `min_length` count the prompt."""

    def options(prompt):
        n = prompt.shape[1] + scene.case.tokens
        return {"max_new_tokens": None, "max_length": n, "min_length": n - 1}

    asked(scene, options)


# Words that are drawn or searched


@way()
def sampling(scene):
    asked(scene, told(do_sample=True, temperature=0.7, top_k=20))


@way()
def sequences(scene):
    asked(scene, told(do_sample=True, num_return_sequences=2))


@way()
def beams(scene):
    asked(scene, told(num_beams=2 + scene.case.option % 2), logits=False)


@way()
def several_beams(scene):
    asked(scene, told(num_beams=3, num_return_sequences=2), logits=False)


@way()
def beams_on_a_static_cache(scene):
    asked(
        scene,
        told(num_beams=2, cache_implementation="static"),
        told(num_beams=2),
        logits=False,
    )


# Callbacks, which see the prompt as the caller gave it


@way()
def guidance(scene):
    asked(scene, told(guidance_scale=1.8))


@way()
def penalties(scene):
    asked(scene, told(repetition_penalty=1.7, no_repeat_ngram_size=2))


class Seen:
    """A callback that looks at the ids from the prompt's start on."""

    def __init__(self, prompt):
        self.prompt = prompt
        self.length = prompt.shape[1]

    def new(self, ids):
        prompt = self.prompt.repeat_interleave(len(ids) // len(self.prompt), 0)
        if not torch.equal(ids[:, : self.length], prompt):
            raise Wrong(f"a callback sees {tuple(ids.shape)} ids that do not begin as the prompt")
        return ids[:, self.length :]


class Favour(Seen):
    """A logits processor that favours a word by the number of new tokens."""

    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[:, 20 + self.new(ids).shape[1]] += 1.5
        return scores


@way()
def processor(scene):
    asked(scene, lambda prompt: {"logits_processor": [Favour(prompt)]})


class Keyword(Seen, StoppingCriteria):
    """LLaVA's: stops at a word, looked for after the prompt."""

    def __init__(self, prompt, words):
        super().__init__(prompt)
        self.words = words

    def __call__(self, ids, scores, **kwargs):
        return torch.isin(self.new(ids), self.words).any(1)


@way()
def stopping(scene):
    """Stops where it must: at the second word of the first row."""
    words = scene.truth(told())[0][0, 1:2]

    def options(prompt):
        return {"stopping_criteria": [Keyword(prompt, words)]}

    asked(scene, options, max_new_tokens=scene.case.tokens)


@way()
def allowed_words(scene):
    def options(prompt):
        seen = Seen(prompt)

        def allowed(row, sent):
            if not torch.equal(sent[: seen.length], prompt[row]):
                raise Wrong("prefix_allowed_tokens_fn does not see the prompt")
            step = len(sent) - seen.length
            return [20 + step, 25 + step, 30 + row]

        return {"prefix_allowed_tokens_fn": allowed, "num_beams": 1 + scene.case.option % 3}

    asked(scene, options, logits=False)


@way(single=True)
def says_the_placeholder(scene):
    """The model itself says the picture's token id; a twin has another id with its embedding."""
    spare = 60
    if scene.merges and not scene.whole:
        return
    twin = Scene(scene.case, scene.pruned)
    twin.model = copy.deepcopy(scene.model)
    table = twin.model.get_input_embeddings().weight
    with torch.no_grad():
        table[spare] = table[scene.token]

    def options(word):
        steps = []

        def say(ids, scores):
            steps.append(ids)
            if len(steps) == 1 + scene.case.option % 2:
                return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([word]), 0)
            return scores.index_fill(1, torch.tensor([spare]), -torch.inf)

        return lambda prompt: {"logits_processor": [say]}

    _words, right = twin.truth(options(spare))
    with scene.block() as run:
        _new, found = scene.ask(options(scene.token))
        scene.check(run)
    ids = [i for i in range(right[0].shape[1]) if i != spare]
    scene.close(torch.stack(found, 1)[..., ids], torch.stack(right, 1)[..., ids], "logits by step")


# Without generate


@way(forward=True)
def forward(scene):
    """One call; of each row the logits of what its last layer sees, to the prompt's end."""
    if scene.merges and not scene.whole:
        return
    right = scene.read()
    with scene.block() as run:
        more = scene.cached()
        if not scene.reindex and scene.case.option == 5:
            more["position_ids"] = scene.position_ids
        found = scene.forward(scene.called(), **more).logits
        scene.check(run)
    for row, (places, logits) in enumerate(zip(scene.left(), found, strict=True)):
        ended = scene.case.padding == "right"
        mine = logits[: len(places)] if ended else logits[len(logits) - len(places) :]
        scene.close(mine[-3:], right[row, places[-3:]], f"row {row}")


def loop_of(first, step):
    """Logits (3, V) after the prompt and after each token of TOLD but the last."""
    out, found = first, [first.logits[0, -1]]
    for i, token in enumerate(TOLD):
        out = step(torch.tensor([[token]]), out.past_key_values, i + 1)
        found.append(out.logits[0, -1])
    return torch.stack(found)


def right_of(scene):
    return scene.read(torch.tensor([TOLD]))[0, scene.length - 1 :]


def stepper(scene):
    """The caller's next forward: with or without the mask as the caller knows it, and with position
    ids where they stay what they were (M-RoPE numbers a step by the last prompt of the model)."""
    counted = scene.case.family in zoo.SPATIAL and scene.case.way == "two_conversations"

    def step(ids, cache, i):
        more, place = {}, scene.length + i - 1
        if scene.case.option >= 3:
            more["attention_mask"] = torch.ones(1, place + 1, dtype=torch.int64)
        if counted or (not scene.reindex and scene.case.option % 3 == 2):
            more["position_ids"] = scene.position_ids[..., place : place + 1]
        return scene.forward({"input_ids": ids}, past_key_values=cache, use_cache=True, **more)

    return step


@way(single=True, forward=True)
def own_loop(scene):
    if scene.merges and not scene.whole:
        return
    right = right_of(scene)
    with scene.block() as run:
        first = scene.forward(scene.called(), use_cache=True)
        found = loop_of(first, stepper(scene))
        scene.check(run)
    scene.close(found, right, "logits by step")


@way(single=True, forward=True)
def loop_with_the_runs_mask(scene):
    """As the README's users of `run.last` do it: its mask and positions, made longer."""
    if scene.merges or scene.inside or scene.whole:
        return
    right = right_of(scene)
    with scene.block() as run:
        first = scene.forward(scene.called(), use_cache=True)
        mask, places = run.last["attention_mask"], run.last.get("position_ids")

        def step(ids, cache, i):
            more = {} if places is None else {"position_ids": places[..., -1:] + i}
            return scene.forward(
                {"input_ids": ids},
                past_key_values=cache,
                attention_mask=F.pad(mask, (0, i), value=1),
                use_cache=True,
                **more,
            )

        found = loop_of(first, step)
    scene.close(found, right, "logits by step")


@way(single=True, forward=True)
def two_conversations(scene):
    """Another prompt is read between a prompt and its steps."""
    if scene.merges and not scene.whole:
        return
    right = right_of(scene)
    other = replace(scene.case, rows=(cases.Row(scene.case.option % 5, (3,)),), video=False)
    with scene.block():
        first = scene.forward(scene.called(), use_cache=True)
        scene.forward(cases.inputs(other), use_cache=True)
        found = loop_of(first, stepper(scene))
    scene.close(found, right, "logits by step")


@way(single=True)
def second_turn(scene):
    """generate, then the cache that it left with new text only."""
    if scene.merges and not scene.whole:
        return
    with scene.block() as run:
        new, _ = scene.ask(told())
        more = torch.cat([new[:, -1:], torch.tensor([TOLD])], 1)
        mask = {}
        if scene.case.option >= 3:
            n = scene.length + new.shape[1] + len(TOLD)
            mask = {"attention_mask": torch.ones(1, n, dtype=torch.int64)}
        found = scene.forward(
            {"input_ids": more}, past_key_values=scene.out.past_key_values, **mask
        ).logits[0]
        scene.check(run)
    right = scene.read(torch.cat([new[:, :-1], more], 1))[0, -len(found) :]
    scene.close(found, right)


@way(single=True)
def second_turn_through_generate(scene):
    """generate, then generate on its cache with all that was said and new text."""
    if scene.merges and not scene.whole:
        return
    with scene.block():
        scene.ask(told())
        longer = torch.cat([scene.out.sequences, torch.tensor([TOLD])], 1)
        out = scene.model.generate(
            longer,
            past_key_values=scene.out.past_key_values,
            attention_mask=torch.ones_like(longer),
            max_new_tokens=2,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    right = scene.read(longer[:, scene.length :])[0, -1]
    scene.close(out.logits[0][0][None], right[None])


@way()
def two_threads(scene):
    """Two callers at once, each with its prompt."""
    rows = (cases.Row((scene.case.option + 1) % 5, (scene.case.option % 4,)),)
    case = replace(scene.case, rows=rows, video=False, thread=False)
    scene.case = replace(scene.case, thread=False)
    other = Scene(case, scene.pruned)
    right = [s.truth(told()) for s in (scene, other)]
    found, start = [[], []], Barrier(2)

    def work(i, one):
        start.wait()
        for _ in range(3):
            try:
                found[i].append(one.ask(told()))
            except Exception as error:
                found[i].append(error)

    with scene.block():
        threads = [Thread(target=work, args=pair) for pair in enumerate((scene, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, answers, truth in zip((scene, other), found, right, strict=True):
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            one.same(answer, truth)


@way()
def inputs_pruned_before(scene):
    """`prune`, then generate outside of any block."""
    right = scene.truth(told())
    if not scene.any:
        scene.same(scene.generate(scene.called(), scene.prompt, told()), right)
        return
    pruned = scene.pruner.prune(scene.model, scene.called())
    scene.same(scene.generate(pruned, pruned["input_ids"], told()), right)


@way()
def inputs_encoded_once(scene):
    """`encode` for several pruners, then this one's `compact`."""
    right = scene.truth(told())
    if not scene.any:
        scene.same(scene.generate(scene.called(), scene.prompt, told()), right)
        return
    others = [fopru.Random(0.5), fopru.FoPru(0.3)]
    encoded = fopru.encode(scene.model, scene.called(), [*others, scene.pruner])
    pruned = scene.pruner.compact(encoded)
    scene.same(scene.generate(pruned, pruned["input_ids"], told()), right)


# Caches that are handed around


def continued(scene, cache, suffix):
    """First logits of `generate` on a cache, with the whole conversation and a suffix."""
    longer = torch.cat([scene.prompt, torch.tensor([suffix])], 1)
    out = scene.model.generate(
        input_ids=longer,
        past_key_values=cache,
        attention_mask=torch.ones_like(longer),
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.logits[0]


@way(single=True, forward=True)
def one_prefill_for_several_questions(scene):
    """A prompt is read once, and copies of its cache go on with other words."""
    if scene.merges and not scene.whole:
        return
    suffixes = (TOLD, TOLD[::-1], TOLD)
    right = [scene.read(torch.tensor([suffix]))[:, -1] for suffix in suffixes]
    with scene.block() as run:
        cache = scene.forward(scene.called(), use_cache=True).past_key_values
        scene.check(run)
        found = [continued(scene, copy.deepcopy(cache), suffix) for suffix in suffixes]
    for logits, want in zip(found, right, strict=True):
        scene.close(logits, want)


@way(single=True, forward=True)
def several_rows_of_one_prefill(scene):
    """A cache of one row goes on as three, by fopru's function or the cache's own."""
    if scene.merges and not scene.whole:
        return
    right = torch.cat([scene.read(torch.tensor([[token]]))[:, -1] for token in TOLD])
    rows = torch.zeros(len(TOLD), dtype=torch.int64)
    with scene.block():
        cache = scene.forward(scene.called(), use_cache=True).past_key_values
        if scene.pruned and scene.case.option % 3:
            fopru.applying.select_rows(cache, rows)
        else:
            cache.batch_select_indices(rows)
        ids = torch.tensor(TOLD)[:, None]
        found = scene.forward({"input_ids": ids}, past_key_values=cache, use_cache=True).logits
    scene.close(found[:, -1], right)


@way(single=True, forward=True)
def cropped(scene):
    """A step is taken back, and another one made."""
    if scene.merges and not scene.whole:
        return
    right = scene.read(torch.tensor([TOLD[1:]]))[:, -1]
    with scene.block():
        cache = scene.forward(scene.called(), use_cache=True).past_key_values
        scene.forward({"input_ids": torch.tensor([TOLD[:1]])}, past_key_values=cache)
        cache.crop(-1)
        ids = torch.tensor([TOLD[1:]])
        found = scene.forward({"input_ids": ids}, past_key_values=cache, use_cache=True).logits
    scene.close(found[:, -1], right)


@way(single=True)
def cached_beginning(scene):
    """The text before the first picture is in the cache already."""
    first = int(scene.visual[0].int().argmax()) if scene.visual.any() else 2
    if first == 0 or (scene.merges and not scene.whole):
        return
    right = scene.truth(told())
    with scene.block() as run:
        cache = DynamicCache(config=scene.model.config.get_text_config())
        with torch.no_grad():
            scene.model(input_ids=scene.prompt[:, :first], past_key_values=cache, use_cache=True)
        found = scene.ask(told(), past_key_values=cache)
        scene.check(run)
    scene.same(found, right)


# What else generate takes and gives


class Recorder(BaseStreamer):
    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value.flatten())

    def end(self):
        self.values.append(torch.tensor([-1]))


@way(single=True)
def streamed(scene):
    right, recorder = scene.truth(told()), Recorder()
    with scene.block() as run:
        found = scene.ask(told(streamer=recorder))
        scene.check(run)
    scene.same(found, right)
    shown = torch.cat(recorder.values)
    if not torch.equal(shown, torch.cat([scene.prompt[0], right[0][0], torch.tensor([-1])])):
        raise Wrong(f"streamed {shown.tolist()}")


@way()
def beam_sampling(scene):
    asked(scene, told(do_sample=True, num_beams=2, top_k=5), logits=False)


@way()
def hidden_states(scene):
    """Asked for more outputs, and the same words and first logits come."""
    asked(scene, told(output_hidden_states=True, output_scores=True), told())


@way()
def negative_prompt(scene):
    ids = torch.tensor([[5, 9, 6]] * len(scene.prompt))
    asked(scene, told(guidance_scale=1.5, negative_prompt_ids=ids))


@way(single=True)
def embedded(scene):
    """`inputs_embeds` in place of the ids, the placeholders' embeddings among them."""
    if scene.case.ids != "name" or scene.case.thread or (scene.merges and not scene.whole):
        return
    right = scene.truth(told())
    with torch.no_grad():
        embeddings = scene.model.get_input_embeddings()(scene.prompt)
    with scene.block() as run:
        inputs = {k: v for k, v in scene.called().items() if k != "input_ids"}
        out = scene.model.generate(
            inputs_embeds=embeddings,
            **inputs,
            max_new_tokens=scene.case.tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        scene.check(run)
    scene.same((out.sequences[:, -scene.case.tokens :], out.logits), right)


# Training, copying, saving


@way(forward=True)
def training(scene):
    """Gradients of a loss, with and without checkpointing, inside the block or after it."""
    if scene.merges and not scene.whole:
        return
    model, option = scene.model, scene.case.option
    labelled = option % 2 == 1
    labels = scene.prompt.masked_fill(scene.visual | (scene.full["attention_mask"] == 0), -100)
    layers = Family.of(model).decoder.layers
    weight = layers[0].self_attn.q_proj.weight

    def loss_of(rows, right):
        """Cross entropy over what is left, each predicting the next."""
        losses, n = [], 0
        for row, logits in enumerate(rows):
            losses.append(
                F.cross_entropy(logits[:-1], right[row][1:], reduction="sum", ignore_index=-100)
            )
            n += int((right[row][1:] != -100).sum())
        return sum(losses) / n

    full = scene.read(grad=True)
    left = scene.left()
    if labelled:
        loss = loss_of(
            [full[r, p] for r, p in enumerate(left)], [labels[r, p] for r, p in enumerate(left)]
        )
    else:
        loss = sum(full[r, p[-1]].square().mean() for r, p in enumerate(left))
    (right,) = torch.autograd.grad(loss, weight)

    def back(out):
        if labelled:
            mine = out.loss
        else:
            ended = scene.case.padding == "right"
            ends = [len(p) - 1 if ended else -1 for p in left]
            mine = sum(out.logits[r, e].square().mean() for r, e in enumerate(ends))
        return mine, torch.autograd.grad(mine, weight)[0]

    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with scene.block() as run:
            more = {"labels": labels} if labelled else {}
            out = scene.forward(scene.called(), grad=True, **more)
            scene.check(run)
            if option < 4:
                mine, found = back(out)
        if option >= 4:
            mine, found = back(out)
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    scene.close(mine[None, None], loss[None, None], "loss")
    scale = right.abs().max()
    scene.close(found[None] / scale, right[None] / scale, "gradient")


@way()
def copied(scene):
    """A deep copy made in the block is a model of its own."""
    plain = Scene(scene.case, pruned=False)
    right = plain.truth(told())
    with scene.block():
        double = copy.deepcopy(scene.model)
    with torch.no_grad():
        for p in scene.model.parameters():
            p.neg_()
    try:
        plain.model = double
        found = plain.generate(plain.full, plain.prompt, told())
        marks = [n for n, m in double.named_modules() if m._forward_pre_hooks]
    finally:
        with torch.no_grad():
            for p in scene.model.parameters():
                p.neg_()
    if "generate" in vars(double) or marks:
        raise Wrong(f"the copy has marks: generate {'generate' in vars(double)}, hooks {marks[:3]}")
    plain.same(found, right)


@way()
def copied_and_used(scene):
    """A deep copy asked while the block is open answers as itself, pruned or not."""
    plain = Scene(scene.case, pruned=False)
    pruned, right = scene.truth(told()), plain.truth(told())
    with scene.block():
        plain.model = copy.deepcopy(scene.model)
        found = plain.generate(plain.full, plain.prompt, told())
    try:
        plain.same(found, right)
    except Wrong:
        plain.same(found, pruned)


@way()
def saved(scene):
    """save_pretrained in the block writes a model without a trace."""
    plain = Scene(scene.case, pruned=False)
    right = plain.truth(told())
    with tempfile.TemporaryDirectory() as folder:
        with scene.block():
            scene.model.save_pretrained(folder)
        loaded, noted = type(scene.model).from_pretrained(folder, output_loading_info=True)
        loaded.set_attn_implementation(scene.case.attention)
    if any(noted[kind] for kind in ("missing_keys", "unexpected_keys")):
        raise Wrong(f"saved with other weights: {noted}")
    if "fopru" in str(loaded.config.to_dict()):
        raise Wrong("the saved config names fopru")
    plain.model = loaded.eval()
    plain.same(plain.generate(plain.full, plain.prompt, told()), right)
