"""What a comparison of methods costs: evaluate() against asking each setting by itself.

    python benchmarks/sweep.py    # 12 methods, 9 retentions, the first 200 pictures of PocketBench

Both answer the same questions with the pocket model, once each and in this order. The second is
timed at one retention, the middle one, and counted nine times.
"""

import os
import platform
import time

import torch
import transformers
from tqdm import tqdm

import fopru
from fopru.evaluation import answer
from fopru.evaluation.settings import settings

METHODS = (
    *("fopru", "fopru-row", "cls", "vispruner", "divprune", "dpp"),
    *("dart", "visionzip", "tome", "pool", "random", "uniform"),
)
RETENTIONS = (0.75, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02)


def main() -> None:
    model, processor = fopru.load("pocket")
    examples = fopru.pocket.benchmark("test", "attributes")  # one question on each of 200 pictures
    seen = []
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len((*args, *kwargs.values())[0])),
        with_kwargs=True,
    )
    start = time.perf_counter()
    results = fopru.evaluate(model, processor, examples, METHODS, RETENTIONS, seeds=(0,))
    together, once = time.perf_counter() - start, sum(seen)

    seen.clear()
    middle = RETENTIONS[len(RETENTIONS) // 2]
    start = time.perf_counter()
    for setting in tqdm(settings(METHODS, [middle]), desc="one by one"):
        with setting.pruner(model):
            list(answer(model, processor, examples, batch_size=64))
    alone, often = time.perf_counter() - start, sum(seen)

    rounds = len(RETENTIONS)
    print(f"{len(results):,} answers, {len(METHODS)} methods x {rounds} retentions")
    print(f"together:   {together:6.0f} s, {once:,} pictures through the vision tower")
    print(f"one by one: {alone * rounds:6.0f} s, {often * rounds:,} pictures")
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
