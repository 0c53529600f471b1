"""The outermost layer: a request id, a log line without bodies, byte counts, and the last line of defence."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fhe_llm_server.asgi import header, refuse
from fhe_llm_server.metrics import Metrics
from fhe_llm_server.refusal import internal

logger = logging.getLogger("fhe_llm_server.requests")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{8,64}")
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestLog:
    """ASGI middleware: whatever goes wrong below becomes an ``internal`` envelope, never a stack trace."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._metrics)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.peer_gone(error):
                return
            logger.exception("request %s failed", exchange.request_id)
            if exchange.status == 0:
                await refuse(internal(exchange.request_id), scope, exchange.receive, exchange.send)
            elif scope["type"] == "http":
                raise
        finally:
            exchange.finish()


class _Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, metrics: Metrics) -> None:
        offered = header(scope, b"x-request-id") or b""
        known = _REQUEST_ID.fullmatch(offered) is not None
        self.request_id = offered.decode("ascii") if known else secrets.token_hex(8)
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._metrics = metrics
        self._up = self._down = 0
        self._gone = False
        self._started = time.perf_counter()

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message["type"]
        if kind == "http.request":
            self._up += len(message.get("body", b""))
        elif kind == "websocket.receive":
            self._up += len(message.get("bytes") or message.get("text") or b"")
        elif kind in ("http.disconnect", "websocket.disconnect"):
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
        elif kind == "websocket.accept":
            self.status = 101
        elif kind in ("http.response.body", "websocket.http.response.body"):
            self._down += len(message.get("body", b""))
        elif kind == "websocket.send":
            self._down += len(message.get("bytes") or b"")
        await self._send(message)

    def peer_gone(self, error: Exception) -> bool:
        """Whether the failure is just the client leaving."""
        return self._gone or isinstance(error, ConnectionError)

    def finish(self) -> None:
        """Count and log; the path is shortened and escaped, queries and bodies are never logged."""
        metrics, scope = self._metrics, self._scope
        metrics.bytes_up.inc(self._up)
        metrics.bytes_down.inc(self._down)
        code = scope.get("fhe_llm.error")
        if code is None and self.status == 500:
            code = "internal"
        if code is not None:
            metrics.errors.labels(code).inc()
        level = logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO
        logger.log(
            level,
            "%s %s %s %s %s up=%d down=%d %.1f ms",
            self.request_id,
            scope.get("method", "WS"),
            ascii(scope["path"][:120])[1:-1],
            self.status or "gone",
            code or "-",
            self._up,
            self._down,
            1000 * (time.perf_counter() - self._started),
        )
