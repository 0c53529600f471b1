"""uvicorn's connections with what it leaves open: slow request heads, peers that do not read, and a cap on their
number.

A connection that has not sent a complete request head in ``HEAD_SECONDS``, or has not read what waits for it in
``SEND_SECONDS``, is cut. Bytes that are not HTTP get the common JSON envelope.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from fhe_llm_server.refusal import Refusal

HEAD_SECONDS = 10.0
SEND_SECONDS = 60.0


class _Timer:
    """One pending call, at most."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, transport: asyncio.Transport) -> None:
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(seconds, transport.abort)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class GuardedHTTP(H11Protocol):
    """Subclass through :func:`guarded_http`, which sets the cap."""

    max_raw_connections: ClassVar[int]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer, self._send_timer = _Timer(), _Timer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self.max_raw_connections:
            self.transport.abort()
            return
        self._head_timer.start(HEAD_SECONDS, self.transport)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self in self.connections:
            self._head_timer.start(HEAD_SECONDS, self.transport)
        else:
            self._head_timer.stop()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._head_timer.stop()
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer.start(SEND_SECONDS, self.transport)

    def resume_writing(self) -> None:
        self._send_timer.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.stop()
        self._send_timer.stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the base's signature
        refusal = Refusal(
            "bad_request", "cannot read this request: it is not valid HTTP/1.1. Check the client."
        )
        body = refusal.envelope()
        headers = [*refusal.headers().items(), ("content-length", str(len(body))), ("connection", "close")]
        events: tuple[Any, ...] = (
            h11.Response(status_code=refusal.status, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """Cuts a peer that does not read, also while closing: a plain close would wait for it for ever."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._send_timer = _Timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer.start(SEND_SECONDS, self.transport)

    def resume_writing(self) -> None:
        self._send_timer.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._send_timer.stop()
        super().connection_lost(exc)


def guarded_http(max_raw_connections: int) -> type[GuardedHTTP]:
    """The HTTP protocol class with its connection cap."""
    return type("GuardedHTTP", (GuardedHTTP,), {"max_raw_connections": max_raw_connections})
