"""Training the pocket model: stages of dense labels for the tower, and of answers for everything.

Everything random follows from the seed and the step, so a run that was killed and resumed is the
same run. Weights are bfloat16 with a float32 master copy: on CPUs with bfloat16 units that is
several times faster. Visual tokens are never dropped in training: FoPru is training-free.
"""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fopru.evaluation import answer
from fopru.pocket import objects, sample, scenes
from making import build
from making.recipe import Recipe, Stage
from making.targets import IGNORE, SLOTS, Batch, Batches, isolated

CHECKPOINTS = Path("~/.cache/fopru/pocket-train")
"""What a stopped run resumes from."""


WEIGHTS = {"tens": 0.25, "ones": 0.25, "to": 0.25}
"""The weights in the dense loss of slots whose words are not under the patch itself, and which come
late."""


class Student(nn.Module):
    """The model and what is read out of its tower; forward gives the losses of one batch."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        before: list[int],
        recipe: Recipe,
    ):
        super().__init__()
        self.model, self.recipe = model, recipe
        there = len(SLOTS["name"]) + len(objects.PAIRS)
        self.present = nn.Linear(model.config.vision_config.hidden_size, there)
        if recipe.dense == "own":
            text = model.config.text_config
            self.named = nn.Linear(text.hidden_size, text.vocab_size)
        weights = torch.ones(len(SLOTS["name"]))
        weights[0] = 0.15  # nothing is on most patches
        constants = {
            name: torch.tensor(processor.tokenizer.convert_tokens_to_ids(words))
            for name, words in SLOTS.items()
        }
        for name, value in {
            **constants,
            "weights": weights,
            "before": torch.tensor(before),
        }.items():
            self.register_buffer(f"_{name}", value, persistent=False)

    def forward(self, batch: Batch, answers: bool) -> tuple[Tensor, Tensor | None]:
        """The tower's loss, and, with `answers`, the mean loss of answer tokens."""
        core = self.model.model
        state = core.config.vision_feature_layer
        seen = core.vision_tower(batch.pixels.to(self.model.dtype), output_hidden_states=True)
        patches = seen.hidden_states[state][:, 1:]  # (B, P, d)
        visual = core.multi_modal_projector(patches)  # (B, P, D)
        tower = 4 * F.binary_cross_entropy_with_logits(
            self.present(seen.pooler_output).float(), batch.words
        )
        if self.recipe.dense != "none":
            tower = tower + self._named(visual, batch.patches)
        if not answers:
            return tower, None
        embed = self.model.get_input_embeddings()
        before = embed(self._before).expand(len(visual), -1, -1)
        embeds = torch.cat([before, visual, embed(batch.text)], 1)  # (B, L, D)
        prefix = before.shape[1] + visual.shape[1]
        mask, positions = isolated(prefix, batch.segments, batch.offsets)
        bias = torch.zeros(mask.shape, dtype=embeds.dtype, device=embeds.device)
        bias.masked_fill_(~mask, torch.finfo(embeds.dtype).min)
        hidden = core.language_model(
            inputs_embeds=embeds, attention_mask=bias, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, prefix - 1 : -1])  # (B, T, V): each predicts the next
        # A question's first token is never an answer: what stands before it does not matter.
        return tower, F.cross_entropy(
            logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE
        )

    def _named(self, visual: Tensor, labels: Tensor) -> Tensor:
        """How badly visual tokens (B, P, D) name what is under them: labels (B, slots, P)."""
        if self.recipe.dense == "own":
            logits = self.named(visual).float()  # (B, P, V)
        else:  # as the decoder reads its own output
            logits = self.model.lm_head(self.model.model.language_model.norm(visual)).float()
        loss = logits.new_zeros(())
        for slot, name in enumerate(self.recipe.slots):
            wanted = labels[:, slot].flatten()
            weight = self._weights.float() if name == "name" else None
            said = logits[..., getattr(self, f"_{name}")].flatten(0, 1)  # (B * P, words)
            wrong = F.cross_entropy(said, wanted, weight, ignore_index=IGNORE, reduction="sum")
            known = wanted != IGNORE
            total = known.sum() if weight is None else weight[wanted[known]].sum()
            loss = loss + WEIGHTS.get(name, 1.0) * wrong / total.clamp(min=1)
        return loss


