"""Transports over the network: one WebSocket for rounds where the proxy accepts it, plain HTTP for the rest.

A forked child opens connections of its own and never uses its parent's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx

from fhe_llm.client.transport.operations import (
    NOTHING,
    Answer,
    HttpCall,
    Operation,
    Pause,
    Round,
    Routine,
    TimedOut,
    Unreachable,
)
from fhe_llm.client.transport.websocket import AsyncSocket, NoWebSocket, Socket
from fhe_llm.errors import TransportError
from fhe_llm.routines import adrive, drive

R = TypeVar("R")
_LOG: Final = logging.getLogger(__name__)
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
_EVALUATE: Final = "/v1/evaluate"


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """Where the proxy is and how to talk to it. ``tls`` replaces the system's certificate store."""

    base_url: str
    api_key: str | None = None
    connect_seconds: float = 10.0
    read_seconds: float = 300.0
    tls: ssl.SSLContext | None = None
    websocket: bool = True
    _url: httpx.URL = field(init=False)

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.base_url.rstrip("/"))
        except (httpx.InvalidURL, TypeError, AttributeError) as error:
            raise TransportError(
                f"cannot use proxy URL {self.base_url!r}: {error}. Give http://host:port."
            ) from None
        if url.scheme not in ("http", "https") or not url.host or url.query or url.userinfo:
            raise TransportError(
                f"cannot use proxy URL {self.base_url!r}: it is not http://host:port. Correct it."
            )
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.isprintable()):
            raise TransportError("cannot use the API key: it holds characters no header may. Copy it again.")
        if self.api_key is not None and url.scheme == "http" and url.host not in _LOOPBACK:
            _LOG.warning("the API key travels unencrypted to %s: use https", url.host)
        object.__setattr__(self, "_url", url)

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, api_key={'set' if self.api_key else None})"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    @property
    def address(self) -> str:
        """The proxy's URL as httpx spells it: lower case, no default port, no slash at the end."""
        return str(self._url).rstrip("/")

    @property
    def socket_url(self) -> str:
        """The WebSocket address of the evaluate route."""
        return "ws" + self.address[len("http") :] + _EVALUATE

    @property
    def client_arguments(self) -> dict[str, Any]:
        """Arguments of httpx's clients."""
        return {
            "base_url": self.address,
            "headers": {**self.headers, "accept-encoding": "identity"},
            "timeout": httpx.Timeout(self.read_seconds, connect=self.connect_seconds),
            "verify": self.tls or True,
        }


class _Connections:
    """What one process has open. Whoever holds ``lock`` may use ``socket``; None where the proxy takes none."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.process = os.getpid()
        self.client = httpx.Client(**endpoint.client_arguments)
        self.socket = Socket(endpoint) if endpoint.websocket else None
        self.lock = threading.Lock()


class HttpTransport:
    """Blocking transport. Threads may share it: one at a time uses the WebSocket, the others POST."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self._endpoint = endpoint
        self._connections = _Connections(endpoint)

    def run(self, routine: Routine[R]) -> R:
        """Run a routine to its end; raises what it raises."""
        return drive(routine, self._perform, Unreachable)

    def close(self) -> None:
        """Close all connections."""
        here = self._here()
        if here.socket is not None:
            here.socket.close()
        here.client.close()

    def _here(self) -> _Connections:
        """The connections of this process; each call of a child's threads uses one set, and its lock, throughout."""
        found = self._connections
        if found.process != os.getpid():
            if found.socket is not None:
                found.socket.close()
            # the parent's client is dropped, not closed: another thread may have held its locks during the fork
            self._connections = found = _Connections(self._endpoint)
        return found

    def _perform(self, operation: Operation) -> Answer:
        match operation:
            case Pause(seconds):
                time.sleep(seconds)
                return NOTHING
            case HttpCall():
                return self._call(operation)
            case Round():
                return self._round(operation)

    def _round(self, call: Round) -> Answer:
        here = self._here()
        socket = here.socket
        if socket is not None and here.lock.acquire(blocking=False):
            try:
                return socket.exchange(call)
            except NoWebSocket as cause:
                _LOG.info("no WebSocket (%s): using POST", cause)
                here.socket = socket if cause.passing else None
            finally:
                here.lock.release()
        answer = self._call(_as_post(call))
        if call.meanwhile is not None:
            call.meanwhile()
        return answer

    def _call(self, call: HttpCall) -> Answer:
        try:
            with self._here().client.stream(
                call.method, call.path, headers=dict(call.headers), content=bytes(call.body)
            ) as response:
                body = bytearray()
                for piece in response.iter_raw():
                    body += piece
                    _check_size(body, call)
                return Answer(response.status_code, response.headers, bytes(body))
        except httpx.HTTPError as error:
            raise _unreachable(error) from None


class AsyncHttpTransport:
    """The same for asyncio; tasks may share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self._endpoint, self._process = endpoint, os.getpid()
        self._client = httpx.AsyncClient(**endpoint.client_arguments)
        self._socket = AsyncSocket(endpoint) if endpoint.websocket else None
        self._socket_lock = asyncio.Lock()

    async def run(self, routine: Routine[R]) -> R:
        """Run a routine to its end; raises what it raises."""
        return await adrive(routine, self._perform, Unreachable)

    async def aclose(self) -> None:
        """Close all connections."""
        self._leave_parent()
        if self._socket is not None:
            await self._socket.close()
        await self._client.aclose()

    async def abandon(self) -> None:
        """Close all connections at once: the event loop is about to end, and no handshake can finish."""
        self._leave_parent()
        if self._socket is not None:
            self._socket.drop()
        await self._client.aclose()

    def _leave_parent(self) -> None:
        """After a fork: a client of our own; the socket sees to itself."""
        if self._process != os.getpid():
            self._client = httpx.AsyncClient(**self._endpoint.client_arguments)
            self._socket_lock, self._process = asyncio.Lock(), os.getpid()

    async def _perform(self, operation: Operation) -> Answer:
        self._leave_parent()
        match operation:
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return NOTHING
            case HttpCall():
                return await self._call(operation)
            case Round():
                return await self._round(operation)

    async def _round(self, call: Round) -> Answer:
        if self._socket is not None and not self._socket_lock.locked():
            async with self._socket_lock:
                try:
                    return await self._socket.exchange(call)
                except NoWebSocket as cause:
                    _LOG.info("no WebSocket (%s): using POST", cause)
                    self._socket = self._socket if cause.passing else None
        answer = await self._call(_as_post(call))
        if call.meanwhile is not None:
            call.meanwhile()
        return answer

    async def _call(self, call: HttpCall) -> Answer:
        try:
            async with self._client.stream(
                call.method, call.path, headers=dict(call.headers), content=bytes(call.body)
            ) as response:
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    _check_size(body, call)
                return Answer(response.status_code, response.headers, bytes(body))
        except httpx.HTTPError as error:
            raise _unreachable(error) from None


def _as_post(call: Round) -> HttpCall:
    return HttpCall("POST", _EVALUATE, {"content-type": "application/octet-stream"}, call.frame)


def _check_size(body: bytearray, call: HttpCall) -> None:
    if len(body) > call.max_answer_bytes:
        raise TransportError(
            f"cannot read the proxy's answer: it is longer than {call.max_answer_bytes} bytes. "
            "Check that the URL leads to an fhe-llm proxy."
        )


def _unreachable(error: httpx.HTTPError) -> Unreachable:
    if isinstance(error, httpx.TimeoutException):
        return TimedOut("it did not answer in time")
    return Unreachable(f"the connection failed ({error or type(error).__name__})")
