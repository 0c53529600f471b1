"""uvicorn's HTTP/1.1 protocol with what it leaves open: slow request heads, and a cap on raw connections.

A connection that has not sent a complete request head in ``HEAD_SECONDS`` is closed, and bytes that are not
HTTP get the common JSON envelope.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fhe_llm_server.refusal import Refusal

HEAD_SECONDS = 10.0


class GuardedProtocol(H11Protocol):
    """Subclass through :func:`guarded`, which sets the cap."""

    max_raw_connections: ClassVar[int]
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self.max_raw_connections:
            self.transport.abort()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._forget_head()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
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

    def _watch_head(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting or self not in self.connections:
            self._forget_head()
        elif self._head_timer is None:
            self._await_head()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def guarded(max_raw_connections: int) -> type[GuardedProtocol]:
    """The protocol class with its connection cap."""
    return type("GuardedProtocol", (GuardedProtocol,), {"max_raw_connections": max_raw_connections})
