"""What the server received: every byte of every connection, and the requests that became whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Received:
    """One request. ``number`` counts all requests of the server from 0, ``connection`` its connections."""

    number: int
    connection: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    hung_up: threading.Event = field(default_factory=threading.Event)
    """The client went away before the answer was complete."""
    done: threading.Event = field(default_factory=threading.Event)
    """The server is finished with it, one way or another."""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """A header's value; ``name`` in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Recorder:
    """Filled by the server's thread, read by tests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._streams: list[bytearray] = []
        self._requests: list[Received] = []

    def connected(self) -> tuple[int, bytearray]:
        """A new connection: its number, and where its bytes belong."""
        with self._changed:
            self._streams.append(bytearray())
            return len(self._streams) - 1, self._streams[-1]

    def add(
        self, connection: int, method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> Received:
        """A whole request."""
        with self._changed:
            request = Received(len(self._requests), connection, method, target, headers, body)
            self._requests.append(request)
            self._changed.notify_all()
            return request

    @property
    def requests(self) -> list[Received]:
        """In the order of their last byte."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many were accepted."""
        with self._changed:
            return len(self._streams)

    def wait_for(self, count: int) -> list[Received]:
        """The requests, as soon as there are ``count``."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout=20):
                raise AssertionError(f"{len(self._requests)} requests came, not {count}")
            return list(self._requests)

    def all_bytes(self) -> bytes:
        """Every byte that arrived, of whole requests or not."""
        with self._changed:
            return b"\n".join(bytes(stream) for stream in self._streams)

    def all_text(self) -> str:
        """Every byte that arrived, and every string of every JSON body without its escapes: where to look for words."""
        found = [self.all_bytes().decode("utf-8", "replace")]
        for request in self.requests:
            try:
                found += _strings(request.json)
            except ValueError:
                continue
        return "\n".join(found)


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, also those in JSON that a string holds (arguments of tool calls)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value
        if value[:1] in "{[" and value:
            try:
                yield from _strings(json.loads(value))
            except ValueError:
                return
