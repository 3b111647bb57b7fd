"""Whether two revisions keep the same tokens and give the same answers.

    python benchmarks/same.py main~5           # this working tree beside an earlier revision
    python benchmarks/same.py main~5 --weights mass --method fopru dpp

Each revision runs in a process of its own, from its own code, on the pocket model and the questions
of this working tree: 200 of PocketBench's test split, as many of each task, with every method that
both revisions have, at each retention. Whatever differs is counted; the exit code is then 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

import fopru

HERE = Path(__file__).parents[1]
BATCH = 50


def questions(n: int) -> pd.DataFrame:
    """As many questions of each task: the first ones of PocketBench's test split."""
    table = pd.read_parquet(HERE / "data" / "pocketbench" / "test.parquet")
    return table.groupby("task", sort=False).head(n // table["task"].nunique())


@torch.no_grad()
def answers(
    n: int, methods: list[str], retentions: list[float], weights: str
) -> dict[str, list[Any]]:
    """Cell -> of each question the kept places and the answer, by the code at hand."""
    model, processor = fopru.load(HERE / "data" / "pocket")
    table, found = questions(n), {}
    batches = []
    for start in range(0, len(table), BATCH):
        part = table.iloc[start : start + BATCH]
        images = [[Image.open(BytesIO(image["bytes"])).convert("RGB")] for image in part["image"]]
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for question in part["question"]
        ]
        text = processor.apply_chat_template(chats, add_generation_prompt=True)
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        batches.append(processor(images=images, text=text, **options))
    for method in methods or fopru.METHODS:
        for retention in retentions:
            try:
                pruner = fopru.METHODS[method](retention, weights=weights)
            except ValueError:  # methods inside the language model take no weights
                continue
            rows = found[f"{method} {retention:g}"] = []
            for inputs in batches:
                with pruner(model) as session:
                    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
                if hasattr(session, "kept"):
                    kept = session.kept
                else:  # revisions before there were sessions
                    kept = [image.kept for image in session.last.images]
                new = out[:, inputs["input_ids"].shape[1] :]  # padded to the batch's longest
                said = processor.batch_decode(new, skip_special_tokens=True)
                rows += zip((k.tolist() for k in kept), said, strict=True)
    return found


def of_revision(code: Path, arguments: list[str]) -> dict[str, list[Any]]:
    """`answers` of the code in a folder."""
    command = [sys.executable, __file__, "--answers", *arguments]
    path = os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("revision", nargs="?", help="what git knows it by")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--method", nargs="+", default=[], help="all if none")
    parser.add_argument("--retention", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--weights", default="none", choices=("none", "mass"))
    parser.add_argument("--answers", action="store_true", help="print those of this code as JSON")
    asked = parser.parse_args()
    if asked.answers:
        print(json.dumps(answers(asked.questions, asked.method, asked.retention, asked.weights)))
        return
    if asked.revision is None:
        parser.error("name the revision to compare with")
    archive = subprocess.run(
        ["git", "archive", asked.revision, "fopru"], cwd=HERE, stdout=subprocess.PIPE, check=True
    )
    arguments = [argument for argument in sys.argv[1:] if argument != asked.revision]
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        before = of_revision(Path(folder), arguments)
    after = of_revision(HERE, arguments)
    differ = 0
    print(f"{'method':18} questions   kept differ   answers differ")
    for cell in after:
        if cell not in before:
            print(f"{cell:18} is not in {asked.revision}")
            continue
        pairs = list(zip(before[cell], after[cell], strict=True))
        kept, said = (sum(old[i] != new[i] for old, new in pairs) for i in (0, 1))
        differ += kept + said
        print(f"{cell:18} {len(pairs):9} {kept:13} {said:16}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
