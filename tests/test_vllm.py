"""The plug-in in vLLM against transformers: what is kept, and what is said. `make vllm` runs it.

One engine answers all of it. Its prompts are cut into chunks of 160 tokens, so that those with all
tokens of a picture are prefilled in parts, and those with a quarter of them at once.
"""

import base64
import io
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make vllm")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # functions for the workers: tests alone
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

from typer.testing import CliRunner
from vllm import LLM, ModelRegistry, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.video_prune.evs import compute_mrope_for_media, recompute_mrope_positions

import fopru
from fopru.cli import app
from fopru.evaluation.asking import inputs_of, prompts
from fopru.families import UnsupportedModelError
from fopru.pocket import folder
from fopru.serving.vllm import ARCHITECTURES, register
from fopru.serving.vllm.llava_onevision import PrunedLlavaOnevision
from fopru.serving.vllm.pruning import Pruned
from fopru.serving.vllm.settings import pruner_of
from fopru.serving.vllm.watching import carry_places, take, watch

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
    enable_mm_embeds=True,
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


def said_by_transformers(pocket, asked, *pruners):
    """For each pruner the tokens of the answer, and the places that each picture keeps."""
    model, _ = pocket
    encoded = fopru.encode(model, asked, pruners)
    for pruner in pruners:
        pruned = pruner.compact(encoded)
        out = model.generate(**pruned, max_new_tokens=6, do_sample=False)
        new = out[0, pruned["input_ids"].shape[1] :].tolist()
        yield new, [image.kept.tolist() for image in pruned.images]


@pytest.fixture(scope="module")
def expected(pocket, questions):
    """Kind -> (answer, kept) of each question, by fopru in transformers, one at a time."""
    _, processor = pocket
    found = {kind: [] for kind in KINDS}
    pruners = [pruner_of(ENGINE | settings) for settings in KINDS.values()]
    for example in questions:
        asked = inputs_of(processor, [example])
        each = said_by_transformers(pocket, asked, *pruners)
        for kind, (answer, kept) in zip(KINDS, each, strict=True):
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


def test_five_kinds_in_one_batch(fresh, asks, questions, expected):
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(len(questions))]
    said = answers(fresh, [asks(i, kind) for i, kind in enumerate(kinds)])
    assert said == [expected[kind][i][0] for i, kind in enumerate(kinds)]
    assert answers(fresh, [asks(i) for i in range(len(questions))]) == [
        answer for answer, _ in expected["rank-0.25"]
    ]


def test_one_picture_at_five_budgets_from_cold_and_warm_caches(fresh, asks, expected):
    for warm in (False, True):
        for kind in KINDS:
            for i in range(6):
                (out,) = fresh.generate([asks(i, kind)], GREEDY, use_tqdm=False)
                assert list(out.outputs[0].token_ids) == expected[kind][i][0]
                assert out.num_cached_tokens >= 32 * warm


def test_two_pictures_that_share_a_prompt_are_not_taken_for_each_other(fresh, asks, questions):
    ask = next(asks(i) for i, example in enumerate(questions) if example.task == "presence")
    pictures = list({id(e.image): e.image for e in questions}.values())
    requests = [ask | {"multi_modal_data": {"image": picture}} for picture in pictures]
    said = answers(fresh, requests)
    a, b = 0, next(i for i, answer in enumerate(said) if answer != said[0])
    fresh.reset_prefix_cache()
    fresh.apply_model(take)
    cached = []
    for i in (a, b, a, b):
        (out,) = fresh.generate([requests[i]], GREEDY, use_tqdm=False)
        assert list(out.outputs[0].token_ids) == said[i]
        cached.append(out.num_cached_tokens)
    assert cached[0] == cached[1] == 0 and min(cached[2:]) >= 32


