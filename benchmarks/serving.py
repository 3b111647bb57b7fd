"""What pruning changes for the users of a vLLM server: `data/results/efficiency/serving.parquet`.

    python benchmarks/serving.py --python .venv-vllm/bin/python    # 12 minutes on two quiet cores

The Python that is named has vLLM and fopru in it; servers run there, on loopback. Part "load" is a
closed loop: as many clients as said, each of which asks as soon as its answer is there. Budgets
take turns in one server of fopru's plug-in, and the stock engine answers such requests before or
after it. Part "cache" gives a server a KV cache of 64 blocks of 32 tokens, and 48 clients at once.

Each cell is kept as soon as it is measured, in a file beside the result: a run that was killed goes
on there, and without that file all is measured anew.

Every picture is new and the prefix cache is off. `mini` has random weights and the proportions of
LLaVA-1.5-7B (576 visual tokens, a language model 17 times its tower): its speed says something, and
its answers nothing. Server and clients run on cores of their own where there are two.
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import fopru
from fopru.cli.common import keep
from fopru.evaluation.server import Server, ServerError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "data"))
from making.build import rename  # noqa: E402

OUT = ROOT / "data" / "results" / "efficiency" / "serving.parquet"
RETENTIONS = (1.0, 0.5, 0.25, 0.1)
SECONDS = {"mini": {1: 5, 4: 6, 16: 11}, "pocket": {1: 2, 4: 2, 16: 4}}
"""For how long each model's cells begin requests, by the number of clients."""
TURNS = {"mini": 2, "pocket": 1}
"""How often all cells of a model are measured, every second time in the other order."""
CLIENTS = 48
"""Of part "cache"."""
KEYS = ["part", "model", "engine", "turn", "concurrency", "retention"]
SIDES = {"pocket": 224, "mini": 336}
"""The side of pictures that each model looks at, in pixels."""
ANSWER = {"pocket": 4, "mini": 16}
"""Tokens of every answer, whatever the model would say."""
ARCHITECTURE = "FoPruLlavaForConditionalGeneration"
BLOCKS, BLOCK = 64, 32
"""The small KV cache of `cache`: its blocks, and their tokens."""

OWN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
OWN["PYTHONSAFEPATH"] = "1"  # nor is this folder's fopru taken, by vLLM's subprocesses either
"""The environment of servers: the Python that is named has its own packages."""


# Models


def mini(folder: Path) -> None:
    """Write a LLaVA with random weights and the 7B's proportions, which reads pocket's words."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=7,
        num_attention_heads=3,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=fopru.load("pocket")[0].config.text_config.vocab_size,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        head_dim=64,
        max_position_embeddings=4096,
    )
    pocket = json.loads((fopru.pocket.folder() / "config.json").read_text())
    text.update({k: v for k, v in pocket["text_config"].items() if k.endswith("_token_id")})
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=pocket["image_token_index"],
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"] |= {
        "crop_size": {"height": 336, "width": 336},
        "size": {"shortest_edge": 336},
    }
    (folder / "processor_config.json").write_text(json.dumps(settings))


def model_folder(name: str, folder: Path) -> Path:
    """Return the folder of a model that stock vLLM loads."""
    if name == "pocket":
        return fopru.pocket.folder()
    folder = folder / name
    if folder.exists():
        return folder
    shutil.copytree(fopru.pocket.folder(), folder)  # for its words
    mini(folder)
    rename(folder / "model.safetensors")
    return folder


# Servers


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def engine(
    python: str, folder: Path, kind: str, log: Path, *options: str, start: float = 900
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a vLLM server: its address and its process. It ends with the block, children and all.

    Args:
        kind: "stock", or "fopru" with the plug-in.
    """
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", folder.name]
    command += ["--block-size", str(BLOCK), "--no-enable-prefix-caching", *options]
    command += ["--dtype", "float32" if folder.name == "pocket" else "bfloat16"]
    if kind == "fopru":
        over = {"architectures": [ARCHITECTURE], "fopru": {"retention": 1.0}}
        command += ["--hf-overrides", json.dumps(over), "--trust-request-mm-kwargs"]
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    quiet["VLLM_CPU_KVCACHE_SPACE"] = "1"
    with log.open("w") as file:
        process = psutil.Popen(
            command, stdout=file, stderr=file, env=OWN | quiet, start_new_session=True
        )
    cores = sorted(process.cpu_affinity())
    if len(cores) > 1:
        process.cpu_affinity(cores[:-1])
        psutil.Process().cpu_affinity(cores[-1:])
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + start
    try:
        with closing(Server(url)) as server:
            while not answers(server):
                if process.poll() is not None or time.monotonic() > end:
                    tail = log.read_text()[-2000:]
                    raise SystemExit(f"the {kind} engine did not start:\n{tail}")
                time.sleep(1)
        yield url, process
    finally:
        psutil.Process().cpu_affinity(cores)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def answers(server: Server) -> bool:
    try:
        return bool(server.models())
    except ServerError:
        return False


