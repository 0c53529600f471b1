"""Transports over the network: one WebSocket for rounds where the proxy accepts it, plain HTTP for the rest."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Final, TypeVar

import httpx

from fhe_llm.client.transport.driver import adrive, drive
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
    def timeout(self) -> httpx.Timeout:
        """httpx's form of the two limits."""
        return httpx.Timeout(self.read_seconds, connect=self.connect_seconds)


class HttpTransport:
    """Blocking transport. Threads may share it: one at a time uses the WebSocket, the others POST."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self._client = httpx.Client(
            base_url=endpoint.base_url.rstrip("/"),
            headers={**endpoint.headers, "accept-encoding": "identity"},
            timeout=endpoint.timeout,
            verify=endpoint.tls or True,
        )
        self._socket = Socket(endpoint) if endpoint.websocket else None
        self._socket_lock = threading.Lock()

    def run(self, routine: Routine[R]) -> R:
        """Run a routine to its end; raises what it raises."""
        return drive(routine, self._perform)

    def close(self) -> None:
        """Close all connections."""
        if self._socket is not None:
            self._socket.close()
        self._client.close()

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
        if self._socket is not None and self._socket_lock.acquire(blocking=False):
            try:
                return self._socket.exchange(call)
            except NoWebSocket as cause:
                _LOG.info("no WebSocket (%s): using POST", cause)
                self._socket = self._socket if cause.passing else None
            finally:
                self._socket_lock.release()
        answer = self._call(_as_post(call))
        if call.meanwhile is not None:
            call.meanwhile()
        return answer

    def _call(self, call: HttpCall) -> Answer:
        try:
            with self._client.stream(
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
        self._client = httpx.AsyncClient(
            base_url=endpoint.base_url.rstrip("/"),
            headers={**endpoint.headers, "accept-encoding": "identity"},
            timeout=endpoint.timeout,
            verify=endpoint.tls or True,
        )
        self._socket = AsyncSocket(endpoint) if endpoint.websocket else None
        self._socket_lock = asyncio.Lock()

    async def run(self, routine: Routine[R]) -> R:
        """Run a routine to its end; raises what it raises."""
        return await adrive(routine, self._perform)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._socket is not None:
            await self._socket.close()
        await self._client.aclose()

    async def abandon(self) -> None:
        """Close all connections at once: the event loop is about to end, and no handshake can finish."""
        if self._socket is not None:
            self._socket.drop()
        await self._client.aclose()

    async def _perform(self, operation: Operation) -> Answer:
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