def train(
    out: str | Path,
    checkpoints: str | Path,
    recipe: Recipe,
    save_every: float = 240,
    evaluate_every: int = 500,
    device: str | torch.device = "cpu",
    stop_after: int | None = None,
) -> LlavaForConditionalGeneration:
    """Train the pocket model and save it in Hugging Face format.

    Args:
        out: folder for model, processor and `log.csv`.
        checkpoints: folder for what a later call resumes from; may be deleted.
        recipe: what is trained; a checkpoint of another recipe is refused.
        save_every: seconds between checkpoints.
        evaluate_every: steps between measurements.
        device: where to train, such as "cuda"; a GPU's results differ in the last bits from a
            CPU's, and from one run to the next.
        stop_after: leave after this step, to be resumed; for tests.

    Raises:
        ValueError: `checkpoints` holds a run of another recipe, or a damaged file, which stay as
            they are; or the device has too little memory, and a later call goes on.
    """
    checkpoint = Path(checkpoints).expanduser() / "checkpoint.pt"
    device = torch.device(device)
    processor = build.processor(scenes.WORDS)
    config = build.config(processor, width=recipe.width, text_layers=recipe.layers)
    model = build.model(config, recipe.seed)
    model.set_attn_implementation("eager")  # SDPA's backward is slow in bfloat16 on CPUs
    data = Batches(processor, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        student = Student(model, processor, data.prompt_ids[0], recipe)
    student.to(device)
    names = [name for name, _ in student.named_parameters()]
    masters = [p.detach().clone() for p in student.parameters()]
    running: dict[str, float] = {}
    first, log = 0, []
    state = _resume(checkpoint, recipe)
    if state is not None:
        masters = [master.to(device) for master in state["masters"]]
        first, log, running = (state[name] for name in ("step", "log", "running"))
    student.bfloat16()
    parameters = list(student.parameters())
    _copy(parameters, masters)
    forward = _compiled(student, data, device) if recipe.compiled else student
    optimizers = _optimizers(names, masters)
    if state is not None:
        for optimizer, found in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)

    schedule = recipe.schedule
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=None,
        sampler=range(first, len(schedule)),
        num_workers=max(1, min(8, (os.cpu_count() or 1) - 1)),
        prefetch_factor=4,
        pin_memory=device.type == "cuda",
    )
    bar = tqdm(loader, initial=first, total=len(schedule), desc="pocket", unit="step")
    saved = monotonic()
    for step, batch in enumerate(bar, start=first):
        stage, place = schedule[step]
        if place == 0 and stage.warmup:
            optimizers = _optimizers(names, masters)
        with _enough_memory(device, stage, checkpoint):
            tower, text = forward(batch.to(device), answers=stage.learns != "tower")
            loss = tower if text is None else text + recipe.tower_weight * tower
            loss.backward()
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            nn.utils.clip_grad_norm_(masters, 1.0)
            for optimizer in optimizers:
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
            if stage.learns == "answers":
                row |= quick_accuracy(model, processor, recipe.world)
            log.append(row)
        if monotonic() - saved > save_every or done in (len(schedule), stop_after):
            saved = monotonic()
            _save(
                checkpoint,
                recipe=asdict(recipe),
                step=done,
                masters=masters,
                optimizers=[optimizer.state_dict() for optimizer in optimizers],
                log=log,
                running=running,
            )
        if done == stop_after:
            return model
    _copy(list(student.float().parameters()), masters)
    student.cpu()
    model.set_attn_implementation("sdpa")
    build.save(model, processor, out)
    _write_log(Path(out) / "log.csv", log)
    return model.eval()


def _compiled(student: Student, data: Batches, device: torch.device) -> Any:
    """The student, compiled for the first step of each stage in turn.

    What torch compiles depends, in the last bits, on what it compiled before. So a run that goes on
    in a later stage compiles what the run from the start did, in the same order.
    """
    forward = torch.compile(student, dynamic=False)
    for step, (stage, place) in enumerate(data.recipe.schedule):
        if place == 0:
            tower, text = forward(data[step].to(device), answers=stage.learns != "tower")
            (tower if text is None else text + tower).backward()
    student.zero_grad(set_to_none=True)
    return forward


@torch.no_grad()
def _copy(parameters: list[nn.Parameter], masters: list[Tensor]) -> None:
    torch._foreach_copy_(parameters, masters)


def _optimizers(names: list[str], masters: list[Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for what is left."""
    blocks, others = [], []
    for name, master in zip(names, masters, strict=True):
        (blocks if master.dim() == 2 and ".layers." in name else others).append(master)
    return [
        torch.optim.Muon(blocks, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98), foreach=True),
    ]


@contextmanager
def _enough_memory(device: torch.device, stage: Stage, checkpoint: Path) -> Iterator[None]:
    """Where memory ends, a sentence that says what to do; the checkpoint is not touched.

    torch has a class for the end of a GPU's memory only; on CPUs it is a RuntimeError.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("can't allocate memory", "not enough memory")
        spent = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not spent and not any(word in str(error) for word in words):
            raise
        raise ValueError(
            f"device={str(device)!r}: has too little memory for {stage.batch} pictures at a time: "
            f"free some, or use another; what was trained is in {checkpoint.parent}, and the same "
            "command goes on from there."
        ) from None


def _resume(checkpoint: Path, recipe: Recipe) -> dict[str, Any] | None:
    if not checkpoint.exists():
        return None
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        found, *_ = (state[k] for k in ("recipe", "step", "masters", "optimizers", "log"))
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{checkpoint} is not a whole checkpoint of a training run: delete it to start anew "
            f"({error})."
        ) from None
    for name, here in asdict(recipe).items():
        if here != found.get(name):
            raise ValueError(
                f"{checkpoint} holds a run with {name}={found.get(name)}, not {here}: use another "
                "folder, or delete it."
            )
    return state


def _save(checkpoint: Path, **state: Any) -> None:
    """Whole or not at all: written beside and moved into place."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, checkpoint)


def _write_log(path: Path, log: list[dict]) -> None:
    names = dict.fromkeys(name for row in log for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(log)


def quick_accuracy(
    model, processor, world: str, n: int = 64, seed: int = 10**6
) -> dict[str, float]:
    """Accuracy per task on n fresh questions each."""
    model.eval()
    accuracy = {}
    for task in scenes.TASKS:
        examples = sample(task, n, seed, world)
        found = answer(model, processor, examples)
        right = [said == e.answer for said, e in zip(found, examples, strict=True)]
        accuracy[task] = sum(right) / len(right)
    model.train()
    return accuracy