def used(process: psutil.Process) -> dict[str, float]:
    """CPU seconds of a server's processes so far: API server, engine core and workers."""
    found = dict.fromkeys(("api", "engine", "worker"), 0.0)
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            line, times = " ".join(one.cmdline()), one.cpu_times()
            part = "worker" if "Worker" in line else "engine" if "Engine" in line else "api"
            found[part] += times.user + times.system
    return found


class Gauges:
    """What a server's metrics say while a block runs: requests in flight and blocks in use."""

    def __init__(self, url: str, every: float = 0.1):
        self.url, self.every, self.seen = url, every, []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Gauges":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as f:
                self.seen.append(gauges(f.read(2**22).decode()))

    def most(self) -> dict[str, float | None]:
        """The most requests in flight, and the blocks of the cache that one of them held then."""
        busy = [(running, held) for running, held in self.seen if running]
        if not busy:
            return {"running": None, "blocks": None}
        running = max(n for n, _ in busy)
        return {
            "running": running,
            "blocks": float(np.median([held / n for n, held in busy if n == running])),
        }


def gauges(text: str) -> tuple[float, float]:
    """Requests in flight, and blocks of the KV cache in use, from Prometheus' text of vLLM."""
    wanted = (
        r"^vllm:num_requests_running\S* (\S+)$",
        r"^vllm:kv_cache_usage_perc\S* (\S+)$",
        r'^vllm:cache_config_info\S*\bnum_gpu_blocks="(\d+)"',
    )
    running, share, blocks = (float(re.search(one, text, re.M)[1]) for one in wanted)
    return running, share * blocks


# Clients


class Questions:
    """Requests about pictures none of which was shown before."""

    def __init__(self, model: str, side: int, tokens: int):
        self.model, self.side, self.tokens, self.seed = model, side, tokens, 0

    def new(self, retention: float | None) -> dict[str, Any]:
        self.seed += 1
        rng = np.random.default_rng(self.seed)
        noise = rng.integers(0, 256, (self.side // 8, self.side // 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((self.side, self.side), 0).save(file, "PNG")
        shown = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": shown}},
            {"type": "text", "text": "is there a red circle?"},
        ]
        request = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "add_special_tokens": True,
            "messages": [{"role": "user", "content": content}],
        }
        if retention is not None:
            request["mm_processor_kwargs"] = {"fopru": {"retention": retention}}
        return request


