"""Results on disk while a comparison runs, and the record of how they were made."""

from __future__ import annotations

import hashlib
import json
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import pandas as pd
import torch
from torch import nn

SAMPLED = 1024
"""Values of each weight tensor that its hash looks at."""


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, shapes and the first 1,024 values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        start = value.flatten()[:SAMPLED].to("cpu", torch.float32)
        digest.update(start.numpy().tobytes())
    return digest.hexdigest()


def provenance() -> dict[str, Any]:
    """Where and with what a result was made."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "fopru")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


KEY = ("id", "method", "retention", "positions", "seed")
"""What makes a row: nothing is asked twice."""

SAME = ("weights", "torch", "transformers", "fopru")
"""Parts of the manifest in which all rows of one file agree."""


class Store:
    """Rows in an SQLite file (WAL mode), added in transactions: what is in it survives a kill.

    Args:
        path: made if there is none; otherwise the run in it goes on.
        manifest: how the rows are made: `provenance()` and "weights".

    Raises:
        ValueError: the file is damaged, is no such file, or holds rows of another model or version.
    """

    def __init__(self, path: str | Path, manifest: Mapping[str, Any]):
        self.path = Path(path)
        try:
            self._open(manifest)
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path} is damaged or no results file ({error}): move it away to start anew."
            ) from None

    def _open(self, manifest: Mapping[str, Any]) -> None:
        self.database = sqlite3.connect(self.path, timeout=60)  # other processes write too
        self.database.execute("PRAGMA journal_mode=WAL")
        (state,) = self.database.execute("PRAGMA integrity_check").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        with self.database:
            self.database.execute("CREATE TABLE IF NOT EXISTS manifest (json TEXT)")
            columns = ", ".join(f"{name} NOT NULL" for name in KEY)
            self.database.execute(
                f"CREATE TABLE IF NOT EXISTS rows ({columns}, json TEXT NOT NULL, "
                f"crc INTEGER NOT NULL, PRIMARY KEY ({', '.join(KEY)}))"
            )
        found = self.database.execute("SELECT json FROM manifest").fetchone()
        if found is None:
            with self.database:
                self.database.execute("INSERT INTO manifest VALUES (?)", [json.dumps(manifest)])
            return
        there = json.loads(found[0])
        for name in SAME:
            if there.get(name) != manifest.get(name):
                raise ValueError(
                    f"{self.path} holds results with {name} {there.get(name)!r}, and this run has "
                    f"{manifest.get(name)!r}: they do not mix. Write to another file."
                )

    def done(self) -> set[tuple[Any, ...]]:
        """Keys of the rows that are there."""
        return set(self.database.execute(f"SELECT {', '.join(KEY)} FROM rows"))

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """All of these rows, or none."""
        values = []
        for row in rows:
            text = json.dumps(row)
            values.append((*(row[name] for name in KEY), text, crc32(text.encode())))
        places = ", ".join("?" * (len(KEY) + 2))
        with self.database:
            self.database.executemany(f"INSERT OR REPLACE INTO rows VALUES ({places})", values)

    def frame(self) -> pd.DataFrame:
        """All rows, in the order in which they were first added.

        Raises:
            ValueError: a row is not what was written.
        """
        found = []
        for text, crc in self.database.execute("SELECT json, crc FROM rows ORDER BY rowid"):
            if crc32(text.encode()) != crc:
                raise ValueError(
                    f"{self.path} is damaged: row {len(found)} is not what was written. Move the "
                    "file away to start anew."
                )
            found.append(json.loads(text))
        return pd.DataFrame(found)

    def close(self) -> None:
        self.database.close()