@pytest.mark.parametrize("n", [2, 3])
def test_several_pictures_in_a_prompt(fresh, pocket, questions, n):
    _, processor = pocket
    for i in range(4):
        pictures = [questions[(7 * i + 31 * j) % len(questions)].image for j in range(n)]
        text = "USER: " + "<image>\n" * n + questions[i].question + " ASSISTANT:"
        asked = processor(images=pictures, text=[text], return_tensors="pt")
        for kind in ("rank-1.0", "rank-0.5", "row-0.25"):
            pruner = pruner_of(ENGINE | KINDS[kind])
            ((answer, kept),) = said_by_transformers(pocket, asked, pruner)
            request = {"prompt": text, "multi_modal_data": {"image": pictures}} | own(KINDS[kind])
            assert answers(fresh, [request]) == [answer]
            log = fresh.apply_model(take)[0]
            assert [places for places in kept if places in log] == log  # others were seen before


SERVED = ("cls", "divprune", "dart", "hiprune", "uniform", "random", "vispruner", "scope", "dpp")
"""Methods beside FoPru that a picture's tokens, keys and attention are enough for."""


@pytest.mark.parametrize("method", SERVED)
def test_other_methods(fresh, pocket, questions, asks, method):
    settings = {"method": method, "retention": 0.25}
    pruner = pruner_of(settings)
    fresh.apply_model(partial(use, settings))
    try:
        for i in range(0, 104, 10):
            asked = inputs_of(pocket[1], [questions[i]])
            ((answer, kept),) = said_by_transformers(pocket, asked, pruner)
            assert answers(fresh, [asks(i)]) == [answer]
            assert fresh.apply_model(take)[0] == kept
    finally:
        fresh.apply_model(partial(use, ENGINE))


def use(settings, model):
    model.use(pruner_of(settings))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"retention": 0}, r"retention=0: must be a number in \(0, 1\]"),
        ({"retention": 7}, "retention=7: must be a number"),
        ({"retention": 0.5, "tokens": 9}, "give one of them, not both"),
        ({"tokens": 300}, "tokens=300: a picture of 256 visual tokens"),
        ({"tokens": 7, "strategy": "row"}, "no multiple of this view's 16 a row"),
        ({"strategy": "diag"}, "strategy='diag': must be one of 'rank', 'row'"),
        ({"layer": 1}, "layer=1 is not a request's to set"),
        ({"method": "cls"}, "method='cls' is not a request's to set"),
        ({"retnetion": 0.5}, "Did you mean 'retention'"),
        (3, "fopru=3: a request's settings must be a table"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence_and_the_engine_lives(
    engine, asks, expected, asked, message
):
    with pytest.raises(ValueError, match=message):
        answers(engine, [asks(0) | {"mm_processor_kwargs": {"fopru": asked}}])
    assert answers(engine, [asks(0)]) == [expected["rank-0.25"][0][0]]


def test_precomputed_embeddings_are_refused(engine, asks, expected):
    request = asks(0) | {"multi_modal_data": {"image": torch.zeros(1, 64, 128)}}
    with pytest.raises(ValueError, match="image embeddings were given.*send pictures"):
        answers(engine, [request])
    assert answers(engine, [asks(0)]) == [expected["rank-0.25"][0][0]]


def test_tokens_are_a_budget_too(fresh, asks, expected):
    request = asks(0) | {"mm_processor_kwargs": {"fopru": {"tokens": 64}}}
    assert answers(fresh, [request]) == [expected["rank-0.25"][0][0]]
    assert fresh.apply_model(take)[0] == [expected["rank-0.25"][0][1]]


def test_text_without_a_picture_is_answered(engine):
    (answer,) = answers(engine, ["USER: is there a red square? ASSISTANT:"])
    assert answer


def test_what_a_request_asks_for_is_part_of_what_caches_go_by():
    def hashed(engine, asked):
        processor = MULTIMODAL_REGISTRY.create_processor(configured(**engine))
        shown = processor.info.parse_mm_data({"image": Image.new("RGB", (64, 64))})
        given = ProcessorInputs([2, 4, 83], shown, hf_processor_mm_kwargs=asked)
        out = processor.apply(given, TimingContext(enabled=False))
        return out["mm_hashes"]["image"][0]

    half = hashed({"retention": 0.5}, {})
    assert hashed({"retention": 0.25}, {}) != half
    assert hashed({"retention": 0.25}, {"fopru": {"retention": 0.5}}) == half
    assert hashed({"retention": 0.5}, {"fopru": {"strategy": "row"}}) != half


# What is no engine


def configured(architecture="FoPruLlavaForConditionalGeneration", **settings):
    """vLLM's configuration of pocket in this architecture."""
    over = {"architectures": [architecture], "fopru": settings}
    options = EngineArgs(model=OPTIONS["model"], hf_overrides=over, dtype="float32")
    return options.create_model_config()


def test_the_plug_in_stands_beside_others_and_may_be_loaded_twice():
    ModelRegistry.register_model("OfAnother", "another:Model")
    register()
    register()
    assert {*ARCHITECTURES, "OfAnother"} <= {*ModelRegistry.get_supported_archs()}


def test_a_family_that_is_not_served_is_no_architecture():
    with pytest.raises(ValueError, match="FoPruGemma3ForConditionalGeneration.* not supported"):
        configured("FoPruGemma3ForConditionalGeneration", retention=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"method": "tome"}, "makes new tokens"), ({"retention": 7}, "retention=7: must be")],
)
def test_an_engine_of_bad_settings_ends_before_it_starts(settings, message):
    with pytest.raises(ValueError, match=message):
        MULTIMODAL_REGISTRY.create_processor(configured(**settings))


