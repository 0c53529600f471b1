"""Bearer API keys. Health checks stay open; everything else asks for a key once any key is configured."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from fhe_llm_server.asgi import header, refuse
from fhe_llm_server.refusal import Refusal

OPEN_PATHS = frozenset({"/healthz", "/readyz"})


class BearerKeys:
    """Compares digests of equal length in constant time, against every key, so timing tells nothing."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: bytes | None) -> bool:
        """Whether the ``Authorization`` header carries one of the keys."""
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


class Authentication:
    """ASGI middleware: ``unauthorized`` before any byte of the body is read."""

    def __init__(self, app: ASGIApp, keys: BearerKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS
        if guarded and self._keys and not self._keys.accept(header(scope, b"authorization")):
            message = "cannot serve this request: no valid API key. Send 'Authorization: Bearer <key>'."
            await refuse(Refusal("unauthorized", message), scope, receive, send)
            return
        await self._app(scope, receive, send)
