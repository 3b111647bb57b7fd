"""What selection costs: the time of each method's score, select and merge, beside torch.topk.

    python benchmarks/selection.py                        # N = 576, 2,916 and 16,384 tokens
    python benchmarks/selection.py --width 3584 --tokens 2916 --method divprune dpp

Features, keys and scores are noise, since the time does not depend on them (VisPruner's does a
little). "select" is the method's own `select` or `merge` on scores that are there already; "all"
is all that `compact` does before it builds the shorter inputs.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from fopru import METHODS, EncodedImage, Pruner
from fopru.choosing import pruned_image
from fopru.encoding import VISION, Tap
from fopru.families import Family, Grid, View
from fopru.in_llm import InLLMPruner

SECONDS = 1.0
"""How long each is repeated; once at least."""


def family(width: int, heads: int = 16) -> Family:
    """A tower and a projector of the right width; nothing of them is run but the projector."""
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=heads,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=heads
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    return Family.of(LlavaForConditionalGeneration(config).eval())


def picture(of: Family, n: int, width: int, device: str) -> EncodedImage:
    """One picture of n visual tokens with all that any method reads."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    high = next(h for h in range(int(n**0.5), 0, -1) if n % h == 0)
    read, last = of.block(None), of.block(-1)
    scores = {Tap(read, axis): noise(n).abs() for axis in ("received", "given", "cls")}
    scores |= {Tap(block, "keys"): noise(n, width) for block in (read, last)}
    scores |= {Tap(last, "cls_wide"): noise(n).abs(), VISION: noise(n, width)}
    grid = Grid((View(high, n // high),))
    return EncodedImage(of, 0, noise(n, width), grid, scores, text=noise(20, width))


def milliseconds(call: Callable[[], object], device: str) -> float:
    """The least time of several calls: whatever else the machine does only adds to it."""
    taken: list[float] = []
    while not taken or sum(taken) < SECONDS:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return 1e3 * min(taken)


def times(pruner: Pruner, image: EncodedImage, device: str) -> tuple[float, float]:
    """Milliseconds of the method's `select` or `merge`, and of all that a picture needs."""
    (k,), score = pruner.budgets(image.grid), pruner.score(image)
    scored = replace(image, significance=None if score is None else score.float().cpu())
    own = pruner.select if pruner.selects() else pruner.merge
    whole = milliseconds(lambda: pruned_image(pruner, image), device)
    return milliseconds(lambda: own(scored, k), device), whole


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 2916, 16384])
    parser.add_argument("--width", type=int, default=256, help="numbers a token")
    parser.add_argument("--retention", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    before = [
        name
        for name, cls in METHODS.items()
        if not issubclass(cls, InLLMPruner) and "view" in cls.shares and cls.budgeted
    ]
    parser.add_argument("--method", nargs="+", default=before, choices=before)
    arguments = parser.parse_args()
    of = family(arguments.width)
    of.model.to(arguments.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments}")
    for n in arguments.tokens:
        image = picture(of, n, arguments.width, arguments.device)
        scores, k = image.learned[Tap(of.block(None), "received")], int(n * arguments.retention)
        least = milliseconds(lambda scores=scores, k=k: scores.topk(k), arguments.device)
        print(f"\nN = {n}, k = {k}\n  {'torch.topk':12} {least:10.3f} ms")
        for name in arguments.method:
            pruner = METHODS[name](arguments.retention)
            select, whole = times(pruner, image, arguments.device)
            ratio = f"{select / least:9.1f} x topk"
            print(f"  {name:12} {select:10.3f} ms {ratio}   all {whole:10.3f} ms", flush=True)


if __name__ == "__main__":
    main()
