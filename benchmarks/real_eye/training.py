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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

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
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from fopru.evaluation import chat
from fopru.evaluation.asking import answer_ids
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
    """Steps in which only the projector and the words learn: to name what is under each patch."""
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
    compiled: bool = True
    """Whether torch compiles the decoder, which is a fifth faster on CPUs."""

    def learning_rate(self, step: int) -> float:
        """At a step of either stage."""
        place, total = (step, self.warm) if step < self.warm else (step - self.warm, self.steps)
        return self.lr * min(1, (place + 1) / 100, (total - place) / (self.decay * total))


def processor(words: PreTrainedTokenizerFast, template: str, **more: Any) -> LlavaProcessor:
    """LLaVA's processor for the tower's pictures and these words."""
    square = {"height": world.SIZE, "width": world.SIZE}
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": world.SIZE}, crop_size=square, image_mean=MEAN, image_std=STD
    )
    return LlavaProcessor(
        pictures,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
        **more,
    )


def llava(
    tower: Dinov2Model, text: PreTrainedConfig, image_token: int, recipe: Recipe
) -> LlavaForConditionalGeneration:
    """An untrained LLaVA on the tower, which is frozen."""
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(world.SIZE // PATCH) ** 2,
        vision_feature_layer=recipe.state,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        made = LlavaForConditionalGeneration(config)
    made.model.vision_tower = tower.requires_grad_(False)
    return made


def model(
    tower: Dinov2Model, recipe: Recipe
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA on the tower with an untrained decoder, and its processor."""
    words = build.tokenizer(world.WORDS)
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
    made = processor(words, build.CHAT_TEMPLATE)
    return llava(tower, text, made.image_token_id, recipe), made


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
    """The model without its tower."""

    ends = True
    """Whether it learns where answers end."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor):
        super().__init__()
        core = model.model
        self.projector, self.decoder = core.multi_modal_projector, core.language_model
        self.head, self.processor, self.words = model.lm_head, processor, processor.tokenizer
        text = processor.apply_chat_template(chat("?"), add_generation_prompt=True)
        before, _, asked = text.partition(processor.image_token)
        self.before = self.words(before).input_ids
        self.around = asked.split("?")  # what stands before and after a question
        self.encoded = cache(self._encoded)  # questions repeat: they are few

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Let the projector begin with features (n, d) of mean 0 and variance 1."""
        first, mean, std = self.projector.linear_1, features.mean(0), features.std(0)
        nn.init.normal_(first.weight, std=features.shape[1] ** -0.5)
        first.weight.div_(std)
        first.bias.copy_(-first.weight @ mean)
        nn.init.normal_(self.projector.linear_2.weight, std=first.out_features**-0.5)

    def named(self, visual: Tensor) -> Tensor:
        """Visual tokens (..., D), read as the decoder reads its own output: logits (..., labels).
        So the projector makes each visual token the word for what it shows."""
        labels = self.words.convert_tokens_to_ids(list(world.LABELS))
        return self.head(self.decoder.norm(visual))[..., labels]

    def naming(self, visual: Tensor, labels: Tensor) -> Tensor:
        """How badly visual tokens (B, P, D) name what is under them: labels (B, P)."""
        weight = torch.ones(len(world.LABELS), device=visual.device)
        weight[0] = 0.1  # nothing is on most patches
        return F.cross_entropy(
            self.named(visual).flatten(0, 1), labels.flatten(), weight, ignore_index=IGNORE
        )

    def answering(self, visual: Tensor, asked: list[list[tuple[str, str]]]) -> Tensor:
        """The mean loss of the tokens of answers, each question seeing the picture and itself."""
        rows = [self._packed(row) for row in asked]
        length = max(len(row[0]) for row in rows)
        text, segments, offsets, labels = (
            torch.tensor(
                [row[j] + [empty] * (length - len(row[j])) for row in rows], device=visual.device
            )
            for j, empty in enumerate((0, 0, 0, IGNORE))
        )
        embed = self.decoder.get_input_embeddings()
        before = embed(torch.tensor(self.before, device=visual.device)).expand(len(visual), -1, -1)
        embeds = torch.cat([before, visual, embed(text)], 1)  # (B, L, D)
        prefix = before.shape[1] + visual.shape[1]
        mask, positions = isolated(prefix, segments, offsets)
        bias = torch.zeros(mask.shape, device=mask.device)
        bias.masked_fill_(~mask, torch.finfo(torch.float32).min)
        hidden = self.decoder(
            inputs_embeds=embeds, attention_mask=bias, position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = self.head(hidden[:, prefix - 1 : -1])  # (B, T, V): each predicts the next
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    def _encoded(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of a question in its prompt, and those of its answer that are learned."""
        prompt = question.join(self.around)
        (say,) = answer_ids(self.processor, prompt, answer)
        ask = self.words(prompt, add_special_tokens=False).input_ids
        return ask, say if self.ends else say[:-1]

    def _packed(self, asked: list[tuple[str, str]]) -> tuple[list[int], ...]:
        text, segments, offsets, labels = [], [], [], []
        for i, (question, answer) in enumerate(asked, start=1):
            ask, say = self.encoded(question, answer)
            ids = [*ask, *say]
            text += ids
            segments += [i] * len(ids)
            offsets += range(len(ids))
            labels += [IGNORE] * (len(ids) - len(say)) + say
        return text, segments, offsets, labels


class Decoder(NamedTuple):
    """A language model behind the tower, and how it is taught."""

    recipe: Recipe
    assemble: Callable[[Dinov2Model, Recipe], tuple[LlavaForConditionalGeneration, LlavaProcessor]]
    """Makes the untrained model."""
    student: type[Student]


OURS = Decoder(Recipe(), model, Student)


def train(
    tower: Dinov2Model,
    features: Path,
    out: Path,
    recipe: Recipe,
    save_every: int = 250,
    stop_after: int | None = None,
    device: str | torch.device = "cpu",
    decoder: Decoder = OURS,
) -> None:
    """Train, and write `model.safetensors` (what learned), `recipe.json` and `log.csv`.

    Args:
        features: folder for the tower's features, which all seeds share.
        out: folder for the results and, meanwhile, for what a later call goes on from.
        save_every: steps between checkpoints.
        stop_after: leave after this step, to go on later; for tests.
        device: where to train.
        decoder: what makes the untrained model, and what learns.

    Raises:
        ValueError: `out` holds a run of another recipe, or a damaged checkpoint; both stay.
    """
    device = torch.device(device)
    data = Features(tower, features, recipe.state, recipe.scenes)
    data.make()
    net, words = decoder.assemble(tower, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        learner = decoder.student(net, words)
        some = range(0, recipe.scenes, max(1, recipe.scenes // 100))
        learner.standardise(torch.cat([data[i][0] for i in some]).float())
    learner.to(device)
    checkpoint = out / "checkpoint.pt"
    state, first, log = _resume(checkpoint, recipe), 0, []
    learned = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    parameters = list(learned.values())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.05)
    if state is not None:
        first, log = state["step"], state["log"]
        learner.load_state_dict(state["masters"], strict=False)
        optimizer.load_state_dict(state["optimizers"])
    learner.train()
    if recipe.compiled:
        learner.decoder.set_attn_implementation("eager")  # SDPA's backward is slow in bfloat16
        learner.decoder.compile(dynamic=True)
        # What is compiled depends on what is seen first: let that be the same in every run.
        _losses(learner, data, recipe, recipe.warm, device)[1].backward()
    for step in tqdm(range(first, recipe.warm + recipe.steps), desc=f"seed {recipe.seed}"):
        named, answered = _losses(learner, data, recipe, step, device)
        loss = named if answered is None else answered + recipe.dense_weight * named
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done = step + 1
        if done % 50 == 0:
            log.append([done, named.item(), float("nan") if answered is None else answered.item()])
        if done % save_every == 0 or done == stop_after:
            _save(
                checkpoint,
                recipe=asdict(recipe),
                step=done,
                masters={name: p.detach() for name, p in learned.items()},
                optimizers=optimizer.state_dict(),
                log=log,
            )
        if done == stop_after:
            return
    out.mkdir(parents=True, exist_ok=True)
    net.cpu()
    save_file({name: p.detach() for name, p in _learned(net)}, out / "model.safetensors")
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    np.savetxt(out / "log.csv", log, "%.6g", ",", header="step,named,answered", comments="")


def _losses(
    learner: Student, data: Features, recipe: Recipe, step: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """How badly patches are named at a step, and how badly answers are known where they are
    learned."""
    rng = random.Random(f"{recipe.seed} {step}")
    rows = [data[i] for i in rng.sample(range(recipe.scenes), recipe.batch)]
    seen = torch.stack([row[0] for row in rows]).to(device).float()  # (B, P, d)
    labels = torch.stack([row[1] for row in rows]).to(device)  # (B, P)
    with torch.autocast(device.type, torch.bfloat16):  # a quarter faster
        visual = learner.projector(seen)  # (B, P, D)
        named = learner.naming(visual, labels)
        if step < recipe.warm:
            return named, None
        asked = [rng.sample(row[2], len(row[2])) for row in rows]
        return named, learner.answering(visual, asked)


def _learned(net: LlavaForConditionalGeneration) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def load(
    tower: Dinov2Model, out: Path, decoder: Decoder = OURS
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model that `train` wrote, on its tower."""
    if not (out / "recipe.json").exists():
        raise FileNotFoundError(f"there is no trained model in {out}: run `real_eye train` first.")
    net, words = decoder.assemble(tower, Recipe(**json.loads((out / "recipe.json").read_text())))
    state = load_file(out / "model.safetensors")
    _, unexpected = net.load_state_dict(state, strict=False)
    if unexpected or any(name not in state for name, _ in _learned(net)):
        raise ValueError(f"{out / 'model.safetensors'} is not of this recipe: train anew.")
    return net.eval(), words
