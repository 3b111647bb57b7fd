"""What pruning costs and saves on this machine: `data/results/efficiency/`.

    python benchmarks/efficiency.py pocket    # the pocket model, every method: five minutes
    python benchmarks/efficiency.py vision    # CLIP-L/14-336 before a small decoder: ten minutes
    python benchmarks/efficiency.py tower     # what PixelPrune saves of the tower: two minutes
    python benchmarks/efficiency.py weights   # what weights="mass" adds inside the LLM: a minute
    fopru measure --shape llava-1.5-7b --turns 3 --new-tokens 4 \
        --out data/results/efficiency/cpu-7b.parquet    # half an hour on two cores, 15 GB

Each prints its checks: stages against the whole, pruned against native prompts, predictions against
configurations that they were not fitted to. What `weights` prints is `weights.txt`.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

import fopru
from fopru import efficiency
from fopru.cli.common import keep
from fopru.evaluation.asking import inputs_of
from fopru.in_llm import InLLMPruner

FOLDER = Path(__file__).parents[1] / "data" / "results" / "efficiency"
RETENTIONS = (0.75, 0.5, 0.25, 0.1)
WHOLE = ["vision", "scoring", "selection", "compaction", "prefill"]


def sums(table: pd.DataFrame) -> pd.DataFrame:
    """Stages added up beside the whole, measured apart."""
    keys = ["method", "retention"]
    parts = table[table.stage.isin(WHOLE)].groupby(keys).seconds.sum()
    steps = table[table.stage == "decode"].set_index(keys)
    parts = parts.add(steps.seconds * (steps.new_tokens - 1), fill_value=0)
    whole = table[table.stage == "end to end"].set_index(keys).seconds
    return pd.DataFrame({"stages": parts, "whole": whole, "ratio": parts / whole})


def against_native(table: pd.DataFrame) -> pd.Series:
    """Prefill of pruned prompts over that of prompts that were as short to begin with."""
    by = table.pivot_table(index=["method", "retention"], columns="stage", values="seconds")
    return (by["prefill"] / by["native prefill"]).dropna()


def pocket(turns: int) -> None:
    model, processor = fopru.load("pocket")
    asked = inputs_of(processor, fopru.pocket.sample("reading", n=1))
    kinds = [cls for cls in fopru.METHODS.values() if "view" in cls.shares and cls.budgeted]
    pruners = [cls(r) for cls in kinds for r in RETENTIONS]
    table = fopru.measure(model, asked, pruners, new_tokens=8, turns=turns)
    FOLDER.mkdir(parents=True, exist_ok=True)
    keep(table.assign(model="pocket", device="cpu", **table.attrs), FOLDER / "pocket.parquet")
    ratios = sums(table)
    print("stages over the whole, median and range over methods:")
    print(ratios.ratio.describe()[["50%", "min", "max"]].round(3).to_string())
    print("prefill over that of a native prompt, at 25 %, median over methods:")
    print(round(float(against_native(table).xs(0.25, level=1).median()), 3))
    latency = efficiency.Latency.fit(table[table.method.isin(("full", "fopru"))])
    print("predicted and measured, on configurations that were not fitted:")
    for retention, answer in ((0.35, 24), (0.6, 2), (0.95, 1)):
        check(model, asked, latency, retention, answer, turns)


def check(model, asked, latency, retention: float, answer: int, turns: int) -> None:
    """One configuration: what is predicted of it, and what is measured."""
    table = fopru.measure(model, asked, [fopru.FoPru(retention)], answer, turns)
    whole = table[table.stage == "end to end"].set_index("method")
    text = int(whole.tokens["full"] - whole.visual["full"])
    for method in ("full", "fopru"):
        predicted = latency(int(whole.visual[method]), text, answer, method)
        found = whole.seconds[method]
        print(
            f"  {method:6} {whole.visual[method]:4} visual tokens, answer of {answer:2}: "
            f"predicted {1000 * predicted:.2f} ms, measured {1000 * found:.2f} ms "
            f"({predicted / found - 1:+.1%})"
        )
    saved = latency.saved(
        int(whole.visual["full"]), int(whole.visual["fopru"]), text, answer, "fopru"
    )
    found = 1 - whole.seconds["fopru"] / whole.seconds["full"]
    print(f"  saved: predicted {saved:+.1%}, measured {found:+.1%}")


def llava(layers: int, **tower: int) -> LlavaForConditionalGeneration:
    """So many layers of LLaVA-1.5-7B's decoder, behind a tower of this size for 336 px."""
    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        vocab_size=128,
    )
    seen = CLIPVisionConfig(image_size=336, patch_size=14, **tower)
    config = LlavaConfig(vision_config=seen, text_config=text, image_token_index=5)
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).to(torch.bfloat16).eval()


CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def vision(turns: int, batch: int) -> None:
    """What every method adds to the tower, and the peers' way to the same scores."""
    model = llava(1, **CLIP_L)
    asked = {
        "pixel_values": torch.randn(batch, 3, 336, 336),
        "input_ids": torch.tensor([[1] * 10 + [5] * 576 + [2] * 34] * batch),
    }
    kinds = [cls for cls in fopru.METHODS.values() if "view" in cls.shares and cls.budgeted]
    pruners = [cls(0.25) for cls in kinds if not issubclass(cls, InLLMPruner)]
    table = fopru.measure(model, asked, pruners, new_tokens=1, turns=turns)
    eager = []
    tower = model.model.vision_tower
    with torch.no_grad():
        for _ in range(turns):
            tower.config._attn_implementation = "eager"
            start = time.perf_counter()
            output = tower(
                asked["pixel_values"].to(torch.bfloat16),
                output_attentions=True,
                output_hidden_states=True,
            )
            output.attentions[-2][:, :, 1:, 1:].mean((1, 2)).topk(144)
            model.model.multi_modal_projector(output.hidden_states[-2][:, 1:])
            eager.append(time.perf_counter() - start)
            tower.config._attn_implementation = "sdpa"
    row = table[(table.method == "full") & (table.stage == "vision")].iloc[0]
    peers = replace_row(row, eager)
    table = pd.concat([table, pd.DataFrame([peers])], ignore_index=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    out = FOLDER / "vision.parquet"
    table = table.assign(model="clip-l-336", device="cpu", threads=torch.get_num_threads())
    before = [pd.read_parquet(out)] if out.exists() else []
    table = pd.concat([*before, table], ignore_index=True)
    keep(table.drop_duplicates(["method", "stage", "batch"], keep="last"), out)
    by = table[table.batch == batch].pivot_table(index="method", columns="stage", values="seconds")
    plain = by.vision["full"]
    added = by[["vision", "scoring", "selection", "compaction"]].sum(axis=1)
    print(f"batch {batch}, plain tower and projector {1000 * plain:.0f} ms; all before prefill:")
    print((added / plain).sort_values().round(3).to_string())
    ratio = against_native(table[table.batch == batch])
    print("prefill over a native prompt's:", ratio.round(3).median())


def qwen() -> Qwen2_5_VLForConditionalGeneration:
    """Eight blocks of the width of Qwen2.5-VL's tower before a small decoder."""
    seen = dict(depth=8, hidden_size=1280, intermediate_size=3420, num_heads=16)
    seen |= dict(out_hidden_size=256, fullatt_block_indexes=[3, 7])
    text = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    text |= dict(num_attention_heads=4, num_key_value_heads=4, vocab_size=256)
    text |= dict(rope_parameters={"rope_type": "default", "mrope_section": [8, 12, 12]})
    ids = dict(image_token_id=5, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4)
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(vision_config=seen, text_config=text, **ids)
    return Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).eval()


