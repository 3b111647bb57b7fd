"""Training the pocket model: stages of dense labels for the tower, and of answers for everything.

Everything random follows from the seed and the step, so a run that was killed and resumed is the
same run. Weights are bfloat16 with a float32 master copy: on CPUs with bfloat16 units that is
several times faster. Visual tokens are never dropped in training: FoPru is training-free.
"""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fopru.evaluation import answer
from fopru.pocket import CHECKPOINTS, build, sample, scenes
from fopru.pocket.targets import IGNORE, KINDS, Batch, Batches, isolated


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one kind of loss."""

    learns: str
    """"tower": dense labels teach the tower; "answers": all weights learn from answers too."""
    steps: int
    batch: int
    lr: float
    warmup: int = 100
    """Steps up to the full learning rate, with a fresh optimizer; 0 goes on with what there is."""
    decay: float = 0.0
    """Share of the stage, at its end, over which the learning rate falls to zero."""
    objects: tuple[int, int] = (2, 5)
    """Least and largest number of shapes in a scene."""

    def learning_rate(self, step: int) -> float:
        """At a step of this stage: warm-up, plateau, linear decay."""
        factor = 1.0
        if self.warmup:
            factor = min(factor, (step + 1) / self.warmup)
        if self.decay:
            factor = min(factor, (self.steps - step) / (self.decay * self.steps))
        return self.lr * factor


STAGES = (
    Stage("tower", 600, 64, 2e-3, decay=0.4),
    Stage("answers", 480, 32, 1.5e-3, objects=(1, 3)),
    Stage("answers", 320, 32, 1.5e-3, warmup=0),
    Stage("tower", 800, 64, 2e-3, decay=0.4),
    Stage("answers", 1450, 32, 1.5e-3, decay=0.5),
)
"""The recipe of the shipped weights, but for the learning rate in part of the last stage, whose
length was changed while it ran (see the model card). The decoder starts to look before the tower is
done."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights."""

    seed: int = 0
    stages: tuple[Stage, ...] = STAGES
    tower_weight: float = 0.2
    """Weight of the dense losses while answers are learned."""
    text_tokens: int = 208
    width: int = 128

    @property
    def schedule(self) -> list[tuple[Stage, int]]:
        """For each step its stage, and its place there."""
        return [(stage, i) for stage in self.stages for i in range(stage.steps)]

    def batches(self, processor: LlavaProcessor) -> Batches:
        schedule = self.schedule
        return Batches(
            processor,
            self.seed,
            sizes=[stage.batch for stage, _ in schedule],
            text_tokens=self.text_tokens,
            objects=[stage.objects for stage, _ in schedule],
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
    masters = [p.detach().clone() for p in student.parameters()]
    first, log = 0, []
    state = _resume(checkpoint, recipe)
    if state is not None:
        masters, first, log = state["masters"], state["step"], state["log"]
    student.bfloat16()
    parameters = list(student.parameters())
    _copy(parameters, masters)
    optimizer = _optimizer(masters)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])

    schedule = recipe.schedule
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=range(first, len(schedule)), num_workers=1, prefetch_factor=4
    )
    bar = tqdm(loader, initial=first, total=len(schedule), desc="pocket", unit="step")
    running: dict[str, float] = {}
    for step, batch in enumerate(bar, start=first):
        stage, place = schedule[step]
        if place == 0 and stage.warmup:
            optimizer = _optimizer(masters)
        tower, text = student(batch, answers=stage.learns == "answers")
        loss = tower if text is None else text + recipe.tower_weight * tower
        loss.backward()
        for master, parameter in zip(masters, parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(masters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate(place)
        optimizer.step()
        _copy(parameters, masters)

        done = step + 1
        for name, value in (("tower", tower), ("answer", text)):
            if value is not None:
                running[name] = 0.98 * running.get(name, value.item()) + 0.02 * value.item()
        bar.set_postfix(running, refresh=False)
        if done % evaluate_every == 0 or done == len(schedule):
            row = {"step": done, **running}
            if text is not None:
                row |= quick_accuracy(model, processor)
            log.append(row)
        if done % save_every == 0 or done in (len(schedule), stop_after):
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
    for name, here in asdict(recipe).items():
        there = state["recipe"].get(name)
        if here != there:
            raise ValueError(
                f"{checkpoint} holds a run with {name}={there}, not {here}: use another folder, "
                "or delete it."
            )
    return state


def _save(
    checkpoint: Path,
    recipe: Recipe,
    step: int,
    masters: list[Tensor],
    optimizer: torch.optim.Optimizer,
    log: list[dict],
) -> None:
    """Whole or not at all: written beside and moved into place."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    state = {"recipe": asdict(recipe), "step": step, "masters": masters, "log": log}
    torch.save({**state, "optimizer": optimizer.state_dict()}, partial)
    os.replace(partial, checkpoint)


def _write_log(path: Path, log: list[dict]) -> None:
    names = dict.fromkeys(name for row in log for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(log)


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
