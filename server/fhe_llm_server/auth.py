"""Bearer API keys. Health checks stay open; everything else asks for a key once any key is configured."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from fhe_llm_server.asgi import header, refuse
from fhe_llm_server.refusal import Refusal

TENANT: Final = "fhe_llm.tenant"
LOCAL: Final = "local"
"""The one tenant of a proxy without API keys."""
OPEN_PATHS = frozenset({"/healthz", "/readyz"})


class BearerKeys:
    """Compares digests of equal length in constant time, against every key, so timing tells nothing."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, authorization: bytes | None) -> str | None:
        """Whose key the ``Authorization`` header carries, by a name made of the key's digest; None without one."""
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return tenant_name(digest) if any(matches) else None


def tenant_name(digest: bytes) -> str:
    """The tenant in the ledger of the API key with this SHA-256: nobody learns the key from it."""
    return f"key-{digest.hex()[:16]}"


class Authentication:
    """ASGI middleware: ``unauthorized`` before any byte of the body is read; ``scope[TENANT]`` says who asks."""

    def __init__(self, app: ASGIApp, keys: BearerKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS
        if guarded:
            scope[TENANT] = self._keys.tenant(header(scope, b"authorization")) if self._keys else LOCAL
        if guarded and scope[TENANT] is None:
            message = "cannot serve this request: no valid API key. Send 'Authorization: Bearer <key>'."
            await refuse(Refusal("unauthorized", message), scope, receive, send)
            return
        await self._app(scope, receive, send)
