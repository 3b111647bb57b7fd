"""How redundant visual tokens are: likeness, rank, coverage, and what an answer needs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from fopru.applying import cache_name, cache_of
from fopru.encoding import EncodedImage, encode
from fopru.evaluation import Example
from fopru.evaluation.asking import answer_ids, inputs_of, prompts
from fopru.families import Family, UnsupportedModelError
from fopru.pruner import Pruner


def neighbours(features: Tensor) -> Tensor:
    """Return the cosine of each token with the other that is most like it, (N,).

    Args:
        features: (N, d), two tokens or more.

    Raises:
        ValueError: fewer than two tokens.
    """
    if len(features) < 2:
        raise ValueError(f"features of {len(features)} token(s): neighbours take two or more.")
    unit = F.normalize(features.float(), dim=1)
    return (unit @ unit.T).fill_diagonal_(-torch.inf).amax(1)


def spectrum(features: Tensor) -> Tensor:
    """Return the singular values of the tokens' features as shares of their sum, (min(N, d),).

    They are the roots of the eigenvalues of the smaller Gram matrix, which takes a small part of
    the time of a singular value decomposition. What is below float64's rounding of the eigenvalues
    (about 4e-7 of the largest singular value, of 576 tokens) counts as 0.

    Raises:
        ValueError: all features are 0.
    """
    table = features.double()
    table = table if len(table) <= table.shape[1] else table.T
    squares = torch.linalg.eigvalsh(table @ table.T).flip(0)  # (min(N, d),)
    if squares[0] <= 0:
        raise ValueError("features: all are 0, so that they have no direction.")
    noise = squares[0] * len(squares) * torch.finfo(squares.dtype).eps
    values = squares.where(squares > noise, 0).sqrt()
    return values / values.sum()


def effective_rank(features: Tensor) -> float:
    """Return how many directions the tokens really use: the exponential of the entropy of
    `spectrum` (Roy and Vetterli, "The effective rank", EUSIPCO 2007)."""
    return torch.special.entr(spectrum(features)).sum().exp().item()


def coverage(features: Tensor, kept: Tensor) -> Tensor:
    """Return the cosine of each token with the kept one that is most like it, (N,); kept tokens
    have 1."""
    unit = F.normalize(features.float(), dim=1)
    return (unit @ unit[kept.to(unit.device)].T).amax(1).clamp(max=1)


@torch.no_grad()
def by_layer(model: PreTrainedModel, pictures: Mapping[str, Any]) -> pd.DataFrame:
    """Measure redundancy after each block of the vision tower.

    Args:
        pictures: Inputs with pixels, for towers that see one tile a picture (LLaVA-1.5).

    Returns:
        One row per picture and layer (0: the embeddings): rank (effective), neighbour (mean of
        `neighbours`).
    """
    family = Family.of(model)
    pixels = pictures["pixel_values"].to(family.tower.device, family.tower.dtype)
    states = family.tower(pixels, output_hidden_states=True).hidden_states
    rows = []
    for layer, state in enumerate(states):
        for picture, tokens in enumerate(state[:, family.n_prefix :]):
            near = neighbours(tokens).mean().item()
            rows.append((picture, layer, effective_rank(tokens), near))
    return pd.DataFrame(rows, columns=["picture", "layer", "rank", "neighbour"])


@dataclass(frozen=True)
class Fixed(Pruner):
    """Keep the tokens that are named.

    Args:
        indices: The k places among the picture's visual tokens, sorted and distinct.
    """

    indices: tuple[int, ...] = ()

    def select(self, image: EncodedImage, k: int) -> Tensor:
        return torch.tensor(self.indices)


class Answers:
    """One question, to be answered from any of its picture's tokens: the picture goes through the
    tower once.

    Raises:
        UnsupportedModelError: The model sees the picture as several tiles or views.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, example: Example):
        self.model = model
        text = prompts(processor, [example])
        encoded = encode(model, inputs_of(processor, [example], text).to(model.device))
        views = [view for image in encoded.images for view in image.grid.views]
        if len(views) > 1:
            raise UnsupportedModelError(
                f"answers from given tokens take pictures of one view, and {encoded.family.title} "
                f"sees this one in {len(views)}."
            )
        self.answer = torch.tensor(answer_ids(processor, text[0], example.answer)).to(model.device)
        self.n_tokens = views[0].n_tokens
        self.encoded = encoded

    @torch.no_grad()
    def loglik(self, kept: Sequence[int]) -> float:
        """Return the log-probability of the right answer with its end, in nats, from these visual
        tokens alone.

        Raises:
            ValueError: no tokens, or one that the picture does not have.
        """
        places = tuple(int(i) for i in kept)
        if not places or not all(0 <= i < self.n_tokens for i in places):
            raise ValueError(f"kept={places[:8]}: must be places in [0, {self.n_tokens - 1}].")
        distinct = tuple(sorted(set(places)))
        with Fixed(tokens=len(distinct), indices=distinct)(self.model) as session:
            out = self.model(**session.arguments(self.encoded), use_cache=True, logits_to_keep=1)
            cache = {cache_name(self.model): cache_of(out)}
            logits = [out.logits]  # (1, 1, V) for the first token of the answer
            if self.answer.shape[1] > 1:
                logits.append(self.model(input_ids=self.answer[:, :-1], **cache).logits)
        log = torch.cat(logits, 1).float().log_softmax(-1)  # (1, A, V)
        return log.gather(2, self.answer[..., None]).sum().item()


def insertion(answers: Answers, order: Sequence[int], counts: Sequence[int]) -> list[float]:
    """Return the log-likelihood of the answer, in nats, with only the first tokens of an order, for
    each count of them."""
    return [answers.loglik(order[:k]) for k in counts]


def deletion(answers: Answers, order: Sequence[int], counts: Sequence[int]) -> list[float]:
    """Return the log-likelihood of the answer, in nats, without the first tokens of an order, for
    each count of them; a count is smaller than the number of tokens."""
    return [answers.loglik(order[k:]) for k in counts]
