"""A LLaVA on the frozen real tower: its projector and decoder are learned here, from composites.

The tower is taught nothing, so that its features are computed once. No visual token is ever
dropped. Everything random follows from the seed and the step: a run that was stopped and goes on
is the same run, to the bit.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    CLIPImageProcessorPil,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from fopru.evaluation import chat
from real_eye import world
from real_eye.pictures import MEAN, PATCH, STD, pixels

sys.path.append(str(Path(__file__).parents[2] / "data"))
from making import build
from making.targets import IGNORE, isolated
from making.train import _resume, _save

PIECE = 500
"""Scenes in one file of features."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, beside the tower."""

    seed: int = 0
    state: int = -4
    """Which state of the tower is read."""
    scenes: int = 8000
    """How many scenes there are to learn from; the same for all seeds."""
    warm: int = 800
    """Steps in which only the projector learns: to name what is under each patch."""
    steps: int = 6000
    """Steps in which projector and decoder learn to answer."""
    batch: int = 16
    lr: float = 2e-3
    decay: float = 0.4
    """Share of the steps, at their end, over which the learning rate falls to zero."""
    dense_weight: float = 0.2
    """Weight of naming patches while answers are learned."""
    width: int = 160
    layers: int = 4
    heads: int = 4

    def learning_rate(self, step: int) -> float:
        """At a step of either stage."""
        place, total = (step, self.warm) if step < self.warm else (step - self.warm, self.steps)
        return self.lr * min(1, (place + 1) / 100, (total - place) / (self.decay * total))


