"""Accuracy and latency as users of a server meet them."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from tqdm import tqdm

from fopru.arguments import check_integer, check_number, check_share, hint
from fopru.evaluation import keys
from fopru.evaluation.readings import described, judged
from fopru.evaluation.runner import COLUMNS, by_picture, check_examples
from fopru.evaluation.server import Reply, Server, ServerError, Unanswered
from fopru.evaluation.settings import distinct
from fopru.evaluation.store import Store, check_results_file, provenance
from fopru.evaluation.tasks import Example, in_memory

METHOD = "server"
"""What the table calls the method, which the server's engine has chosen."""

MEASURED = ("seconds", "prompt_tokens", "answer_tokens", "finish")
"""The columns that a server's table has beside those of `fopru.evaluate`."""

PATIENCE = 8
"""After how many questions in a row without any answer the run stops."""

Cell = tuple[str, float | None]
"""The id of a question, and the share of tokens that is asked for, None for the server's own."""


def evaluate_server(
    url: str,
    examples: Sequence[Example],
    retentions: Iterable[float] | None = None,
    model: str | None = None,
    max_new_tokens: int = 8,
    concurrency: int = 8,
    timeout: float = 120.0,
    add_special_tokens: bool = False,
    api_key: str | None = None,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Ask every question of an OpenAI-compatible server, several at a time.

    Any engine will do that answers /v1/chat/completions: vLLM, SGLang, llama.cpp and others. Each
    question goes with its picture as PNG, so that the server sees the same pixels as
    `fopru.evaluate` does, and is answered greedily (temperature 0).

    Args:
        url: Where the API begins, as "http://localhost:8000".
        examples: As for `fopru.evaluate`, all about pictures.
        retentions: Shares of each picture's visual tokens to keep, in (0, 1], which go with each
            request as `mm_processor_kwargs={"fopru": {"retention": share}}`: for vLLM with fopru's
            plug-in, started with --trust-request-mm-kwargs. None asks as the server is.
        model: The name of the model on the server; None takes the only one there.
        max_new_tokens: The longest answer, in tokens.
        concurrency: How many requests are under way at a time.
        timeout: Seconds after which a question counts as unanswered.
        add_special_tokens: Whether the server shall begin the prompt with what its tokenizer adds,
            for chat templates that leave out the first token, as pocket's does.
        api_key: The server's key, if it wants one.
        out: SQLite file to which answers go as they come. A run that was stopped goes on from it:
            a row is taken from the file only where address, model, question, picture, share,
            concurrency and the other arguments are the same. It cannot know how the server was
            started: write to another file after a change there. A question that got no answer is
            asked again by the next run.

    Returns:
        One row per question and share, in their order, with the columns of `fopru.evaluate` and
        seconds (from sending the request until the answer is here, with the wait for the requests
        beside it), prompt_tokens and answer_tokens (as the server counts them) and finish (why the
        answer ends). method is "server"; retention is missing where none was asked for. What a
        server does not say is missing: choice and margin, loglik and kl, kept, tokens and found.
        error says why a question has no answer, else None. `attrs` has the address, the model and
        the concurrency.

    Raises:
        ValueError: Bad arguments, a model that the server does not have, a request for a share
            that the server refuses or does not follow, or an `out` that is damaged, something
            else, or of another model or version.
        OSError: The server cannot be asked, or stopped answering: what was answered is in `out`.

    Example:
        >>> table = fopru.evaluate_server("http://localhost:8000", questions, [1.0, 0.25])
        >>> table.groupby("retention")[["exact", "seconds"]].mean()
    """
    shares: list[float | None] = (
        [None] if retentions is None else distinct("retentions", retentions)
    )
    if not shares:
        raise ValueError("retentions=[]: name at least one, or None for the server's own.")
    for share in shares if retentions is not None else ():
        check_share("retentions", share, "(0, 1]")
    check_integer("max_new_tokens", max_new_tokens, minimum=1)
    check_integer("concurrency", concurrency, minimum=1)
    check_number("timeout", timeout, included=False)
    check_examples(examples)
    for e in examples:
        if e.modality != "image":
            raise ValueError(f"examples: question {e.id!r} is about a video; servers get pictures.")
    if out is not None:
        check_results_file(Path(out))
    with closing(Server(url, timeout, api_key)) as server:
        name = _named(server, model)
        options = {"model": name, "temperature": 0, "max_tokens": max_new_tokens}
        if add_special_tokens:
            options["add_special_tokens"] = True
        manifest = {**provenance(), "weights": f"{server.url} {name}"} if out is not None else {}
        store = Store(out if out is not None else ":memory:", manifest)
        with closing(store):
            table = Run(server, store, options, shares, concurrency).table(examples)
    table.attrs = {"server": server.url, "model": name, "concurrency": concurrency}
    return table


def _named(server: Server, model: str | None) -> str:
    """Return the name of the model that is asked."""
    there = server.models()
    if model is None and len(there) == 1:
        return there[0]
    if model is None or model not in there:
        raise ValueError(
            f"model={model!r}: {server.url} serves {', '.join(map(repr, there)) or 'no model'}: "
            f"name one of them.{hint(model, there)}"
        )
    return model


class Run:
    """All questions, each at every share, as requests to one server."""

    def __init__(
        self,
        server: Server,
        store: Store,
        options: dict[str, Any],
        shares: Sequence[float | None],
        concurrency: int,
    ):
        self.server, self.store, self.options = server, store, options
        self.shares, self.concurrency = shares, concurrency
        self.conditions = keys.digest(server.url, options, concurrency)
        self.places: dict[Cell, str | dict[str, Any]] = {}
        """Question and share -> the key of its row, or the row of one without an answer."""
        self.silent = 0
        """Questions without any answer since the last one that had one."""
        self.last = ""
        """Why the last of them has none."""

    def table(self, examples: Sequence[Example]) -> pd.DataFrame:
        """Ask what is not in the store yet, and return all rows."""
        total = len(examples) * len(self.shares)
        pending: dict[Future[Reply], tuple[Example, float | None, str]] = {}
        bar = tqdm(total=total, desc="evaluate", unit="answer")
        with bar, ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for e, share, key, request in self._missing(examples):
                    while len(pending) >= 2 * self.concurrency:
                        self._collect(pending)
                    pending[pool.submit(self.server.chat, request)] = e, share, key
                    bar.update(len(self.places) - bar.n)
                while pending:
                    self._collect(pending)
                bar.update(total - bar.n)
            except BaseException:  # what is under way is broken off, what is answered is kept
                self.server.interrupt()
                for future in pending:
                    future.cancel()
                self._keep(pending, wait(pending).done)
                raise
        rows = self.store.rows({key for key in self.places.values() if isinstance(key, str)})
        cells = [self.places[e.id, share] for e in examples for share in self.shares]
        found = [rows[cell] if isinstance(cell, str) else cell for cell in cells]
        table = pd.DataFrame(found, columns=(*COLUMNS, *MEASURED))
        counts = dict.fromkeys(("prompt_tokens", "answer_tokens", "budget"), "Int64")
        return table.astype({"retention": float, "seconds": float, **counts})

    def _missing(
        self, examples: Sequence[Example]
    ) -> Iterator[tuple[Example, float | None, str, dict[str, Any]]]:
        """Yield the questions that have to be asked, with share, key and request."""
        done, tried = self.store.done(), False
        for group in by_picture(examples):
            try:
                picture = in_memory(group[0].image)
            except ValueError as error:
                for e in group:
                    self.places |= {(e.id, s): _row(e, s, error=str(error)) for s in self.shares}
                continue
            pixels = keys.picture(picture)
            wanted = []
            for e in group:
                content = keys.question(e, e.question, pixels)
                for share in self.shares:
                    key = keys.digest(content, share, self.conditions)
                    if key in done:
                        self.places[e.id, share] = key
                    else:
                        wanted.append((e, share, key))
            if not wanted:
                continue
            shown = _address(picture)
            if not tried and self.shares != [None]:
                self._try_shares(wanted[0][0], shown)
                tried = True
            for e, share, key in wanted:
                yield e, share, key, self._request(e, shown, share)

    def _request(self, e: Example, shown: str, share: float | None) -> dict[str, Any]:
        """Return the request for one question; the picture stands before it, as in
        `fopru.evaluation.chat`."""
        content = [
            {"type": "image_url", "image_url": {"url": shown}},
            {"type": "text", "text": e.question},
        ]
        request = {**self.options, "messages": [{"role": "user", "content": content}]}
        if share is not None:
            request["mm_processor_kwargs"] = {"fopru": {"retention": share}}
        return request

    def _try_shares(self, e: Example, shown: str) -> None:
        """Check on one question that the server keeps what a request asks for: many servers pass
        over fields that they do not know."""
        try:
            asked = (self._request(e, shown, share) for share in (1.0, 0.5))
            whole, half = (self.server.chat({**r, "max_tokens": 1}).prompt_tokens for r in asked)
        except Unanswered as error:
            raise ValueError(f"retentions: {self.server.url}: {error}") from None
        if whole is None or half is None:
            warnings.warn(
                f"{self.server.url} does not count the tokens of prompts: whether it keeps the "
                "shares that are asked for cannot be seen.",
                stacklevel=2,
            )
        elif half >= whole:
            raise ValueError(
                f"retentions: {self.server.url} counts {whole} tokens at retention 1 and {half} at "
                "0.5: it does not prune by request. vLLM does with fopru's plug-in and "
                "--trust-request-mm-kwargs; leave retentions out to ask the server as it is."
            )

    def _collect(self, pending: dict[Future[Reply], tuple[Example, float | None, str]]) -> None:
        """Wait for an answer, and put those that are there into the store.

        Raises:
            ServerError: The server cannot be asked any more.
        """
        stop = self._keep(pending, wait(pending, return_when=FIRST_COMPLETED).done)
        if stop is not None:
            raise stop
        if self.silent >= PATIENCE:
            raise ServerError(f"{self.server.url}: {self.silent} questions in a row: {self.last}")

    def _keep(
        self,
        pending: dict[Future[Reply], tuple[Example, float | None, str]],
        done: Iterable[Future[Reply]],
    ) -> ServerError | None:
        """Put the answers of requests that are done into the store, and take these off the list.
        Return what says that the server cannot be asked any more, if one of them met it."""
        rows, stop = {}, None
        for future in list(done):
            e, share, key = pending.pop(future)
            if future.cancelled():
                continue
            try:
                rows[key] = _row(e, share, future.result())
                self.places[e.id, share], self.silent = key, 0
            except Unanswered as error:
                self.places[e.id, share] = _row(e, share, error=str(error))
                self.silent, self.last = 0 if error.refused else self.silent + 1, str(error)
            except ServerError as error:
                stop = error
        self.store.add(rows)
        return stop


def _address(picture: Image.Image) -> str:
    """Return a picture as the address of a PNG that holds all of it."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _row(
    e: Example, share: float | None, reply: Reply | None = None, error: str | None = None
) -> dict[str, Any]:
    """Return the row of a question: with what the server answered, or with why it did not."""
    row = {
        **dict.fromkeys((*COLUMNS, *MEASURED)),
        **described(e),
        "modality": e.modality,
        "method": METHOD,
        "retention": share,
        "seed": 0,
        "error": error,
    }
    if reply is None:
        return row
    return {
        **row,
        **judged(e, reply.text.strip().lower()),
        "seconds": reply.seconds,
        "prompt_tokens": reply.prompt_tokens,
        "answer_tokens": reply.answer_tokens,
        "finish": reply.finish,
    }
