"""One WebSocket for request and reply frames; everything that goes wrong drops it, so no stale reply is ever read.
A forked child opens its own: two processes on one connection would read each other's replies.

Compression is off: ciphertexts do not compress, and trying costs 35 ms a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, NoReturn

from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import (
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.sync.client import connect

from fhe_llm.client.transport.direct import DirectConnection, ThreadedConnection, through_a_proxy
from fhe_llm.client.transport.operations import MAX_ANSWER_BYTES, Answer, Round, TimedOut, Unreachable

if TYPE_CHECKING:
    from fhe_llm.client.transport.http import Endpoint

_PASSING_STATUS: Final = {429, 502, 503, 504}
_FAILURES: Final = (WebSocketException, OSError, EOFError, TimeoutError)


class NoWebSocket(Exception):  # noqa: N818  a fact about the route; the transport falls back to POST
    """The address answers HTTP, but does not accept a WebSocket: now (``passing``) or at all."""

    def __init__(self, cause: InvalidHandshake | InvalidURI) -> None:
        super().__init__(str(cause))
        self.passing = isinstance(cause, InvalidStatus) and cause.response.status_code in _PASSING_STATUS


class Socket:
    """Opened on the first round and again after any failure or fork. Not thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: DirectConnection | ThreadedConnection | None = None

    def exchange(self, call: Round) -> Answer:
        """Send a frame and wait for one; raises :class:`Unreachable` or :class:`NoWebSocket`."""
        if self._connection is not None and self._connection.inherited:
            self.close()
        try:
            connection = self._connection or self._open()
            connection.send(call.frame, seconds=self._endpoint.read_seconds)
            if call.meanwhile is not None:
                call.meanwhile()
            while call.spare is not None and not connection.readable() and call.spare():
                pass
            data = connection.receive(seconds=self._endpoint.read_seconds)
        except BaseException as error:
            self.close()
            if isinstance(error, _FAILURES):
                _raise_unreachable(error)
            raise
        return _answer(data)

    def close(self) -> None:
        """Let the connection go; the next round opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*_FAILURES):
                connection.close()

    def _open(self) -> DirectConnection | ThreadedConnection:
        e = self._endpoint
        try:
            if through_a_proxy(e.socket_url):
                connection = connect(e.socket_url, additional_headers=e.headers, **_options(e))
                # entered here, left by close(): the connection outlives this call
                self._connection = ThreadedConnection(contextlib.ExitStack().enter_context(connection))
            else:
                self._connection = DirectConnection.open(
                    e.socket_url, e.headers, e.tls, seconds=e.connect_seconds, max_size=MAX_ANSWER_BYTES
                )
        except InvalidMessage:
            raise
        except (InvalidHandshake, InvalidURI) as error:
            raise NoWebSocket(error) from None
        return self._connection


class AsyncSocket:
    """The same for asyncio; one task at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: AsyncConnection | None = None
        self._process = os.getpid()

    async def exchange(self, call: Round) -> Answer:
        """Send a frame and wait for one; raises :class:`Unreachable` or :class:`NoWebSocket`."""
        self._leave_parent()
        try:
            connection = self._connection or await self._open()
            await connection.send(call.frame)
            if call.meanwhile is not None:
                call.meanwhile()
            async with asyncio.timeout(self._endpoint.read_seconds):
                data = await connection.recv()
        except BaseException as error:
            self.drop()
            if isinstance(error, _FAILURES):
                _raise_unreachable(error)
            raise
        return _answer(data)

    async def close(self) -> None:
        """Close properly, without waiting long."""
        self._leave_parent()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*_FAILURES):
                await connection.close()

    def drop(self) -> None:
        """Close at once, without a word to the proxy."""
        self._leave_parent()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.abort()

    def _leave_parent(self) -> None:
        """After a fork: let go of the parent's connection behind its event loop's back. The loop is a copy whose
        selector is the parent's: closing properly would end the connection there."""
        connection, inherited = self._connection, self._process != os.getpid()
        if connection is not None and inherited:
            self._connection = None
            descriptor = connection.transport.get_extra_info("socket").fileno()
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, descriptor, inheritable=False)  # closes the copy; the number stays the loop's
            os.close(nothing)
        self._process = os.getpid()

    async def _open(self) -> AsyncConnection:
        e = self._endpoint
        try:
            self._connection = await connect_async(e.socket_url, additional_headers=e.headers, **_options(e))
        except InvalidMessage:
            raise
        except (InvalidHandshake, InvalidURI) as error:
            raise NoWebSocket(error) from None
        return self._connection


def _options(e: Endpoint) -> dict[str, Any]:
    tls = {"ssl": e.tls} if e.tls is not None and e.socket_url.startswith("wss:") else {}
    return {
        "compression": None,
        "max_size": MAX_ANSWER_BYTES,
        "open_timeout": e.connect_seconds,
        "close_timeout": 1.0,
        "ping_interval": None,
        **tls,
    }


def _answer(data: str | bytes) -> Answer:
    if isinstance(data, str):
        return Answer(200, {"content-type": "text/plain"}, data.encode())
    return Answer(200, {}, data)


def _raise_unreachable(error: BaseException) -> NoReturn:
    if isinstance(error, TimeoutError):
        raise TimedOut("it did not answer in time") from None
    raise Unreachable(f"the connection failed ({error})") from None
