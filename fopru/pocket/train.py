"""Training the pocket model: the tower with dense labels first, then everything on answers.

Everything random follows from the seed and the step, so a run that was killed and resumed is the
same run. Weights are bfloat16 with a float32 master copy: on CPUs with bfloat16 units that is
several times faster. Visual tokens are never dropped in training: FoPru is training-free.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fopru.evaluation.tasks import Example
from fopru.pocket import build, sample, scenes
from fopru.pocket.targets import IGNORE, KINDS, Batch, Batches, isolated

CHECKPOINTS = Path("~/.cache/fopru/pocket-train")


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights. Stage A's steps train the tower, stage B's everything."""

    seed: int = 0
    tower_steps: int = 800
    steps: int = 3000
    tower_batch: int = 64
    batch: int = 32
    tower_lr: float = 2e-3
    lr: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.4
    """Share of each stage, at its end, over which the learning rate falls to zero."""
    easy: float = 0.3
    """Share of stage B, at its start, with at most three objects a scene."""
    tower_weight: float = 0.2
    """Weight of stage A's losses in stage B."""
    text_tokens: int = 208
    width: int = 128

    @property
    def total(self) -> int:
        return self.tower_steps + self.steps

    def learning_rate(self, step: int) -> float:
        """Warm-up, plateau, linear decay; once for each stage."""
        tower = step < self.tower_steps
        peak, length = (self.tower_lr, self.tower_steps) if tower else (self.lr, self.steps)
        place = step if tower else step - self.tower_steps
        return peak * min((place + 1) / self.warmup, (length - place) / (self.decay * length), 1)

    def batches(self, processor: LlavaProcessor) -> Batches:
        easy = self.tower_steps + round(self.easy * self.steps)
        return Batches(
            processor,
            self.seed,
            sizes=[self.tower_batch] * self.tower_steps + [self.batch] * self.steps,
            text_tokens=self.text_tokens,
            objects=[(1, 3) if self.tower_steps <= i < easy else (2, 5) for i in range(self.total)],
        )


class Heads(nn.Module):
    """Linear read-outs of the tower, for training only."""

    def __init__(self, width: int):
        super().__init__()
        self.kind = nn.Linear(width, 1 + KINDS)
        self.color = nn.Linear(width, len(scenes.COLORS))
        self.pairs = nn.Linear(width, len(scenes.COLORS) * len(scenes.SHAPES))
        self.digits = nn.Linear(width, 20)
        weights = torch.ones(1 + KINDS)
        weights[0] = 0.15  # background is most of every picture
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, patches: Tensor, pooled: Tensor, batch: Batch) -> Tensor:
        """Patches (B, P, d) of the layer that the model reads, pooled CLS (B, d)."""
        kinds = F.cross_entropy(
            self.kind(patches).float().flatten(0, 1),
            batch.kinds.flatten(),
            self.weights.float(),
            ignore_index=IGNORE,
        )
        colors = F.cross_entropy(
            self.color(patches).float().flatten(0, 1), batch.colors.flatten(), ignore_index=IGNORE
        )
        pairs = F.binary_cross_entropy_with_logits(self.pairs(pooled).float(), batch.pairs)
        digits = self.digits(pooled).float().view(-1, 10)
        return kinds + colors + 4 * pairs + F.cross_entropy(digits, batch.digits.flatten())


class Student(nn.Module):
    """The model and its read-outs; forward gives the loss of one batch."""

    def __init__(self, model: LlavaForConditionalGeneration, heads: Heads, before: list[int]):
        super().__init__()
        self.model, self.heads = model, heads
        self.register_buffer("before", torch.tensor(before), persistent=False)

    def forward(self, batch: Batch, answers: bool) -> tuple[Tensor, Tensor | None]:
        """The tower's loss, and, with `answers`, the mean loss of answer tokens."""
        core = self.model.model
        state = core.config.vision_feature_layer
        seen = core.vision_tower(batch.pixels.to(self.model.dtype), output_hidden_states=True)
        patches = seen.hidden_states[state][:, 1:]  # (B, P, d)
        tower = self.heads.loss(patches, seen.pooler_output, batch)
        if not answers:
            return tower, None
        embed = self.model.get_input_embeddings()
        visual = core.multi_modal_projector(patches)
        before = embed(self.before).expand(len(visual), -1, -1)
        embeds = torch.cat([before, visual, embed(batch.text)], 1)  # (B, L, D)
        prefix = before.shape[1] + visual.shape[1]
        mask, positions = isolated(prefix, batch.segments, batch.offsets)
        bias = torch.zeros(mask.shape, dtype=embeds.dtype)
        bias.masked_fill_(~mask, torch.finfo(embeds.dtype).min)
        hidden = core.language_model(
            inputs_embeds=embeds, attention_mask=bias, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, prefix - 1 : -1])  # (B, T, V): each predicts the next
        # A question's first token is never an answer: what stands before it does not matter.
        return tower, F.cross_entropy(
            logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE
        )


