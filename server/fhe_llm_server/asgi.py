"""Raw ASGI pieces that work before any framework has looked at a request."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from fhe_llm_server.refusal import Refusal

LINGER_SECONDS = 1.0
"""How long an unread body is discarded after a refusal, so that the client gets to read the answer."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the envelope, whether the request is HTTP or a WebSocket handshake.

    The answer leaves before anything is read. What the client is still sending is then discarded for a
    moment: closing at once would reset the connection and the client would see a broken pipe instead of the
    reason.
    """
    scope["fhe_llm.error"] = refusal.proxy_code
    body = refusal.envelope()
    headers, kind = refusal.headers(), "websocket.http.response"
    if scope["type"] == "http":  # uvicorn counts the body of a refused handshake itself
        headers["content-length"], kind = str(len(body)), "http.response"
    if scope["type"] == "http" and has_body(scope):
        headers["connection"] = "close"
    raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": raw})
    if scope["type"] == "http" and has_body(scope):
        await send({"type": f"{kind}.body", "body": body, "more_body": True})
        await _discard(receive)
        body = b""
    await send({"type": f"{kind}.body", "body": body, "more_body": False})


def has_body(scope: Scope) -> bool:
    """Whether the request announces a body."""
    length = header(scope, b"content-length")
    return header(scope, b"transfer-encoding") is not None or (length is not None and length != b"0")


async def _discard(receive: Receive) -> None:
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
