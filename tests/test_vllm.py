"""The plug-in in vLLM against transformers: what is kept, and what is said. `make vllm` runs it.

One engine answers all of it. Its prompts are cut into chunks of 160 tokens, so that those with all
tokens of a picture are prefilled in parts, and those with a quarter of them at once.
"""

import os

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make vllm")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # functions for the workers: tests alone
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

from vllm import LLM, SamplingParams

import fopru
from fopru.evaluation.asking import prepare, prompts
from fopru.pocket import folder
from fopru.serving.vllm.settings import pruner_of
from fopru.serving.vllm.watching import take, watch

KINDS = {
    "rank-1.0": {"retention": 1.0},
    "rank-0.5": {"retention": 0.5},
    "rank-0.25": {},
    "row-0.5": {"retention": 0.5, "strategy": "row"},
    "row-0.25": {"strategy": "row"},
}
"""Five budgets, as requests ask for them of an engine whose own is 0.25 by rank."""

ENGINE = {"retention": 0.25}
OPTIONS = dict(
    model=str(folder()),
    dtype="float32",
    max_model_len=1024,
    max_num_batched_tokens=160,
    max_num_seqs=16,
    block_size=32,
    limit_mm_per_prompt={"image": 3},
    enforce_eager=True,
)
GREEDY = SamplingParams(temperature=0, max_tokens=6)


def overrides(**settings):
    return {"architectures": ["FoPruLlavaForConditionalGeneration"], "fopru": settings}


@pytest.fixture(scope="module")
def pocket():
    return fopru.load("pocket")


@pytest.fixture(scope="module")
def questions():
    """104 of PocketBench's questions, 13 of each task, about 52 pictures or so."""
    tasks = {}
    for example in fopru.pocket.benchmark("test"):
        tasks.setdefault(example.task, []).append(example)
    return [example for examples in tasks.values() for example in examples[::15][:13]]


@torch.no_grad()
def said_by_transformers(pocket, asked, pruner):
    """The tokens of the answer, and the places that each picture keeps."""
    model, _ = pocket
    pruned = pruner.prune(model, asked)
    out = model.generate(**pruned, max_new_tokens=6, do_sample=False)
    new = out[0, pruned["input_ids"].shape[1] :].tolist()
    return new, [image.kept.tolist() for image in pruned.images]


@pytest.fixture(scope="module")
def expected(pocket, questions):
    """Kind -> (answer, kept) of each question, by fopru in transformers, one at a time."""
    _, processor = pocket
    found = {kind: [] for kind in KINDS}
    for example in questions:
        asked = prepare(processor, [example], prompts(processor, [example]))
        for kind, settings in KINDS.items():
            pruner = pruner_of(ENGINE | settings)
            answer, kept = said_by_transformers(pocket, asked, pruner)
            found[kind].append((answer, kept[0]))
    return found


@pytest.fixture(scope="module")
def engine():
    llm = LLM(hf_overrides=overrides(**ENGINE), **OPTIONS)
    llm.apply_model(watch)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture
def fresh(engine):
    """The engine, with nothing in its caches."""
    engine.reset_prefix_cache()
    engine.reset_mm_cache()
    engine.llm_engine.reset_encoder_cache()
    engine.apply_model(take)
    return engine


@pytest.fixture(scope="module")
def asks(pocket, questions):
    """A request for each question, of this kind."""
    _, processor = pocket
    texts = prompts(processor, questions)

    def request(i, kind="rank-0.25"):
        pictures = {"image": questions[i].image}
        return {"prompt": texts[i], "multi_modal_data": pictures} | own(KINDS[kind])

    return request


def own(settings):
    return {"mm_processor_kwargs": {"fopru": settings}} if settings else {}


def answers(llm, requests):
    """The tokens of each answer."""
    out = llm.generate(requests, GREEDY, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in out]


@pytest.mark.parametrize("kind", KINDS)
def test_kept_and_said_are_those_of_transformers(fresh, asks, questions, expected, kind):
    requests = [asks(i, kind) for i in range(len(questions))]
    said, kept = [], {}
    for i, request in enumerate(requests):
        said += answers(fresh, [request])
        if log := fresh.apply_model(take)[0]:  # the tower sees each picture once
            (kept[i],) = log
    assert said == [answer for answer, _ in expected[kind]]
    assert kept == {i: expected[kind][i][1] for i in kept} and len(kept) >= 50
