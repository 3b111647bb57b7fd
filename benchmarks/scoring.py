"""What reading significance costs: time of the vision tower, and memory of the scores.

    python benchmarks/scoring.py            # CLIP-L/14-336 shape, random weights, bfloat16
    python benchmarks/scoring.py --memory   # peak memory of scoring one layer, streamed and dense

Time: in one process, turn by turn: the plain tower, the tower with FoPru, and the
eager tower with `output_attentions=True` and the same selection. Speed does not depend on weights.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import time

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from fopru import FoPru, encode
from fopru.families import Family
from fopru.picking import top
from fopru.significance import attention_scores


def llava_with_clip_l() -> LlavaForConditionalGeneration:
    """LLaVA-1.5's tower and projector at full size, before a decoder too small to matter."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=128,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    return LlavaForConditionalGeneration(config).to(torch.bfloat16).eval()


@torch.no_grad()
def times(batch: int, turns: int) -> dict[str, list[float]]:
    model = llava_with_clip_l()
    family, pruner = Family.of(model), FoPru(0.25, axis="received")
    inputs = {
        "pixel_values": torch.randn(batch, 3, 336, 336),
        "input_ids": torch.tensor([[1] + [5] * 576 + [2]] * batch),
    }

    def plain():
        family.pictures(inputs)

    def with_fopru():
        for image in encode(model, inputs, [pruner]).images:
            top(pruner.score(image), 144)

    def eager():
        tower = family.tower
        tower.config._attn_implementation = "eager"
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions[-2]
        tower.config._attn_implementation = "sdpa"
        received = maps[:, :, 1:, 1:].float().mean((1, 2))
        for scores in received:
            top(scores, 144)

    ways = {"plain tower": plain, "tower + FoPru": with_fopru, "eager tower + attentions": eager}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first is the warm-up
                spent[name].append(time.perf_counter() - start)
    return spent


def print_times(batches: list[int], turns: int) -> None:
    print(f"CLIP-L/14-336, random weights, bfloat16, {turns} turns: median [quartiles]")
    for batch in batches:
        spent = times(batch, turns)
        base = spent["plain tower"]
        for name, seconds in spent.items():
            low, middle, high = statistics.quantiles(seconds, n=4)
            ratio = statistics.median(s / b for s, b in zip(seconds, base, strict=True))
            print(
                f"  batch {batch}  {name:26} {middle * 1e3:8.0f} ms "
                f"[{low * 1e3:.0f}, {high * 1e3:.0f}]   {ratio:.3f} of plain"
            )


def _peak(way: str, length: int, heads: int, width: int, answer) -> None:
    query, key = (torch.randn(1, heads, length, width) for _ in range(2))
    torch.randn(1, 1, 8, 8) @ torch.randn(1, 1, 8, 8)  # what the libraries take once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "streamed":
        attention_scores(query, key, width**-0.5, 0, {"received", "given"})
    else:
        maps = (query * width**-0.5 @ key.transpose(2, 3)).softmax(-1)
        maps.mean((1, 2)), maps.mean((1, 3))
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def print_memory(heads: int = 16, width: int = 64) -> None:
    """Each way in a fresh process, since a peak never goes down."""
    context = multiprocessing.get_context("spawn")
    print(f"peak extra memory of scoring one layer, {heads} heads of {width}, float32")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    largest = int((0.7 * free / (2 * 4 * heads)) ** 0.5) // 1024 * 1024  # logits and probabilities
    for way, length in (("dense", largest), ("streamed", largest), ("streamed", 16384)):
        answer = context.Queue()
        process = context.Process(target=_peak, args=(way, length, heads, width, answer))
        process.start()
        peak = answer.get()
        process.join()
        share = peak / (heads * length**2 * 4)
        print(f"  N = {length:6}  {way:9} {peak / 2**20:9.0f} MiB   {share:7.2%} of h x N x N")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    if arguments.memory:
        print_memory()
    else:
        print_times(arguments.batch, arguments.turns)