def tower(turns: int) -> None:
    """What PixelPrune saves of a tower with random weights, on a drawn scene of each task."""
    model, pictures = qwen(), Qwen2VLImageProcessorPil()
    tables = []
    for task in fopru.pocket.scenes.TASKS:
        (scene,) = fopru.pocket.sample(task, n=1, seed=7)
        seen = pictures(images=scene.image.resize((448, 448)), return_tensors="pt")
        n = int(seen["image_grid_thw"].prod()) // 4
        asked = {
            **seen,
            "input_ids": torch.tensor([[1, 3] + [5] * n + [4] + [2] * 30]),
            "mm_token_type_ids": torch.tensor([[0, 0] + [1] * n + [0] * 31]),
        }
        pruners = [fopru.PixelPrune(), fopru.FoPru(0.25)]
        found = fopru.measure(model, asked, pruners, new_tokens=1, turns=turns)
        tables.append(found.assign(task=task))
    table = pd.concat(tables, ignore_index=True)
    threads = torch.get_num_threads()
    table = table.assign(model="qwen2.5-vl, 8 random blocks", device="cpu", threads=threads)
    keep(table, FOLDER / "tower.parquet")
    seen = table[table.stage == "vision"].pivot(index="task", columns="method", values="seconds")
    kept = table[table.stage == "vision"].pivot(index="task", columns="method", values="visual")
    print("visual tokens kept:")
    print(kept.astype(int).to_string())
    print("seconds of the tower over those of all patches:")
    print(seen.div(seen["full"], axis=0).round(3).to_string())


def replace_row(row: pd.Series, taken: list[float]) -> dict:
    """The peers' way as a row of its own."""
    low, median, high = (statistics.quantiles(taken, n=4)[i] for i in range(3))
    return {**row, "method": "eager", "seconds": median, "low": low, "high": high, "flops": None}


@torch.no_grad()
def once(model, asked, pruner, steps: int) -> tuple[float, float]:
    """Seconds of the prefill of a pruned prompt, and of one step of decoding after it."""
    with pruner(model) as run:
        model(**asked, logits_to_keep=1)  # the tower and the selection
        pruned = dict(run.last)
        start = time.perf_counter()
        out = model(**pruned, use_cache=True, logits_to_keep=1)
        first = time.perf_counter()
        for _ in range(steps):
            token = torch.tensor([[7]])
            out = model(input_ids=token, past_key_values=out.past_key_values)
        return first - start, (time.perf_counter() - first) / steps


def weights(turns: int, steps: int = 8) -> None:
    """Prefill and decode with the bias of weights="mass" over without, in turns."""
    model = llava(2, **SMALL)
    asked = {
        "pixel_values": torch.randn(1, 3, 336, 336),
        "input_ids": torch.tensor([[1] * 10 + [5] * 576 + [2] * 34]),
    }
    for retention in (0.5, 0.25):
        taken = {"none": [], "mass": []}
        for turn in range(turns + 1):
            for kind in ("none", "mass") if turn % 2 else ("mass", "none"):
                pruner = fopru.FoPru(retention, weights=kind)
                taken[kind].append(once(model, asked, pruner, steps))
        none, mass = (torch.tensor(taken[kind][1:]) for kind in ("none", "mass"))  # (turns, 2)
        for i, stage in enumerate(("prefill", "decode")):
            low, ratio, high = statistics.quantiles((mass / none)[:, i].tolist(), n=4)
            plain, biased = (1000 * times[:, i].median() for times in (none, mass))
            print(
                f"retention {retention}: {stage} {plain:.1f} ms, with weights {biased:.1f} ms; "
                f"ratio {ratio:.3f} [{low:.3f}, {high:.3f}]"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["pocket", "tower", "vision", "weights"])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.part == "vision":
        vision(arguments.turns, arguments.batch)
    else:
        {"pocket": pocket, "tower": tower, "weights": weights}[arguments.part](arguments.turns)
