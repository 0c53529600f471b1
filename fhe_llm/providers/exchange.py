"""One attempt at one request, as generators without I/O: they yield what the network shall do, and are sent what came.

:mod:`fhe_llm.providers.wires` performs it, blocking or on an event loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from fhe_llm.errors import (
    ProviderError,
    ProviderRequestError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from fhe_llm.providers.circuit import Circuit
from fhe_llm.providers.contract import ProviderAnswer, ProviderChunk, ProviderRequest
from fhe_llm.providers.dialect import MAX_ANSWER_BYTES, Dialect, UnreadableError, parsed
from fhe_llm.providers.refusals import Refusal, retry_after
from fhe_llm.providers.sse import EventParser, EventStreamError

R = TypeVar("R")
CONNECT_SECONDS: Final = 10.0
_MAX_ERROR_BYTES: Final = 64 << 10
_DRAIN_SECONDS: Final = 0.2
"""How long the end of a finished stream is waited for, so that its connection can be used again."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:=-]{1,128}")
_MEDIA_TYPE: Final = re.compile(r"[a-z]{1,20}/[a-z0-9.+-]{1,60}")
_SLOW: Final = frozenset({408, 424})
"""Statuses below 500 that say the provider fails."""


@dataclass(frozen=True, slots=True, repr=False)
class Send:
    """POST ``body`` and wait for the status and headers, ``seconds`` at most."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    connect_seconds: float = CONNECT_SECONDS


@dataclass(frozen=True, slots=True)
class Receive:
    """The next bytes of the answer, b"" at its end, within ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case)."""

    status: int
    headers: Mapping[str, str]


Operation: TypeAlias = Send | Receive
Routine: TypeAlias = Generator[Operation, Any, R]


class BrokenError(Exception):
    """The connection failed; the text says how, and holds nothing that was sent."""


class LateError(BrokenError):
    """Nothing came within the limit."""


@dataclass(frozen=True, slots=True, repr=False)
class Call:
    """What is asked, of whom, and until when; the same for every attempt. ``deadline`` is in :func:`time.monotonic`."""

    dialect: Dialect
    model: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    private: str
    streamed: bool
    timeout: float
    chunk_timeout: float
    deadline: float
    circuit: Circuit

    def left(self) -> float:
        """Seconds until the deadline, not below 0."""
        return max(0.0, self.deadline - time.monotonic())

    def failure(
        self, kind: type[ProviderError], cause: str, advice: str, *, retryable: bool = True
    ) -> ProviderError:
        """An error of this call."""
        name = self.dialect.name
        return kind(
            f"cannot get an answer from {name}: {cause}. {advice}", provider=name, retryable=retryable
        )


def encoded(dialect: Dialect, request: ProviderRequest, model: str, *, streamed: bool) -> bytes:
    """The request's body. Raises :class:`ProviderRequestError` for what JSON cannot hold."""
    try:
        return json.dumps(dialect.body(request, model, streamed=streamed), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        pass  # its text may quote what is to be sent
    raise ProviderRequestError(
        f"cannot send the request to {dialect.name}: something in it cannot be written as JSON. Change it.",
        provider=dialect.name,
    )


class Exchange:
    """One attempt. Enters the circuit when made; whoever makes it calls :meth:`end`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._passage = call.circuit.enter()
        self._parser = EventParser()
        self._reader = call.dialect.reader(call.model)
        self._request_id: str | None = None
        self._received = 0
        self._shown = False
        self.finished = False

    def end(self) -> None:
        """Say to the circuit that nothing more comes."""
        self._passage.end()

    def begin(self) -> Routine[list[ProviderChunk]]:
        """Send, and read to the first text or the end: until here the request may be sent again."""
        return self._told(self._begin())

    def proceed(self) -> Routine[list[ProviderChunk]]:
        """Read to the next text or the end."""
        return self._told(self._read_events())

    def _told(self, routine: Routine[list[ProviderChunk]]) -> Routine[list[ProviderChunk]]:
        """Tell the circuit how ``routine`` ends, and the caller in our own errors."""
        try:
            chunks = yield from routine
        except LateError:
            error = self._late()
        except BrokenError as broken:
            self._passage.failed()
            error = self._call.failure(ProviderUnavailableError, str(broken), "Repeat later.")
        except (UnreadableError, EventStreamError) as unreadable:
            self._passage.failed()
            cause = f"its answer cannot be read, {unreadable}"
            error = self._call.failure(ProviderError, cause, "Check base_url.", retryable=False)
        else:
            self._passage.succeeded()
            self._shown = True
            return chunks
        raise error

    def _late(self) -> ProviderError:
        call = self._call
        if call.left() > 0.0:
            self._passage.failed()
            cause = f"its stream stopped for {call.chunk_timeout:g} s"
            return call.failure(ProviderTimeoutError, cause, "Repeat, or raise chunk_timeout.")
        if not self._shown:
            self._passage.failed()  # an answer that merely is long says nothing against the provider
        cause = f"there was no whole answer within {call.timeout:g} s"
        return call.failure(ProviderTimeoutError, cause, "Repeat, ask for less, or raise timeout.")

    def _begin(self) -> Routine[list[ProviderChunk]]:
        call = self._call
        head: Head = yield Send(call.url, call.headers, call.body, call.left())
        if head.status != 200:
            yield from self._refused(head)
        self._check(head)
        self._request_id = _request_id(head.headers)
        if call.streamed:
            return (yield from self._read_events())
        answer = call.dialect.answer(parsed((yield from self._whole(MAX_ANSWER_BYTES))), call.model)
        return self._last(answer.text, answer)

    def _refused(self, head: Head) -> Routine[None]:
        try:
            body: Any = parsed((yield from self._whole(_MAX_ERROR_BYTES)))
        except (UnreadableError, BrokenError):
            body = None  # the status says enough
        call = self._call
        refusal = call.dialect.refusal(head.status, body)
        asked = retry_after(head.headers)
        raise self._error(
            dataclasses.replace(
                refusal,
                retry_after=asked if asked is not None else refusal.retry_after,
                final=head.headers.get("x-should-retry") == "false",
            )
        )

    def _error(self, refusal: Refusal) -> ProviderError:
        if refusal.status >= 500 or refusal.status in _SLOW:
            self._passage.failed()
        else:
            self._passage.succeeded()
        return refusal.error(self._call.dialect.name, sent=self._call.private)

    def _check(self, head: Head) -> None:
        wanted = "text/event-stream" if self._call.streamed else "application/json"
        media = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != wanted:
            shown = media if _MEDIA_TYPE.fullmatch(media) else "something else"
            raise UnreadableError(f"it is {shown} and not {wanted}")
        if head.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnreadableError("it is compressed, which was not asked for")

    def _whole(self, limit: int) -> Routine[bytes]:
        body = bytearray()
        while piece := (yield Receive(self._call.left())):
            body += piece
            if len(body) > limit:
                raise UnreadableError(f"it is longer than {limit} bytes")
        return bytes(body)

    def _read_events(self) -> Routine[list[ProviderChunk]]:
        limit = self._call.left()
        while True:
            if self._received:
                limit = min(self._call.chunk_timeout, self._call.left())
            piece: bytes = yield Receive(limit)
            if not piece:
                raise BrokenError("its stream ended before the answer did")
            self._received += len(piece)
            if self._received > MAX_ANSWER_BYTES:
                raise UnreadableError(f"it is longer than {MAX_ANSWER_BYTES} bytes")
            added = self._understood(piece)
            if self._reader.ended:
                yield from self._drained()
                return self._last(added, self._reader.answer())
            if added:
                return [ProviderChunk(text=added)]

    def _understood(self, piece: bytes) -> str:
        added = ""
        for event in self._parser.feed(piece):
            said = self._reader.read(event)
            if isinstance(said, Refusal):
                raise self._error(said)
            added += said
            if self._reader.ended:
                break
        return added

    def _drained(self) -> Routine[None]:
        with contextlib.suppress(BrokenError):  # the answer is whole; only the connection is lost
            yield Receive(min(_DRAIN_SECONDS, self._call.left()))

    def _last(self, added: str, answer: ProviderAnswer) -> list[ProviderChunk]:
        self.finished = True
        whole = dataclasses.replace(answer, request_id=self._request_id)
        return [ProviderChunk(text=added, answer=whole)]


def _request_id(headers: Mapping[str, str]) -> str | None:
    found = headers.get("x-request-id") or headers.get("request-id") or ""
    return found if _REQUEST_ID.fullmatch(found) else None
