"""The network under an :class:`fhe_llm.providers.exchange.Exchange`: httpx, blocking and on an event loop.

httpx's exceptions hold the request with its key, so each is turned into a word or two outside of its handler and is no
context of what is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import httpx

from fhe_llm.providers.exchange import BrokenError, Head, LateError, Operation, Receive, Routine, Send
from fhe_llm.routines import adrive, drive

R = TypeVar("R")


class Wire:
    """One request of a blocking client. httpx limits each read of a socket; a :class:`_Watch` limits them together once
    there are headers (headers that trickle are bounded by their size only)."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._watch: _Watch | None = None

    def run(self, routine: Routine[R]) -> R:
        """The routine's result; raises what it raises."""
        return drive(routine, self._perform, BrokenError)

    def close(self) -> None:
        """Give the connection back, or drop it where the answer was not read to its end."""
        if self._watch is not None:
            self._watch.stop()
        if self._response is not None:
            with contextlib.suppress(httpx.HTTPError, OSError):
                self._response.close()

    def _perform(self, operation: Operation) -> Head | bytes:
        match operation:
            case Send():
                return self._send(operation)
            case Receive(seconds):
                return self._receive(seconds)

    def _send(self, call: Send) -> Head:
        _check_time(call.seconds)
        request = _request(self._client, call)
        try:
            response = self._client.send(request, stream=True, follow_redirects=False)
        except httpx.HTTPError as error:
            failure = _broken(error)
        else:
            self._response, self._pieces = response, response.iter_raw()
            self._watch = _Watch(response)
            return _head(response)
        raise failure

    def _receive(self, seconds: float) -> bytes:
        _check_time(seconds)
        assert self._watch is not None  # noqa: S101  a receive follows a send
        try:
            with self._watch.within(seconds):
                piece = next(self._pieces, b"")
        except httpx.HTTPError as error:
            failure = _broken(error)
        else:
            if not self._watch.barked:
                return piece
            failure = BrokenError()
        raise LateError() if self._watch.barked else failure


class AsyncWire:
    """The same on an event loop, which can limit anything."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def run(self, routine: Routine[R]) -> R:
        """See :meth:`Wire.run`; a cancelled task drops the connection."""
        return await adrive(routine, self._perform, BrokenError)

    async def close(self) -> None:
        """See :meth:`Wire.close`."""
        if self._response is not None:
            with contextlib.suppress(httpx.HTTPError, OSError):
                await self._response.aclose()

    async def _perform(self, operation: Operation) -> Head | bytes:
        _check_time(operation.seconds)
        failure: BrokenError
        try:
            async with asyncio.timeout(operation.seconds):
                match operation:
                    case Send():
                        return await self._send(operation)
                    case Receive():
                        assert self._pieces is not None  # noqa: S101  a receive follows a send
                        return await anext(self._pieces, b"")
        except TimeoutError:
            failure = LateError()
        except httpx.HTTPError as error:
            failure = _broken(error)
        raise failure

    async def _send(self, call: Send) -> Head:
        response = await self._client.send(_request(self._client, call), stream=True, follow_redirects=False)
        self._response, self._pieces = response, response.aiter_raw()
        return _head(response)


class _Watch:
    """Ends a blocking read at a time that httpx cannot be told: bytes that trickle restart its timeouts.

    A thread sleeps until then and shuts the socket, which wakes the reader.
    """

    def __init__(self, response: httpx.Response) -> None:
        stream = response.extensions.get("network_stream")
        self._socket = stream.get_extra_info("socket") if stream is not None else None
        self._changed = threading.Condition()
        self._until: float | None = None
        self._running = self._stopped = False
        self.barked = False

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Limit what is read inside."""
        with self._changed:
            self._until = time.monotonic() + seconds
            if not self._running and isinstance(self._socket, socket.socket):
                threading.Thread(target=self._run, name="fhe-llm-provider-watch", daemon=True).start()
                self._running = True
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._until = None

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._stopped:
                left = None if self._until is None else self._until - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                self.barked = True
                with contextlib.suppress(OSError):
                    # the socket below TLS: its own shutdown would take the session from the reading thread
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # type: ignore[arg-type]
                return


def _request(client: httpx.Client | httpx.AsyncClient, call: Send) -> httpx.Request:
    limits = httpx.Timeout(call.seconds, connect=min(call.connect_seconds, call.seconds))
    return client.build_request(
        "POST", call.url, headers=dict(call.headers), content=call.body, timeout=limits
    )


def _head(response: httpx.Response) -> Head:
    return Head(response.status_code, {name.lower(): value for name, value in response.headers.items()})


def _check_time(seconds: float) -> None:
    if seconds <= 0:
        raise LateError


def _broken(error: httpx.HTTPError) -> BrokenError:
    match error:
        case httpx.ConnectTimeout():
            return BrokenError("no connection came about in time")
        case httpx.TimeoutException():
            return LateError()
        case httpx.ConnectError():
            return BrokenError(f"there is no connection ({error})")
        case httpx.ProxyError() | httpx.UnsupportedProtocol():
            return BrokenError("the proxy that the environment names refuses")
        case _:
            return BrokenError("the connection was cut")