def cell(
    url: str,
    process: psutil.Process,
    questions: Questions,
    retention: float | None,
    clients: int,
    seconds: float,
    most: int | None = None,
) -> dict[str, Any]:
    """Ask by so many clients for so long, or this many questions, and return what was measured.

    A request without an answer ends the benchmark: times beside failures say nothing.
    """
    waiting = iter(range(10**9 if most is None else most))
    replies, failed, lock = [], [], threading.Lock()
    end = time.monotonic() + seconds

    def client(server: Server) -> None:
        while not failed and time.monotonic() < end:
            with lock:
                if next(waiting, None) is None:
                    return
                request = questions.new(retention)
            try:
                replies.append(server.chat(request))
            except Exception as error:
                failed.append(error)

    with closing(Server(url)) as server, Gauges(url) as watch:
        before, start = used(process), time.perf_counter()
        threads = [threading.Thread(target=client, args=[server]) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken, after = time.perf_counter() - start, used(process)
    if failed:
        raise failed[0]
    waited = [reply.seconds for reply in replies]
    (prompt,) = {reply.prompt_tokens for reply in replies}
    return {
        "requests": len(replies),
        "per_second": len(replies) / taken,
        "p50": float(np.quantile(waited, 0.5)),
        "p95": float(np.quantile(waited, 0.95)),
        "prompt_tokens": prompt,
        "answer_tokens": questions.tokens,
        **{f"{part}_cpu": (after[part] - before[part]) / len(replies) for part in before},
        **watch.most(),
    }


# The cells


class Kept:
    """What was measured so far, in a file of a line for each cell."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}")]

    def has(self, **cell: Any) -> bool:
        return any(all(row[key] == cell[key] for key in KEYS) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows))
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


def servers() -> Iterator[dict[str, Any]]:
    """Each server that is started: its part, model, engine and turn, and its cells in order."""
    for part, turns in {"load": TURNS, "cache": {"pocket": 1}}.items():
        for model, n in turns.items():
            for turn in range(n):
                for kind in ("stock", "fopru") if turn % 2 == 0 else ("fopru", "stock"):
                    shares = (1.0,) if kind == "stock" else RETENTIONS
                    several = SECONDS[model] if part == "load" else (CLIENTS,)
                    cells = [(n, r) for n in several for r in shares[:: (-1) ** turn]]
                    yield {"part": part, "model": model, "engine": kind, "turn": turn}, cells


def measure(python: str, log: Path, folder: Path, kept: Kept, only: str) -> None:
    """Measure every cell that is not there yet.

    Args:
        only: A regular expression; cells whose six keys it is not found in are left out.
    """
    for server, cells in servers():
        todo = [
            (n, r)
            for n, r in cells
            if not kept.has(**server, concurrency=n, retention=r)
            and re.search(only, " ".join(map(str, [*server.values(), n, r])))
        ]
        if not todo:
            continue
        name, kind, load = server["model"], server["engine"], server["part"] == "load"
        model = model_folder(name, folder)
        questions = Questions(name, SIDES[name], ANSWER[name] if load else 48)
        small = ["--num-gpu-blocks-override", str(BLOCKS), "--max-num-seqs", str(CLIENTS)]
        options = ["--max-model-len", "1024"] if load else [*small, "--max-model-len", "512"]
        with engine(python, model, kind, log, *options) as (url, process):
            ask = partial(cell, url, process, questions)
            asked = {r: None if kind == "stock" else r for _, r in todo}
            for retention in asked.values():  # what is compiled or allocated once is not counted
                ask(retention, 4, 60, most=8)
            for n, retention in todo:
                limits = (SECONDS[name][n], None) if load else (300, n)
                found = ask(asked[retention], n, *limits)
                kept.add({**server, "concurrency": n, "retention": retention, **found})


def versions(python: str) -> dict[str, str]:
    """What the servers ran with."""
    code = (
        "import json, vllm, torch, transformers, fopru; print(json.dumps({m.__name__: "
        "m.__version__ for m in (vllm, torch, transformers, fopru)}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=OWN)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="the Python that has vLLM and fopru")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--log", type=Path, default=Path("serving.log"), help="what servers print")
    parser.add_argument(
        "--only", default="", help='cells to measure, as "load mini (stock|fopru) 0 16"'
    )
    arguments = parser.parse_args()
    kept = Kept(arguments.out.with_suffix(".jsonl"))
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.python, arguments.log, Path(folder), kept, arguments.only)
    table = pd.DataFrame(kept.rows)
    table["weights"] = table.model.map({"pocket": "trained", "mini": "random"})
    keep(table, arguments.out, servers=versions(arguments.python), cores=os.cpu_count())
    kept.path.unlink()
    columns = ["per_second", "p50", "p95", "worker_cpu", "running", "blocks", "prompt_tokens"]
    keys = [key for key in KEYS if key != "turn"]
    print(table.groupby(keys, sort=False)[columns].median().round(3).to_string())