def model(
    tower: Dinov2Model, recipe: Recipe
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """An untrained LLaVA on the tower, and its processor."""
    square = {"height": world.SIZE, "width": world.SIZE}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": world.SIZE}, crop_size=square, image_mean=MEAN, image_std=STD
        ),
        words := build.tokenizer(world.WORDS),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=build.CHAT_TEMPLATE,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(world.SIZE // PATCH) ** 2,
        vision_feature_layer=recipe.state,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        made = LlavaForConditionalGeneration(config)
    made.model.vision_tower = tower
    return made, processor


class Features:
    """The tower's features of the scenes of a part, their patches' labels and their questions, in
    files of `PIECE` scenes that are made when they are first asked for."""

    def __init__(self, tower: Dinov2Model, folder: Path, state: int, scenes: int):
        self.tower, self.folder, self.state, self.scenes = tower, folder, state, scenes

    def make(self) -> None:
        """Make every file that is not there."""
        for piece in tqdm(range(-(-self.scenes // PIECE)), desc="features"):
            if not self._file(piece).exists():
                self._make(piece)

    def _seeds(self, piece: int) -> range:
        return range(piece * PIECE, min(self.scenes, (piece + 1) * PIECE))

    def _file(self, piece: int) -> Path:
        seeds = self._seeds(piece)
        return self.folder / f"state{self.state}" / f"{seeds[0]}-{seeds[-1]}.safetensors"

    @torch.no_grad()
    def _make(self, piece: int) -> None:
        features, labels, asked, seeds = [], [], [], self._seeds(piece)
        for start in range(0, len(seeds), 8):
            scenes = [world.scene("train", seed) for seed in seeds[start : start + 8]]
            states = self.tower(pixels([s.image for s in scenes]), output_hidden_states=True)
            features.append(states.hidden_states[self.state][:, 1:].half())  # (8, P, d)
            labels += [torch.from_numpy(s.labels) for s in scenes]
            for seed, scene in zip(seeds[start : start + 8], scenes, strict=True):
                rng = random.Random(f"questions train {seed}")
                found = world.questions(scene, rng)
                asked.append([(q.question, q.answer) for q in found])
        file = self._file(piece)
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = {"features": torch.cat(features), "labels": torch.stack(labels)}
        save_file(whole, file.with_suffix(".partial"), metadata={"asked": json.dumps(asked)})
        os.replace(file.with_suffix(".partial"), file)

    @cached_property
    def _pieces(self) -> list[tuple]:
        files = [self._file(piece) for piece in range(-(-self.scenes // PIECE))]
        opened = [safe_open(file, "pt") for file in files]
        return [
            (f.get_slice("features"), f.get_tensor("labels"), json.loads(f.metadata()["asked"]))
            for f in opened
        ]

    def __getitem__(self, scene: int) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        """(P, d) float16, (P,) labels, questions with answers."""
        features, labels, asked = self._pieces[scene // PIECE]
        i = scene % PIECE
        return features[i], labels[i], asked[i]


class Student(nn.Module):
    """The model without its tower, and what names patches and is thrown away."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor):
        super().__init__()
        core = model.model
        self.projector, self.decoder = core.multi_modal_projector, core.language_model
        self.head, self.words = model.lm_head, processor.tokenizer
        self.named = nn.Linear(core.language_model.config.hidden_size, len(world.LABELS))
        text = processor.apply_chat_template(chat("?"), add_generation_prompt=True)
        ids = self.words(text).input_ids
        image = ids.index(processor.image_token_id)
        self.before, self.after = ids[:image], ids[image + 2 :]  # "?" is the question

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Let the projector begin with features (n, d) of mean 0 and variance 1."""
        first, mean, std = self.projector.linear_1, features.mean(0), features.std(0)
        nn.init.normal_(first.weight, std=features.shape[1] ** -0.5)
        first.weight.div_(std)
        first.bias.copy_(-first.weight @ mean)
        nn.init.normal_(self.projector.linear_2.weight, std=first.out_features**-0.5)

    def naming(self, visual: Tensor, labels: Tensor) -> Tensor:
        """How badly visual tokens (B, P, D) name what is under them: labels (B, P)."""
        weight = torch.ones(len(world.LABELS))
        weight[0] = 0.1  # nothing is on most patches
        return F.cross_entropy(
            self.named(visual).flatten(0, 1), labels.flatten(), weight, ignore_index=IGNORE
        )

    def answering(self, visual: Tensor, asked: list[list[tuple[str, str]]]) -> Tensor:
        """The mean loss of the tokens of answers, each question seeing the picture and itself."""
        rows = [self._packed(row) for row in asked]
        length = max(len(row[0]) for row in rows)
        text, segments, offsets, labels = (
            torch.tensor([row[j] + [empty] * (length - len(row[j])) for row in rows])
            for j, empty in enumerate((0, 0, 0, IGNORE))
        )
        embed = self.decoder.get_input_embeddings()
        before = embed(torch.tensor(self.before)).expand(len(visual), -1, -1)
        embeds = torch.cat([before, visual, embed(text)], 1)  # (B, L, D)
        prefix = before.shape[1] + visual.shape[1]
        mask, positions = isolated(prefix, segments, offsets)
        bias = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
        hidden = self.decoder(
            inputs_embeds=embeds, attention_mask=bias, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = self.head(hidden[:, prefix - 1 : -1])  # (B, T, V): each predicts the next
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    def _packed(self, asked: list[tuple[str, str]]) -> tuple[list[int], ...]:
        text, segments, offsets, labels = [], [], [], []
        for i, (question, answer) in enumerate(asked, start=1):
            ask, say = self.words([question, answer], add_special_tokens=False).input_ids
            ids = [*ask, *self.after, *say, self.words.eos_token_id]
            told = len(say) + 1
            text += ids
            segments += [i] * len(ids)
            offsets += range(len(ids))
            labels += [IGNORE] * (len(ids) - told) + ids[-told:]
        return text, segments, offsets, labels


def train(
    tower: Dinov2Model,
    features: Path,
    out: Path,
    recipe: Recipe,
    save_every: int = 250,
    stop_after: int | None = None,
) -> None:
    """Train, and write `model.safetensors` (projector and decoder), `recipe.json` and `log.csv`.

    Args:
        features: folder for the tower's features, which all seeds share.
        out: folder for the results and, meanwhile, for what a later call goes on from.
        save_every: steps between checkpoints.
        stop_after: leave after this step, to go on later; for tests.

    Raises:
        ValueError: `out` holds a run of another recipe, or a damaged checkpoint; both stay.
    """
    data = Features(tower, features, recipe.state, recipe.scenes)
    data.make()
    net, processor = model(tower, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        student = Student(net, processor)
        some = range(0, recipe.scenes, max(1, recipe.scenes // 100))
        student.standardise(torch.cat([data[i][0] for i in some]).float())
    checkpoint = out / "checkpoint.pt"
    state, first, log = _resume(checkpoint, recipe), 0, []
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.05)
    if state is not None:
        first, log = state["step"], state["log"]
        student.load_state_dict(state["masters"])
        optimizer.load_state_dict(state["optimizers"])
    student.train()
    for step in tqdm(range(first, recipe.warm + recipe.steps), desc=f"seed {recipe.seed}"):
        rng, warm = random.Random(f"{recipe.seed} {step}"), step < recipe.warm
        rows = [data[i] for i in rng.sample(range(recipe.scenes), recipe.batch)]
        seen = torch.stack([row[0] for row in rows]).float()  # (B, P, d)
        with torch.autocast("cpu", torch.bfloat16):  # a quarter faster
            visual = student.projector(seen)  # (B, P, D)
            named = student.naming(visual, torch.stack([row[1] for row in rows]))
            loss, answered = named, None
            if not warm:
                asked = [rng.sample(row[2], len(row[2])) for row in rows]
                answered = student.answering(visual, asked)
                loss = answered + recipe.dense_weight * named
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done = step + 1
        if done % 50 == 0:
            log.append([done, named.item(), float("nan") if warm else answered.item()])
        if done % save_every == 0 or done == stop_after:
            _save(
                checkpoint,
                recipe=asdict(recipe),
                step=done,
                masters=student.state_dict(),
                optimizers=optimizer.state_dict(),
                log=log,
            )
        if done == stop_after:
            return
    out.mkdir(parents=True, exist_ok=True)
    learned = {k: v for k, v in net.state_dict().items() if "vision_tower" not in k}
    save_file({k: v.clone() for k, v in learned.items()}, out / "model.safetensors")
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    np.savetxt(out / "log.csv", log, "%.6g", ",", header="step,named,answered", comments="")


def load(tower: Dinov2Model, out: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model that `train` wrote, on its tower."""
    if not (out / "recipe.json").exists():
        raise FileNotFoundError(f"there is no trained model in {out}: run `real_eye train` first.")
    net, processor = model(tower, Recipe(**json.loads((out / "recipe.json").read_text())))
    missing, unexpected = net.load_state_dict(load_file(out / "model.safetensors"), strict=False)
    if unexpected or any("vision_tower" not in name for name in missing):
        raise ValueError(f"{out / 'model.safetensors'} is not of this recipe: train anew.")
    return net.eval(), processor
