"""What a draw is made of: a model, a pruner, prompts, and a way of asking."""

from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Thread

import tiny
import torch
import zoo
from drawing import Draws, Short
from transformers import PreTrainedModel

import fopru

SIZES = [(40, 40), (60, 44), (44, 70), (100, 30), (640, 8), (8, 200)]
"""Pixels of the pictures, the last two thin."""
TEXTS = [
    "USER: {} w1 w2 w3 ASSISTANT:",
    "w7 USER: {} w4 w5 w6 w8 w9 ASSISTANT:",
    "w1 w2 w3 w1 {} w5 w1 w2 w3",
    "{} w9",
    "w9 w8 w7 w6 w5 w4 w3 w2 USER: {} w1 w1 ASSISTANT:",
]
BEFORE = ["fopru", "fopru-row", "random", "uniform", "cls", "divprune", "dpp", "cdpruner", "dart"]
MERGING = ["pool", "tome", "visionzip", "prumerge", "vispruner"]
INSIDE = ["fastv", "pyramiddrop"]


@dataclass(frozen=True)
class Row:
    """One prompt: which text, and the sizes of its pictures."""

    text: int
    pictures: tuple[int, ...]

    @property
    def words(self) -> str:
        return TEXTS[self.text].format(" w2 ".join(["<image>"] * len(self.pictures)))


@dataclass(frozen=True, repr=False)
class Case(Short):
    """All drawn values; its repr is the reproduction."""

    way: str
    family: str
    method: str
    retention: float | None = 0.25
    """None where k is given."""
    budget: int | None = None
    positions: str | None = None
    weights: str = "none"
    rows: tuple[Row, ...] = (Row(0, (0,)),)
    video: bool = False
    padding: str = "left"
    mask: bool = True
    ids: str = "name"
    config: bool = False
    thread: bool = False
    before: str | None = None
    attention: str = "sdpa"
    window: int | None = None
    sizes_as_list: bool = False
    option: int = 0
    tokens: int = 3

    @property
    def pruner(self) -> fopru.Pruner:
        told = {"tokens": self.budget} if self.retention is None else {"retention": self.retention}
        return fopru.METHODS[self.method](**told, positions=self.positions, weights=self.weights)


def drawn_case(draws: Draws, ways: dict) -> Case:
    """Any case; what cannot be asked of any model is left out here."""
    one = draws.choice
    way = one(sorted(ways))
    kind = ways[way]
    family = one([f for f in zoo.FAMILIES if f not in zoo.LINEAR])  # test_linear_attention.py
    method = one(INSIDE * 3 + BEFORE + MERGING[:2] * 2 + MERGING[2:])
    # the reference of a merging method is shorter inputs, which carry no weights: test_weights.py
    weights = one(["none", "mass"]) if method in BEFORE else "none"
    budget = one([None, None, None, 3, 9]) if method not in INSIDE else None
    retention = one([0.25, 0.1, 0.5, 0.25, 1.0]) if budget is None else None
    # M-RoPE positions are never numbered anew: the refusal is drawn now and then
    positions = one([None, None, "preserve", "reindex"])
    if positions == "reindex" and family in zoo.SPATIAL and not draws.once_in(10):
        positions = None
    video = family in zoo.VIDEO and draws.once_in(5)
    n_rows = 1 if kind.single or video else one([1, 2, 2, 3])
    rows = []
    for _ in range(n_rows):
        n = one([1, 1, 1, 2]) if n_rows == 1 and not draws.once_in(10) else one([0, 1, 1, 2])
        sizes = tuple(one([0, 0, 1, 1, 2, 2, 3, 3, 4, 5]) for _ in range(n))
        rows.append(Row(one(range(len(TEXTS))), sizes))
    return Case(
        way=way,
        family=family,
        method=method,
        retention=retention,
        budget=budget,
        positions=positions,
        weights=weights,
        rows=(Row(0, (0,)),) if video else tuple(rows),
        video=video,
        padding=one(["left", "right"]) if kind.forward else "left",
        mask=one([True, True, False]) or (kind.forward and n_rows > 1),
        ids=one(["name", "name", "place", "inputs"]),
        config=draws.once_in(3),
        thread=draws.once_in(3),
        before=one([None, None, "pictures", "text", "pruned"]),
        attention=one(["sdpa", "sdpa", "eager"]),
        window=one([None, 12]) if "gemma" in family else None,
        sizes_as_list=draws.once_in(5),
        option=one(range(6)),
        tokens=one([2, 3, 4]),
    )


@cache
def model(family: str, attention: str = "sdpa", window: int | None = None) -> PreTrainedModel:
    """A tiny model, shared by the draws; `forget` after a failure, which may have marked it."""
    net = zoo.model(family, attention)
    if window is not None:
        config = net.config
        config.text_config.sliding_window = window
        narrow = type(net)(config).eval()
        narrow.load_state_dict(net.state_dict())
        narrow.set_attn_implementation(attention)
        narrow.generation_config = net.generation_config
        net = narrow
    told = dict(max_new_tokens=1, output_hidden_states=True, return_dict_in_generate=True)
    net.generate(**_inputs(family, (Row(0, (0,)),), "left"), **told)
    return net  # transformers has put its own hooks on by now


@cache
def assistant(family: str) -> PreTrainedModel:
    """Another model of the family, which drafts."""
    net = zoo.model(family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator) * p.abs().mean())
    return net


@lru_cache(maxsize=512)
def _inputs(family: str, rows: tuple[Row, ...], padding: str) -> dict:
    if not any(row.pictures for row in rows):
        ids = tiny.tokenizer(padding)([r.words for r in rows], padding=True, return_tensors="pt")
        data = {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}
        if family in zoo.SPATIAL:
            data["mm_token_type_ids"] = torch.zeros_like(ids.input_ids)
        if family == "gemma3":
            data["token_type_ids"] = torch.zeros_like(ids.input_ids)
        return data
    sizes = [size for row in rows for size in row.pictures]
    images = [tiny.image(*SIZES[size], seed=10 * i + size) for i, size in enumerate(sizes)]
    return dict(zoo.inputs(family, images, [row.words for row in rows], padding))


def inputs(case: Case) -> dict:
    """The whole batch, masks included; tensors are shared: nobody writes to them."""
    if case.video:
        return dict(_video(case.family))
    return dict(_inputs(case.family, case.rows, case.padding))


@cache
def _video(family: str) -> dict:
    return zoo.video(family)


def singles(case: Case) -> list[dict]:
    """Each row alone, with its own pictures."""
    if case.video:
        return [inputs(case)]
    rows, seen = [], 0
    for row in case.rows:
        if not row.pictures:
            rows.append(dict(_inputs(case.family, (row,), "left")))
            continue
        images = [
            tiny.image(*SIZES[size], seed=10 * (seen + i) + size)
            for i, size in enumerate(row.pictures)
        ]
        rows.append(dict(zoo.inputs(case.family, images, [row.words], "left")))
        seen += len(row.pictures)
    return rows


def forget() -> None:
    """Make models and inputs anew: a failure may have left something on them."""
    for cached in (model, assistant, _inputs, _video):
        cached.cache_clear()


def in_thread(call):
    """What a call returns or raises, made in a thread of its own."""
    result = []

    def work():
        try:
            result.append((call(), None))
        except BaseException as error:
            result.append((None, error))

    thread = Thread(target=work)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value
