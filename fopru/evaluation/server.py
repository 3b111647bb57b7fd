"""A server with OpenAI's API (vLLM, SGLang, llama.cpp), and how far its answers are trusted."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LARGEST = 2**20
"""The most bytes that are read of one answer."""


class ServerError(OSError):
    """The server cannot be asked at all, whatever the question is."""


class Unanswered(ValueError):
    """One request got no answer. `refused` says whether the server read it and said why not."""

    def __init__(self, reason: str, refused: bool = False):
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True)
class Reply:
    """What a server answers to one request."""

    text: str
    """The answer as it came."""
    finish: str | None
    """Why the answer ends: "stop", "length" or what else the server says."""
    prompt_tokens: int | None
    """The tokens of the prompt as the server counts them, those of its pictures among them."""
    answer_tokens: int | None
    """The tokens of the answer as the server counts them."""
    seconds: float
    """From sending the request until all of the answer is here."""


class Server:
    """A server that threads may ask at the same time, each over a connection of its own.

    Nothing but its own host is asked: a redirect is an error, and no proxy is used.

    Args:
        url: Where its API begins, as "http://localhost:8000" or "http://localhost:8000/v1".
        timeout: Seconds after which a request counts as unanswered.
        api_key: What goes into the header "Authorization", if the server wants a key.

    Raises:
        ValueError: The address is none of http or https, or holds a password or a query.
    """

    def __init__(self, url: str, timeout: float = 120.0, api_key: str | None = None):
        try:
            parts = urlsplit(str(url))
            port, fits = parts.port, parts.scheme in ("http", "https") and parts.hostname
        except ValueError:  # a port that is none, or a bracket that is not closed
            fits = False
        if not fits:
            raise ValueError(f"url={url!r}: must be an address as http://localhost:8000.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"url of {parts.hostname}: must be scheme, host, port and path alone, as "
                "http://localhost:8000/v1; a key goes into `api_key`."
            )
        path = parts.path.rstrip("/")
        self.path = path if path.endswith("/v1") else f"{path}/v1"
        self.url = f"{parts.scheme}://{parts.netloc}{self.path}"
        self.timeout = timeout
        kind = http.client.HTTPSConnection if parts.scheme == "https" else None
        self._kind, self._place = kind or http.client.HTTPConnection, (parts.hostname, port)
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            if not api_key.isascii() or not api_key.isprintable():
                raise ValueError("api_key: must be printable ASCII, as a header takes it.")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._own = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._closed = False

    def interrupt(self) -> None:
        """Break off all requests that are under way; none can be sent afterwards."""
        self._closed = True
        for connection in list(self._open):
            with suppress(OSError, AttributeError):  # it is closed already
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections, once no thread asks any more."""
        self.interrupt()
        for connection in self._open:
            connection.close()
        self._open.clear()

    def models(self) -> list[str]:
        """Return the names of the models that it serves."""
        try:
            found, _ = self._json("GET", "/models")
            return [str(entry["id"]) for entry in found["data"]]
        except (KeyError, TypeError):
            raise ServerError(f"{self.url}/models: names no models as OpenAI's API does.") from None
        except Unanswered as error:
            raise ServerError(f"{self.url}/models: {error}") from None

    def chat(self, request: Mapping[str, Any]) -> Reply:
        """Send a request for a chat completion, and return the first answer.

        Raises:
            Unanswered: There is no answer to this request; the message says why.
            ServerError: There will be none to any: no connection, a redirect, a key that is not
                taken, or no such API or model.
        """
        found, seconds = self._json("POST", "/chat/completions", json.dumps(request).encode())
        try:
            choice = found["choices"][0]
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise Unanswered("the server's answer is no chat completion.") from None
        if not isinstance(text, str):
            raise Unanswered(f"the server's answer holds {type(text).__name__} and no text.")
        usage = found.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        finish = choice.get("finish_reason")
        return Reply(text, _clean(finish) if finish else None, *counts, seconds)

    def _json(self, method: str, path: str, body: bytes | None = None) -> tuple[Any, float]:
        """Return what the server answers as JSON, and the seconds that it took."""
        status, location, data, seconds = self._exchange(method, path, body)
        if status == 200:
            try:
                return json.loads(data), seconds
            except (ValueError, RecursionError):
                raise Unanswered("the server's answer is no JSON.") from None
        said = _sentence(data)
        if 300 <= status < 400:
            raise ServerError(
                f"{self.url}: wants to redirect to {_clean(location)!r}, which is not followed: "
                "give the address itself."
            )
        if status in (401, 403, 404, 405):
            raise ServerError(f"{self.url}{path}: answers {status}: {said}")
        raise Unanswered(f"the server answers {status}: {said}", status in (400, 413, 415, 422))

    def _exchange(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[int, str | None, bytes, float]:
        """Send a request and read what comes back: status, header "Location", body, seconds."""
        used = getattr(self._own, "connection", None) is not None
        try:
            return self._once(method, path, body)
        except (ConnectionError, http.client.RemoteDisconnected):
            if not used or self._closed:
                raise Unanswered("the server broke off the connection.") from None
        try:  # it may have closed a connection that was idle
            return self._once(method, path, body)
        except (ConnectionError, http.client.RemoteDisconnected):
            raise Unanswered("the server broke off the connection.") from None

    def _once(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[int, str | None, bytes, float]:
        connection = self._connection()
        start = time.perf_counter()
        done = False
        try:
            connection.request(method, self.path + path, body, self._headers)
            response = connection.getresponse()
            data = b""
            while part := response.read1(2**16):
                data += part
                if len(data) > LARGEST:
                    raise Unanswered(f"the server's answer is larger than {LARGEST:,} bytes.")
                if time.perf_counter() - start > self.timeout:
                    raise TimeoutError
            if response.length:  # bytes that were promised
                raise ConnectionResetError
            seconds = time.perf_counter() - start
            response.read()  # nothing is left: the connection is free for the next request
            done = True
            return response.status, response.getheader("Location"), data, seconds
        except TimeoutError:
            raise Unanswered(f"no answer within {self.timeout:g} seconds.") from None
        except ConnectionError:
            raise
        except (http.client.HTTPException, OSError) as error:
            raise Unanswered(f"the server's answer cannot be read ({_clean(error)}).") from None
        finally:
            if not done:
                self._drop(connection)

    def _connection(self) -> http.client.HTTPConnection:
        """Return this thread's connection, which is open."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._kind(*self._place, timeout=self.timeout)
            try:
                connection.connect()
            except OSError as error:
                raise ServerError(f"{self.url}: cannot be reached ({error}).") from None
            self._own.connection = connection
            self._open.add(connection)
        if self._closed:
            raise ServerError(f"{self.url}: was closed on this side.")
        return connection

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._open.discard(connection)
        self._own.connection = None


def _count(value: Any) -> int | None:
    """Return a number of tokens, None where it is none."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**31 else None


def _sentence(data: bytes) -> str:
    """Return what a server says of an error, as one line."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return _clean(data.decode(errors="replace")) or "nothing more."
    while isinstance(found, dict):
        names = ("error", "message", "detail")
        found = next((found[name] for name in names if found.get(name)), str(found))
    return _clean(found)


def _clean(text: Any) -> str:
    """Return a text of others as one line of at most 300 characters, without what steers a
    console."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[:3000])
    return " ".join(line.split())[:300]