class Bare:
    def __init__(self, *, vllm_config, prefix=""):
        pass


@pytest.mark.parametrize(
    ("lora", "parallel", "message"),
    [(True, "weights", "enable_tower_connector_lora"), (False, "data", "mm_encoder_tp_mode")],
)
def test_what_cannot_be_pruned_rightly_is_refused(lora, parallel, message):
    modes = SimpleNamespace(mm_encoder_tp_mode=parallel)
    asked = SimpleNamespace(
        lora_config=SimpleNamespace(enable_tower_connector_lora=lora),
        model_config=SimpleNamespace(multimodal_config=modes),
    )
    with pytest.raises(UnsupportedModelError, match=message):
        type("Model", (Pruned, Bare), {})(vllm_config=asked)


def test_onevision_that_vllm_would_pack_in_another_way_is_refused():
    config = SimpleNamespace(vision_aspect_ratio="anyres_max_4")
    asked = SimpleNamespace(model_config=SimpleNamespace(hf_config=config))
    with pytest.raises(UnsupportedModelError, match="vision_aspect_ratio='anyres_max_4'"):
        PrunedLlavaOnevision(vllm_config=asked)


def test_a_tower_whose_attention_was_not_seen_is_told():
    model = object.__new__(Pruned)
    model.noted = {}
    with pytest.raises(UnsupportedModelError, match="block 3 .* nothing to score tokens by"):
        model._calls(3, {})


# More engines


@contextmanager
def another(**options):
    llm = LLM(**OPTIONS | options)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"enforce_eager": False}, {"tensor_parallel_size": 2}])
def test_other_engines(asks, expected, options, monkeypatch):
    if "tensor_parallel_size" in options:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with another(hf_overrides=overrides(**ENGINE), **options) as llm:
        llm.apply_model(watch)
        for kind in ("rank-1.0", "rank-0.25", "row-0.5"):
            some = range(0, 104, 4)
            said, kept = [], {}
            for i in some:
                said += answers(llm, [asks(i, kind)])
                first, *ranks = llm.apply_model(take)
                assert all(rank == first for rank in ranks)
                if first:
                    (kept[i],) = first
            assert said == [expected[kind][i][0] for i in some]
            assert kept == {i: expected[kind][i][1] for i in kept} and len(kept) > 10


