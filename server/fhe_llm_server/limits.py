"""What one client may ask of the process: body sizes, body speed, and how many requests at once.

All of it is enforced before the framework sees a request, and answered with the common envelope.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from prometheus_client import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fhe_llm_server.asgi import header, refuse
from fhe_llm_server.auth import OPEN_PATHS
from fhe_llm_server.refusal import Refusal

STALL_SECONDS = 15.0
"""A body that sends nothing for this long is given up."""
SLOWEST_BYTES_PER_SECOND = 32 * 1024
"""A body slower than this over its whole length is given up."""
MAX_KEY_BYTES = 128 << 20
"""No preset and plan need evaluation keys anywhere near this size."""
REQUESTS_PER_SOCKET = 8
"""Rounds one WebSocket may have in flight; beyond them the proxy stops reading that socket."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The figures a client needs to size its requests; published in ``/v1/models``."""

    max_body_bytes: int
    max_key_bytes: int
    max_jobs: int
    max_requests_in_flight: int = REQUESTS_PER_SOCKET

    def listing(self) -> dict[str, int]:
        """The JSON form."""
        return {
            "max_body_bytes": self.max_body_bytes,
            "max_key_bytes": self.max_key_bytes,
            "max_jobs": self.max_jobs,
            "max_requests_in_flight": self.max_requests_in_flight,
        }


class Admission:
    """ASGI middleware: at most ``most`` requests and sockets at once; health checks always get in."""

    def __init__(self, app: ASGIApp, most: int, gauge: Gauge) -> None:
        self._app = app
        self._most = most
        self._gauge = gauge
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._now >= self._most:
            message = "cannot serve this request: too many connections. Retry a little later."
            await refuse(Refusal("busy", message, retry_after_ms=1000), scope, receive, send)
            return
        self._now += 1
        self._gauge.set(self._now)
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1
            self._gauge.set(self._now)


class BodyLimit:
    """ASGI middleware: refuses a body by its announced length, then by its counted length, then by its speed.

    ``budget`` bounds the bytes of all bodies held at once, so that many legal bodies cannot exhaust memory.
    """

    def __init__(self, app: ASGIApp, most: int, budget: int) -> None:
        self._app = app
        self._most = most
        self._budget = budget
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = header(scope, b"content-length")
        if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > self._most):
            await refuse(self._too_large(), scope, receive, send)
            return
        body = _CountedBody(self, receive)
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, body.receive, watched_send)
        except _BodyRefused as refused:
            if started:
                raise
            await refuse(refused.refusal, scope, receive, send)
        finally:
            self._held -= body.counted

    def _too_large(self) -> Refusal:
        return Refusal(
            "body_too_large",
            f"cannot read this body: it is longer than {self._most} bytes. Send less at once.",
        )

    def check(self, counted: int, added: int) -> None:
        """Account for ``added`` bytes; raises the refusal that stops the request."""
        self._held += added
        if counted > self._most:
            raise _BodyRefused(self._too_large())
        if self._held > self._budget:
            message = "cannot read this body: too many bodies are being received. Retry a little later."
            raise _BodyRefused(Refusal("busy", message, retry_after_ms=500))


class _BodyRefused(BaseException):
    """Crosses the framework untouched: its exception handlers only see ``Exception``."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.proxy_code)
        self.refusal = refusal


class _CountedBody:
    def __init__(self, limit: BodyLimit, receive: Receive) -> None:
        self._limit = limit
        self._receive = receive
        self._started = asyncio.get_running_loop().time()
        self._done = False
        self.counted = 0

    async def receive(self) -> Message:
        if self._done:
            return await self._receive()
        try:
            async with asyncio.timeout(STALL_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise _BodyRefused(_too_slow()) from None
        if message["type"] != "http.request":
            return message
        added = len(message.get("body", b""))
        self.counted += added
        self._limit.check(self.counted, added)
        self._done = not message.get("more_body", False)
        elapsed = asyncio.get_running_loop().time() - self._started
        if not self._done and elapsed > STALL_SECONDS + self.counted / SLOWEST_BYTES_PER_SECOND:
            raise _BodyRefused(_too_slow())
        return message


def _too_slow() -> Refusal:
    return Refusal("request_timeout", "cannot read this body: it arrives too slowly. Retry the same bytes.")
