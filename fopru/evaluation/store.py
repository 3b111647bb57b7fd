"""Results on disk while a comparison runs, and the record of how they were made."""

from __future__ import annotations

import hashlib
import json
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import nn

SAMPLED = 1024
"""How many values of each weight tensor its hash looks at."""


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 over names, shapes and the first 1,024 values of all weights, in
    hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        start = value.flatten()[:SAMPLED].to("cpu", torch.float32)
        digest.update(start.numpy().tobytes())
    return digest.hexdigest()


def provenance() -> dict[str, Any]:
    """Return where and with what a result was made: machine, versions, date, commit and command."""
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


SAME = ("weights", "torch", "transformers", "fopru")
"""The parts of the manifest in which all rows of one file agree."""

MAGIC = b"SQLite format 3\x00"
APPLICATION = 0x666F7072
"""SQLite's `application_id` of a results file: it stands in bytes 68 to 71 of the file."""


class Store:
    """Answers in an SQLite file, added in transactions, so that what is in it survives a kill.

    Every row has a key that stands for all that it depends on (`fopru.evaluation.keys`), so a file
    never answers for another question, picture or setting. Several processes may write to one file.

    Args:
        path: The file. It is made if there is none; otherwise the run in it goes on.
        manifest: How the rows are made: `provenance()` and "weights".

    Raises:
        ValueError: The file is damaged, is no results file, or holds rows of another model or
            version. Nothing is written to such a file.
        OSError: The file cannot be opened or written; a folder that is missing is named.
    """

    def __init__(self, path: str | Path, manifest: Mapping[str, Any]):
        self.path = Path(path)
        if str(path) != ":memory:":
            check_results_file(self.path)
        with self._named():
            self._open(manifest)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn errors of SQLite into sentences with the file's name."""
        try:
            yield
        except sqlite3.OperationalError as error:  # no room, no rights, locked for a minute
            raise OSError(f"{self.path} cannot be used: {error}.") from None
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path} is damaged or no results file ({error}): move it away to start anew."
            ) from None

    def _open(self, manifest: Mapping[str, Any]) -> None:
        # other processes write too: wait up to a minute for them; transactions are explicit
        self.database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        self.database.execute("PRAGMA synchronous=NORMAL")
        (state,) = self.database.execute("PRAGMA quick_check").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        with self._transaction():
            self.database.execute(f"PRAGMA application_id={APPLICATION}")
            self.database.execute("CREATE TABLE IF NOT EXISTS manifest (json TEXT NOT NULL)")
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS rows "
                "(key TEXT NOT NULL PRIMARY KEY, json TEXT NOT NULL, crc INTEGER NOT NULL)"
            )
            found = self.database.execute("SELECT json FROM manifest").fetchone()
            if found is None:
                self.database.execute("INSERT INTO manifest VALUES (?)", [json.dumps(manifest)])
                return
        stored = json.loads(found[0])
        for name in SAME:
            if stored.get(name) != manifest.get(name):
                raise ValueError(
                    f"{self.path} holds results with {name} {stored.get(name)!r}, and this run has "
                    f"{manifest.get(name)!r}: they do not mix. Write to another file."
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.database.execute("ROLLBACK")
            raise
        self.database.execute("COMMIT")

    def done(self) -> set[str]:
        """Return the keys of all rows in the file."""
        with self._named():
            return {key for (key,) in self.database.execute("SELECT key FROM rows")}

    def add(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Add all of these rows, key -> row, or none of them."""
        values = []
        for key, row in rows.items():
            text = json.dumps(row)
            values.append((key, text, crc32(text.encode())))
        with self._named(), self._transaction():
            self.database.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", values)

    def rows(self, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the rows with these keys, as far as the file has them: key -> row.

        Raises:
            ValueError: A row is not what was written.
        """
        wanted, found = set(keys), {}
        with self._named():
            cursor = self.database.execute("SELECT key, json, crc FROM rows ORDER BY rowid")
            for number, (key, text, crc) in enumerate(cursor):
                if crc32(text.encode()) != crc:
                    raise ValueError(
                        f"{self.path} is damaged: row {number} is not what was written. Move the "
                        "file away to start anew."
                    )
                if key in wanted:
                    found[key] = json.loads(text)
        return found

    def close(self) -> None:
        """Close the file."""
        self.database.close()


def check_results_file(path: Path) -> None:
    """Look whether results can go to this file, without opening it as a database.

    Raises:
        ValueError: The file is there and holds something else.
        OSError: Its folder is missing, or the path is a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"out={str(path)!r}: there is no folder {path.parent}.")
    if path.is_dir():
        raise IsADirectoryError(f"out={str(path)!r}: is a folder; name a file.")
    if not path.exists():
        return
    with path.open("rb") as file:
        header = file.read(72)
    if header and not header.startswith(MAGIC):
        raise ValueError(
            f"{path} is damaged or no results file: move it away to start anew, or write to "
            "another file."
        )
    if header and int.from_bytes(header[68:72]) != APPLICATION:
        raise ValueError(
            f"{path} is a database of something else, or of an earlier fopru: move it away, or "
            "write to another file."
        )