def train(
    out: str | Path,
    checkpoints: str | Path = CHECKPOINTS,
    recipe: Recipe = Recipe(),
    save_every: int = 200,
    evaluate_every: int = 500,
    stop_after: int | None = None,
) -> LlavaForConditionalGeneration:
    """Train the pocket model and save it in Hugging Face format.

    Args:
        out: folder for model, processor and `log.csv`.
        checkpoints: folder for what a later call resumes from; may be deleted.
        recipe: what is trained; a checkpoint of another recipe is refused.
        save_every, evaluate_every: steps between checkpoints, and between measurements.
        stop_after: leave after this step, to be resumed; for tests.

    Raises:
        ValueError: `checkpoints` holds a run of another recipe.
    """
    checkpoint = Path(checkpoints).expanduser() / "checkpoint.pt"
    processor = build.processor(scenes.WORDS)
    model = build.model(build.config(processor, width=recipe.width), recipe.seed)
    model.set_attn_implementation("eager")  # SDPA's backward is slow in bfloat16 on CPUs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        heads = Heads(recipe.width)
    data = recipe.batches(processor)
    student = Student(model, heads, data.prompt_ids[0])
    state = _resume(checkpoint, recipe)
    masters = [p.detach().clone() for p in student.parameters()]
    if state is not None:
        masters = state["masters"]
    student.bfloat16()
    parameters = list(student.parameters())
    _copy(parameters, masters)
    first = state["step"] if state is not None else 0
    optimizer = _optimizer(masters)
    if state is not None and state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    log = state["log"] if state is not None else []

    loader = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=range(first, recipe.total), num_workers=1, prefetch_factor=4
    )
    bar = tqdm(loader, initial=first, total=recipe.total, desc="pocket", unit="step")
    running: dict[str, float] = {}
    for step, batch in enumerate(bar, start=first):
        if step == recipe.tower_steps:
            optimizer = _optimizer(masters)
        answers = step >= recipe.tower_steps
        tower, answer = student(batch, answers)
        loss = answer + recipe.tower_weight * tower if answers else tower
        loss.backward()
        for master, parameter in zip(masters, parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(masters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        optimizer.step()
        _copy(parameters, masters)

        done = step + 1
        for name, value in (("tower", tower), ("answer", answer)):
            if value is not None:
                running[name] = 0.98 * running.get(name, value.item()) + 0.02 * value.item()
        bar.set_postfix(running, refresh=False)
        if done % evaluate_every == 0 or done == recipe.total:
            row = {"step": done, **running}
            if answers:
                row |= quick_accuracy(model, processor)
            log.append(row)
        if done % save_every == 0 or done in (recipe.total, stop_after):
            _save(checkpoint, recipe, done, masters, optimizer, log)
        if done == stop_after:
            return model
    weights = dict(zip([name for name, _ in student.named_parameters()], masters, strict=True))
    student.float().load_state_dict(weights)
    model.set_attn_implementation("sdpa")
    build.save(model, processor, out)
    _write_log(Path(out) / "log.csv", log)
    return model.eval()


@torch.no_grad()
def _copy(parameters: list[nn.Parameter], masters: list[Tensor]) -> None:
    torch._foreach_copy_(parameters, masters)


def _optimizer(masters: list[Tensor]) -> torch.optim.Optimizer:
    decayed = [m for m in masters if m.dim() > 1]
    others = [m for m in masters if m.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), foreach=True)


def _resume(checkpoint: Path, recipe: Recipe) -> dict | None:
    if not checkpoint.exists():
        return None
    state = torch.load(checkpoint, weights_only=True)
    for f in fields(recipe):
        here, there = getattr(recipe, f.name), state["recipe"].get(f.name)
        if here != there:
            raise ValueError(
                f"{checkpoint} holds a run with {f.name}={there}, not {here}: use "
                "another folder, or delete it."
            )
    return state


def _save(checkpoint: Path, recipe, step, masters, optimizer, log) -> None:
    """Whole or not at all: written beside and moved into place."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    torch.save(
        {
            "recipe": asdict(recipe),
            "step": step,
            "masters": masters,
            "log": log,
            "optimizer": None if step == recipe.tower_steps else optimizer.state_dict(),
        },
        partial,
    )
    os.replace(partial, checkpoint)


def _write_log(path: Path, log: list[dict]) -> None:
    names = dict.fromkeys(name for row in log for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(log)


# Answers


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    examples: list[Example],
    batch_size: int = 32,
) -> Iterator[str]:
    """What the model generates for each lone question, as a user would ask it."""
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": e.question}]}]
            for e in part
        ]
        text = processor.apply_chat_template(chats, add_generation_prompt=True)
        inputs = processor(
            images=[e.image for e in part], text=text, padding=True, return_tensors="pt"
        )
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        yield from (
            s.strip().lower() for s in processor.batch_decode(new, skip_special_tokens=True)
        )


def quick_accuracy(model, processor, n: int = 64, seed: int = 10**6) -> dict[str, float]:
    """Accuracy per task on n fresh questions each."""
    model.eval()
    accuracy = {}
    for task in scenes.TASKS:
        examples = sample(task, n, seed)
        found = answer(model, processor, examples)
        right = [said == e.answer for said, e in zip(found, examples, strict=True)]
        accuracy[task] = sum(right) / len(right)
    model.train()
    return accuracy


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half
