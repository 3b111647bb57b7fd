"""One draw under way: the block, the call in it, and the truth outside of it."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import cases
import torch
import torch.nn.functional as F
from oracle import masked
from transformers import GenerationConfig

import fopru
from fopru.families import Family

LOOSE = 2e-4
"""How far float32 logits of two right ways may be apart; wrong ones are off by 0.01 and more."""
THEIRS = ("rope_deltas", "_previous_max_cache_length", "_parameters", "_buffers")
"""Attributes in which transformers itself keeps what a call left."""


class Wrong(AssertionError):
    """An answer that is not the right one."""


class Scene:
    """A case with its model and prompts; `pruned=False` is the unpruned model on the same case."""

    def __init__(self, case: cases.Case, pruned: bool = True):
        self.case, self.pruned = case, pruned
        self.model = cases.model(case.family, case.attention, case.window)
        self.full = cases.inputs(case)
        self.prompt = self.full["input_ids"]  # (B, L)
        self.length = self.prompt.shape[1]
        self.pruner = case.pruner
        self.inside = case.method in cases.INSIDE
        self.merges = case.method in cases.MERGING
        family = Family.of(self.model)
        self.token = family.reading(self.full).image_token_id
        self.visual = self.prompt == self.token
        self.places = [row.nonzero()[:, 0].contiguous() for row in self.visual]
        self.any = pruned and bool(self.visual.any())
        self.whole = not self.any or case.retention == 1.0
        self.layers = len(family.decoder.layers)
        self.reindex = not family.spatial and case.positions != "preserve"
        if self.inside and case.positions is None:
            self.reindex = self.reindex and case.method == "pyramiddrop"
        self.columns = self.logs = None
        self.position_ids = None
        """(..., B, L + extra) position ids of the last `read`."""
        self.kept: list[list[torch.Tensor]] = []
        if not self.whole:
            self.learn()

    # What is kept, of each row alone and asked in the plainest way

    def learn(self) -> None:
        columns = torch.ones(self.layers, *self.prompt.shape, dtype=torch.bool)
        logs = torch.zeros(self.prompt.shape)
        for row, single in enumerate(cases.singles(self.case)):
            places = self.visual[row].nonzero()[:, 0]
            if not len(places):
                self.kept.append([])
                continue
            if self.inside:
                per_layer, sizes = self.inside_alone(single)
                columns[:, row, places] = False
                for layer, kept in enumerate(per_layer):
                    columns[layer, row, places[kept]] = True
                self.kept.append([per_layer[-1]])
                self.counted(sum(sizes), per_layer[-1])
                continue
            plain = replace(self.pruner, weights="none")
            images = plain.prune(self.model, single).images
            features = fopru.encode(self.model, single).images
            self.kept.append([image.kept for image in images])
            start = 0
            for image, seen in zip(images, features, strict=True):
                here = places[start : start + image.n_full]
                columns[:, row, here] = False
                columns[:, row, here[image.kept]] = True
                if self.pruner.weights == "mass":
                    logs[row, here[image.kept]] = masses(seen.features, image.kept).log()
                start += image.n_full
        self.columns = columns
        self.logs = logs if self.pruner.weights == "mass" else None

    def inside_alone(self, single):
        with self.pruner(self.model) as run, torch.no_grad():
            self.model(**single)
            if len(run.layers) != self.layers:
                raise Wrong(f"inside the LLM nothing was pruned: {run.visual_counts}")
            seen = [run.prompt.visible(i)[0] for i in range(self.layers)]
            return seen, run.visual_counts[0]

    def counted(self, n, kept):
        """FastV rounds, PyramidDrop takes the floor."""
        share = n * self.case.retention
        if len(kept) not in (max(1, int(share)), max(1, round(share))):
            raise Wrong(f"{self.case.method} keeps {len(kept)} of {n}: not {share:g}")

    # Truth

    def truth(self, options, **more):
        """What `generate` says to the full prompt with the dropped columns masked.

        Args:
            options: called with the prompt that the callbacks will see; gives generate's arguments.
        """
        if self.merges and not self.whole:
            shorter = self.pruner.prune(self.model, self.full)
            return self.generate(shorter, shorter["input_ids"], options, **more)
        with masked(self.model, self.full, self.columns, self.logs, self.reindex):
            return self.generate(self.full, self.prompt, options, use_cache=False, **more)

    def generate(self, inputs, prompt, options, **more):
        torch.manual_seed(7)
        told = dict(max_new_tokens=self.case.tokens, do_sample=False) | options(prompt) | more
        out = self.model.generate(
            **inputs, **told, return_dict_in_generate=True, output_logits=True
        )
        return out.sequences[:, prompt.shape[1] :], out.logits

    def read(self, extra=None, grad=False):
        """(B, L + extra, V) logits of the full prompt, and (B, extra) tokens after it."""
        inputs = dict(self.full)
        if extra is not None:
            for name, value in inputs.items():
                if name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
                    inputs[name] = F.pad(value, (0, extra.shape[1]), value=name[0] == "a")
            inputs["input_ids"] = torch.cat([self.prompt, extra], 1)
        if "mm_token_type_ids" not in inputs:  # M-RoPE counts by itself, and not from a cache
            mask = inputs["attention_mask"]
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)

        def note(decoder, args, kwargs):
            self.position_ids = kwargs["position_ids"]

        decoder = Family.of(self.model).decoder
        handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with (
                torch.set_grad_enabled(grad),
                masked(self.model, self.full, self.columns, self.logs, self.reindex),
            ):
                return self.model(**inputs, use_cache=False).logits
        finally:
            handle.remove()

    def left(self):
        """Per row the columns of the prompt that the last layer sees."""
        there = self.full["attention_mask"].bool()
        if self.columns is not None:
            there = there & self.columns[-1]
        return [row.nonzero()[:, 0] for row in there]

    # In the block

    @contextmanager
    def block(self):
        """`with pruner(model)`, another prompt before; afterwards nothing may be left."""
        before = state(self.model)
        context = self.pruner(self.model) if self.pruned else nullcontext()
        with context as run:
            if self.case.before is not None:
                self.other_prompt()
            yield run
        after = state(self.model)
        if before != after:
            raise Wrong(f"left on the model: {sorted(set(after) ^ set(before))[:4]}")

    def other_prompt(self):
        told = dict(max_new_tokens=2, do_sample=False)
        if self.case.before == "text":
            self.model.generate(torch.tensor([[5, 9, 10, 11, 6]]), **told)
            return
        other = replace(self.case, rows=(cases.Row(1, (3,)),), video=False, padding="left")
        inputs = cases.inputs(other)
        if self.case.before == "pruned":
            inputs = fopru.Random(0.5).prune(self.model, inputs)
        self.model.generate(**inputs, **told)

    def called(self):
        """The call's inputs as the case hands them over, and the positional ones."""
        inputs = dict(self.full)
        if not self.case.mask:
            del inputs["attention_mask"]
        if self.case.sizes_as_list and "image_sizes" in inputs:
            inputs["image_sizes"] = inputs["image_sizes"].tolist()
        return inputs

    def cached(self):
        """use_cache as the option says, left to the model in some."""
        return ({}, {"use_cache": True}, {"use_cache": False})[self.case.option // 2]

    def ask(self, options, **more):
        """`generate` in the block: new tokens (B', n), logits of each step."""
        told = dict(max_new_tokens=self.case.tokens, do_sample=False) | options(self.prompt) | more
        told |= dict(return_dict_in_generate=True, output_logits=True)
        inputs, args = self.called(), []
        if self.case.ids != "name":
            ids = inputs.pop("input_ids")
            args = [ids] if self.case.ids == "place" else []
            inputs |= {"inputs": ids} if self.case.ids == "inputs" else {}
        if self.case.config:
            base = self.model.generation_config.to_dict()
            mine = {name: told.pop(name) for name in list(told) if name in base}
            config = GenerationConfig(**{**base, **mine})
            if args:
                args.append(config)
            else:
                told["generation_config"] = config

        def call():
            torch.manual_seed(7)
            return self.model.generate(*args, **inputs, **told)

        out = cases.in_thread(call) if self.case.thread else call()
        prompts, new = out.sequences[:, : self.length], out.sequences[:, self.length :]
        times = len(prompts) // len(self.prompt)
        if not torch.equal(prompts, self.prompt.repeat_interleave(times, 0)):
            raise Wrong("the sequences do not begin with the prompt")
        self.out = out
        return new, out.logits

    def forward(self, inputs, **more):
        """One forward in the block, by the case's door."""
        model = self.model if self.case.option % 2 == 0 else self.model.forward
        args = []
        if self.case.ids == "place":
            inputs = dict(inputs)
            args = [inputs.pop("input_ids")]

        def call():
            with torch.set_grad_enabled(more.pop("grad", False)):
                return model(*args, **inputs, **more)

        return cases.in_thread(call) if self.case.thread else call()

    # Comparing

    def check(self, run):
        """What the run says was kept."""
        if not self.any or run is None:
            return
        if self.whole:
            want = [torch.arange(int(row.sum())) for row in self.visual]
        else:
            there = [row[self.columns[-1, i, row]] for i, row in enumerate(self.places)]
            want = [torch.searchsorted(p, t) for p, t in zip(self.places, there, strict=True)]
        found = run.kept
        times = len(found) // len(want)  # beams and sequences have rows of their own inside the LLM
        want = [row for row in want for _ in range(times)]
        if len(found) != len(want) or not all(map(torch.equal, found, want)):
            raise Wrong(f"kept {brief(found)}, alone {brief(want)}")
        images = [image.kept for image in run.images]
        if not self.whole and not self.inside and times == 1:
            alone = [kept for row in self.kept for kept in row]
            if len(images) != len(alone) or not all(map(torch.equal, images, alone)):
                raise Wrong(f"images kept {brief(images)}, alone {brief(alone)}")
        if times == 1 and sum(map(len, images)) != sum(map(len, want)):
            raise Wrong(f"images hold {brief(images)}, rows {brief(want)}")

    def same(self, found, want, logits=True):
        """Tokens and each step's logits are equal."""
        (new, steps), (right, right_steps) = found, want
        if logits:
            self.close(torch.stack(steps, 1), torch.stack(right_steps, 1), "logits by step")
        if not torch.equal(new, right):
            raise Wrong(f"says {new.tolist()}, right is {right.tolist()}")

    @staticmethod
    def close(found, want, what="logits"):
        if found.shape != want.shape:
            raise Wrong(f"{what} of shape {tuple(found.shape)}, not {tuple(want.shape)}")
        off = (found - want).detach().abs()
        if not float(off.max()) <= LOOSE:
            steps = [f"{x:.3g}" for x in off.amax((0, -1)).flatten().tolist()[-8:]]
            raise Wrong(f"{what} off by {float(off.max()):.3g}; the last: {', '.join(steps)}")


def masses(features, kept):
    """(k,) how many tokens are most like each kept one; by hand, ties (`fopru.picking`) to the
    first."""
    unit = F.normalize(features.double(), dim=1)
    cosines = unit @ unit[kept].T  # (N, k)
    owner = (cosines >= cosines.amax(1, keepdim=True) - 2**-18).byte().argmax(1)
    owner[kept] = torch.arange(len(kept))
    return owner.bincount(minlength=len(kept)).float()


def brief(indices):
    return [i.tolist()[:12] for i in indices][:3]


def state(model):
    """All that a block might leave behind: attributes, hooks, settings."""
    seen = set()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if "hooks" in key:
                seen.add((name, key, len(value) if hasattr(value, "__len__") else value))
            elif key == "_modules":
                seen.update((name, key, child, id(part)) for child, part in value.items())
            elif key not in THEIRS:
                held = id(value) if callable(value) else None
                seen.add((name, key, held))
        if hasattr(module, "config"):
            seen.add((name, "attention", module.config._attn_implementation))
        seen.add((name, "training", module.training))
    told = {k: v for k, v in model.config.to_dict().items() if k not in ("architectures", "dtype")}
    seen.add(("", "config", str(told)))  # save_pretrained notes these two
    seen.add(("", "generation", str(model.generation_config.to_dict())))
    return seen