# LLaVA-NeXT


@pytest.fixture(scope="module")
def llava_next(pocket, tmp_path_factory):
    """A folder with the pocket model as a LLaVA-NeXT: its pictures are cut into tiles too."""
    net, processor = pocket
    place, side = tmp_path_factory.mktemp("next"), net.config.vision_config.image_size
    points = [[side, 2 * side], [2 * side, side]]
    parts = dict(vision_config=net.config.vision_config, text_config=net.config.text_config)
    config = hf.LlavaNextConfig(
        **parts,
        image_token_index=net.config.image_token_id,
        vision_feature_layer=net.config.vision_feature_layer,
        image_grid_pinpoints=points,
    )
    other = hf.LlavaNextForConditionalGeneration(config)
    missing = other.load_state_dict(net.state_dict(), strict=False)
    assert missing.missing_keys == ["model.image_newline"] and not missing.unexpected_keys
    other.save_pretrained(place)
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessorPil(**size, image_grid_pinpoints=points),
        processor.tokenizer,
        patch_size=net.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=processor.chat_template,
    ).save_pretrained(place)
    return str(place)


@pytest.mark.slow
def test_llava_next_keeps_a_share_of_each_view(llava_next, questions):
    net, _ = fopru.load(llava_next)
    processor = hf.AutoProcessor.from_pretrained(llava_next)  # as vLLM: by torchvision, not by PIL
    asked, expected, kept = [], [], []
    for i in range(0, 104, 9):
        example = questions[i]
        sizes = [(300, 150), (120, 360), (224, 224)]
        pictures = [example.image.resize(sizes[i % 3])]
        if i % 2:  # of other numbers of tiles in one request
            pictures.append(questions[i - 1].image.resize(sizes[(i + 1) % 3]))
        text = "USER: " + "<image>\n" * len(pictures) + example.question + " ASSISTANT:"
        inputs = processor(images=pictures, text=[text], return_tensors="pt")
        pruners = [pruner_of(ENGINE | settings) for settings in KINDS.values()]
        each = said_by_transformers((net, processor), inputs, *pruners)
        for settings, (answer, places) in zip(KINDS.values(), each, strict=True):
            expected.append(answer)
            kept += places
            shown = {"prompt": text, "multi_modal_data": {"image": pictures}}
            asked.append(shown | {"mm_processor_kwargs": {"fopru": settings}})
    engine = overrides(**ENGINE)
    engine["architectures"] = ["FoPruLlavaNextForConditionalGeneration"]
    own = dict(model=llava_next, max_model_len=2048, max_num_batched_tokens=1024)
    with another(hf_overrides=engine, **own) as llm:
        llm.apply_model(watch)
        said = [answers(llm, [one])[0] for one in asked]
        (log,) = llm.apply_model(take)
    assert all(places in log for places in kept)  # a picture that was seen is not seen again
    assert said == expected


# Tiny random models of other families, which know 64 words


def random_model(place, net, marks, **stds):
    """Write a model with random weights, and a tokenizer that knows these marks and w0, w1, ..."""
    for name, weight in net.named_parameters():
        if weight.dim() > 1:
            std = next((std for part, std in stds.items() if part in name), 0.12)
            torch.nn.init.normal_(weight, std=std)
    net.save_pretrained(place)
    words = ["<pad>", "<eos>", *marks]
    words += [f"w{i}" for i in range(64 - len(words))]
    table = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    tokenizer = Tokenizer(table)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=list(marks),
    )
    known.save_pretrained(place)
    return known


TEXT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=4096,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=None,
)
LONG = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
MIXED = [{"retention": 1.0}, {"retention": 0.5}, {}, {"retention": 0.5, "strategy": "row"}]


def noise(draw, width, height):
    squares = draw.integers(0, 256, (height // 14, width // 14, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((width, height), 0)


def asked_of_both(net, processor, sizes, mark):
    """Requests about one or two pictures, and what transformers says and keeps."""
    draw = np.random.default_rng(1)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    asked, expected, kept = [], [], []
    for i in range(18):
        shown = [sizes[(i + 3 * j) % len(sizes)] for j in range(1 + (i % 3 == 2))]
        pictures = [noise(draw, *size) for size in shown]
        text = f"w{i} w3{mark * len(pictures)} w5 w{i + 20} w9"
        inputs = processor(text=[text], images=pictures, return_tensors="pt")
        for settings in MIXED:
            pruned = pruner_of(ENGINE | settings).prune(net, inputs)
            out = net.generate(**pruned, **options)
            expected.append(out[0, pruned["input_ids"].shape[1] :].tolist())
            kept += [image.kept.tolist() for image in pruned.images]
            request = {"prompt": text, "multi_modal_data": {"image": pictures}}
            asked.append(request | {"mm_processor_kwargs": {"fopru": settings}})
    assert len({*map(tuple, expected)}) > 36  # budgets change answers, so that equality says much
    return asked, expected, kept


def check_engine(llm, asked, expected, kept):
    llm.apply_model(watch)
    outs = [llm.generate([one], LONG, use_tqdm=False)[0] for one in asked]
    assert llm.apply_model(take)[0] == kept
    for warm in (outs, llm.generate(asked, LONG, use_tqdm=False)):
        assert [list(out.outputs[0].token_ids) for out in warm] == expected


# LLaVA-OneVision

TILED = [(56, 56), (224, 168), (168, 224), (112, 56), (60, 200), (230, 160)]
"""Some of twelve tiles, more than `anyres_max_9` has room for."""


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    """A folder with a tiny random LLaVA-OneVision."""
    place = tmp_path_factory.mktemp("onevision")
    points = [[56, 56], [56, 112], [112, 56], [56, 168], [168, 224], [224, 168]]
    torch.manual_seed(0)
    tower = hf.SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=tower,
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=2,
        video_token_index=3,
        image_grid_pinpoints=points,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    net = hf.LlavaOnevisionForConditionalGeneration(config)
    words = random_model(place, net, ["<image>", "<video>"])
    pixels = dict(size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessorPil(**pixels, image_grid_pinpoints=points),
        words,
        hf.LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        image_token="<image>",
        video_token="<video>",
        vision_aspect_ratio="anyres_max_9",
    ).save_pretrained(place)
    return str(place)


@pytest.mark.slow
def test_onevision_keeps_a_share_of_each_view(onevision):
    net, _ = fopru.load(onevision)
    processor = hf.AutoProcessor.from_pretrained(onevision)
    both = asked_of_both(net, processor, TILED, " <image>")
    engine = overrides(**ENGINE)
    engine["architectures"] = ["FoPruLlavaOnevisionForConditionalGeneration"]
    with another(model=onevision, hf_overrides=engine, enable_mm_embeds=False) as llm:
        check_engine(llm, *both)


# Qwen2.5-VL, Qwen3-VL

SIZES = [(140, 196), (196, 140), (112, 280), (280, 84), (168, 168), (224, 140)]
MARKS = [f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad", "video_pad")]
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
TOWER = dict(depth=4, num_heads=2, hidden_size=128, intermediate_size=192, out_hidden_size=128)
IDS = dict(
    image_token_id=4,
    video_token_id=5,
    vision_start_token_id=2,
    vision_end_token_id=3,
    tie_word_embeddings=False,
)


def test_stock_vllm_numbers_text_behind_a_portrait_picture_by_its_width():
    """What book/serving.md says; when this fails, vLLM has mended it."""
    start, end, picture, video, text = 2, 3, 4, 5, 9
    for height, width in ((3, 2), (2, 3)):
        ids = torch.tensor([text, start, *[picture] * 6, end, text])
        places = compute_mrope_for_media((1, 2 * height, 2 * width), 2).T.long()  # (4, 6)
        after = torch.arange(2) + 2 + max(height, width)
        parts = [torch.arange(2).expand(3, 2), 2 + places[:3], after.expand(3, 2)]
        right = torch.cat(parts, 1)  # (3, 10), as transformers numbers them
        found, _ = recompute_mrope_positions(ids, [places], right, 0, start, picture, video)
        assert torch.equal(right - found, right.new_zeros(3, 10)) == (height <= width)
        assert found[0, -2:].tolist() == [2 + width, 3 + width]


def qwen_folder(place, net, kind, side):
    """Write a Qwen with random weights, and what its processor is made of."""
    random_model(place, net, MARKS, visual=0.15)
    pixels = {"shortest_edge": 784, "longest_edge": 200704}
    for modality in ("Image", "Video"):
        family = "Qwen3VL" if (kind, modality) == ("Qwen3VL", "Video") else "Qwen2VL"
        settings = {
            f"{modality.lower()}_processor_type": f"{family}{modality}Processor",
            "processor_class": f"{kind}Processor",
            "size": pixels,
            "patch_size": side,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],  # vLLM wants them in the file
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        name = "preprocessor_config.json"
        name = name if modality == "Image" else f"video_{name}"
        (place / name).write_text(json.dumps(settings))
    return str(place)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    torch.manual_seed(0)
    config = hf.Qwen2_5_VLConfig(
        vision_config=TOWER | dict(window_size=56, fullatt_block_indexes=[1, 3]),
        text_config=TEXT | {"rope_parameters": ROPE},
        **IDS,
    )
    net = hf.Qwen2_5_VLForConditionalGeneration(config)
    return qwen_folder(tmp_path_factory.mktemp("qwen"), net, "Qwen2_5_VL", 14)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    torch.manual_seed(0)
    config = hf.Qwen3VLConfig(
        vision_config=TOWER
        | dict(patch_size=14, num_position_embeddings=64, deepstack_visual_indexes=[0, 2]),
        text_config=TEXT | dict(head_dim=64, rope_parameters=ROPE | {"mrope_interleaved": True}),
        **IDS,
    )
    net = hf.Qwen3VLForConditionalGeneration(config)
    return qwen_folder(tmp_path_factory.mktemp("qwen3"), net, "Qwen3VL", 14)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen", "qwen3"])
def test_qwen_keeps_places_in_portrait_and_several_pictures(request, family):
    place = request.getfixturevalue(family)
    net, processor = fopru.load(place)
    mark = " <|vision_start|> <|image_pad|> <|vision_end|>"
    both = asked_of_both(net, processor, SIZES, mark)
    engine = overrides(**ENGINE)
    engine["architectures"] = [f"FoPru{type(net).__name__}"]
    own = dict(model=place, video_pruning_rate=1e-6, max_num_batched_tokens=64)
    with another(hf_overrides=engine, enable_mm_embeds=False, **own) as llm:
        llm.collective_rpc(carry_places)
        check_engine(llm, *both)


@pytest.mark.slow
def test_an_engine_without_plug_in_takes_embeddings(pocket, questions, asks, expected):
    model, processor = pocket
    with another() as llm:
        for kind in ("rank-0.5", "rank-0.25", "row-0.25"):
            for i in range(0, 104, 8):
                asked = inputs_of(processor, [questions[i]])
                pruner = pruner_of(ENGINE | KINDS[kind])
                (one,) = fopru.serving.embeddings(model, asked, pruner)
                request = {"prompt": asks(i)["prompt"]}
                request["multi_modal_data"] = {"image": one[None]}
                assert answers(llm, [request]) == [expected[kind][i][0]]


@pytest.fixture(scope="module")
def running():
    """A server that tells requests apart by their budgets: its address and its process. It keeps
    few pictures, so that what it holds does not grow with those it has seen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = json.dumps(overrides(**ENGINE))
    options = f"--model {folder()} --served-model-name pocket --dtype float32 --block-size 32"
    options += f" --max-model-len 1024 --enforce-eager --host 127.0.0.1 --port {port}"
    options += " --mm-processor-cache-gb 0.02 --trust-request-mm-kwargs"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    process = psutil.Popen([*command, "--hf-overrides", engine])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError("the server ended before it was ready")
            try:
                urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield url, process
    finally:
        process.terminate()
        process.wait(300)


@pytest.fixture
def server(running):
    return running[0]


def posted(url, question, picture, **options):
    """The request of a question about a picture, as clients send it."""
    data = io.BytesIO()
    picture.save(data, "png")
    return request_of(url, question, data.getvalue(), **options)


def request_of(url, question, data, **options):
    shown = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": shown}}] if data else []
    content += [{"type": "text", "text": question}]
    body = {
        "model": "pocket",
        "temperature": 0,
        "max_tokens": 6,
        "add_special_tokens": True,  # pocket's chat template has none
        "messages": [{"role": "user", "content": content}],
    }
    head = {"Content-Type": "application/json"}
    return Request(f"{url}/v1/chat/completions", json.dumps(body | options).encode(), head)


def reply(request):
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_over_http(server, pocket, questions, expected):
    _, processor = pocket
    for kind, settings in KINDS.items():
        for i in range(0, 104, 8):
            example = questions[i]
            found = reply(posted(server, example.question, example.image, **own(settings)))
            answer, kept = expected[kind][i]
            said = processor.decode(answer, skip_special_tokens=True).strip()
            assert found["choices"][0]["message"]["content"].strip() == said
            text = found["usage"]["prompt_tokens"] - len(kept)
            assert 0 < text < 30  # what is billed are kept tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (None, {"retention": 7}, "retention=7: must be a number in (0, 1]"),
        (None, {"tokens": 300}, "tokens=300: a picture of 256 visual tokens"),
        (None, {"layer": 2}, "layer=2 is not a request's to set"),
        (b"no picture", {}, "image"),
    ],
)
def test_bad_requests_over_http(server, questions, data, settings, message):
    example = questions[0]
    if data is None:
        request = posted(server, example.question, example.image, **own(settings))
    else:
        request = request_of(server, example.question, data)
    with pytest.raises(HTTPError) as refused:
        reply(request)
    assert refused.value.code == 400
    assert message in json.load(refused.value)["error"]["message"]
    assert reply(request_of(server, "is there a red square?", b""))["choices"]


@pytest.mark.slow
def test_a_client_that_goes_away_leaves_nothing_behind(server, questions):
    example, long = questions[0], {"max_tokens": 600, "ignore_eos": True, "stream": True}
    with urlopen(posted(server, example.question, example.image, **long), timeout=60) as answer:
        answer.readline()
    check_idle(server)


def check_idle(server):
    """Nothing runs, nothing waits, and no block of the KV cache is held."""
    names = "num_requests_running|num_requests_waiting|kv_cache_usage_perc"
    for _ in range(60):
        with urlopen(f"{server}/metrics", timeout=60) as metrics:
            text = metrics.read().decode()
        found = re.findall(rf"^vllm:({names})(?:{{.*}})? (\S+)$", text, re.M)
        if len(found) == 3 and all(float(value) == 0 for _, value in found):
            return
        time.sleep(1)
    pytest.fail(f"something is left behind: {found}")


BAD = [
    {"retention": 0},
    {"retention": 7},
    {"tokens": 300},
    {"tokens": 7, "strategy": "row"},
    {"strategy": "diag"},
    {"layer": 1},
]


def drawn(draw, examples):
    """One request of the flood: what it is, a question, the picture or bytes, and settings."""
    example = examples[draw.integers(len(examples))]
    kind = str(draw.choice(["good"] * 16 + ["bad budget", "broken", "text", "gone"]))
    if kind == "text":
        return kind, example.question, b"", {}
    picture = example.image.resize([int(side) for side in draw.integers(20, 500, 2)])
    if kind == "broken":
        data = io.BytesIO()
        picture.save(data, "png")
        whole = data.getvalue()
        return kind, example.question, whole[: draw.integers(1, len(whole) // 2)], {}
    if kind == "bad budget":
        return kind, example.question, picture, BAD[draw.integers(len(BAD))]
    budget = {"tokens": 16 * int(draw.integers(1, 17))}
    if draw.random() < 0.5:
        budget = {"retention": round(float(draw.uniform(0.07, 1)), 3)}
    return kind, example.question, picture, budget | {"strategy": str(draw.choice(["rank", "row"]))}


def flooded(url, one):
    """What the server makes of one request: (status, text, tokens of the prompt)."""
    kind, question, picture, settings = one
    more = own(settings)
    if kind == "gone":
        more |= {"max_tokens": 300, "ignore_eos": True, "stream": True}
    ask = request_of if isinstance(picture, bytes) else posted
    try:
        with urlopen(ask(url, question, picture, **more), timeout=300) as answer:
            if kind == "gone":
                answer.readline()
                return 200, None, None
            found = json.load(answer)
    except HTTPError as refused:
        return refused.code, json.load(refused)["error"]["message"], None
    said = found["choices"][0]["message"]["content"].strip()
    return 200, said, found["usage"]["prompt_tokens"]


def expected_of(net, processor, one):
    """What `flooded` should find, by fopru in transformers."""
    kind, question, picture, settings = one
    if kind in ("broken", "bad budget"):
        return 400
    if kind == "gone":
        return 200, None, None
    content = [{"type": "image"}] if kind == "good" else []
    content += [{"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    pictures = [picture] if kind == "good" else None
    inputs = processor(images=pictures, text=[text], return_tensors="pt")
    if kind == "good":
        inputs = pruner_of(settings).prune(net, inputs)
    length = inputs["input_ids"].shape[1]
    out = net.generate(**inputs, max_new_tokens=6, do_sample=False)
    return 200, processor.decode(out[0, length:], skip_special_tokens=True).strip(), length


def memory(process):
    """Bytes that a server's processes hold, and nobody else does."""
    everyone = [process, *process.children(recursive=True)]
    return sum(one.memory_full_info().uss for one in everyone)


@pytest.mark.slow
def test_a_flood_gets_no_wrong_answer_and_leaves_nothing_behind(running, pocket, questions):
    url, process = running
    draw = np.random.default_rng(0)
    asked = [drawn(draw, questions) for _ in range(200)]
    processor = hf.AutoProcessor.from_pretrained(folder())  # as vLLM: by torchvision, not by PIL
    wanted = [expected_of(pocket[0], processor, one) for one in asked]
    kinds = [one[0] for one in asked]
    held, found = [], []
    start = time.perf_counter()
    with ThreadPoolExecutor(16) as clients:
        for first in range(0, 200, 50):
            found += clients.map(partial(flooded, url), asked[first : first + 50])
            held.append(memory(process))
    print(
        Counter(kinds), f"{time.perf_counter() - start:.0f} s; MB held:", [n // 10**6 for n in held]
    )
    short = [got[0] if want == 400 else got for got, want in zip(found, wanted, strict=True)]
    there = zip(asked, short, wanted, strict=True)
    assert [(one, got, want) for one, got, want in there if got != want] == []
    assert min(Counter(kinds).values()) >= 5 and len({*kinds}) == 5
    assert held[-1] < 1.03 * held[1]  # after 200 requests and after 100
    check_idle(url)


@pytest.mark.slow
def test_serve_check_says_that_all_is_equal(questions, tmp_path):
    for i in (0, 50):
        questions[i].image.save(tmp_path / f"{i}.png")
    asked = ["--question", "is there a red circle?", "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, ["serve-check", "pocket", str(tmp_path), *asked])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("2 of 2") == 6
