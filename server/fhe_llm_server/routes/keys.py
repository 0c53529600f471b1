"""Evaluation keys by content hash: is one here, and put one here in chunks."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fhe_llm_server.keystore import KEY_ID, unknown_key
from fhe_llm_server.proxy import Proxy
from fhe_llm_server.refusal import Refusal

router = APIRouter(prefix="/v1/keys")

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@router.head("/{key_id}")
async def has_key(key_id: str, request: Request) -> Response:
    """200 when the key is here, 404 when it is not."""
    proxy: Proxy = request.app.state.proxy
    if _checked(key_id) not in proxy.keystore:
        raise unknown_key()
    return Response(status_code=200)


@router.put("/{key_id}")
async def put_key(key_id: str, request: Request) -> Response:
    """One chunk (``Content-Range: bytes a-b/total``) or, without that header, the whole key frame.

    202 while bytes are missing, 201 once the key is here and verified; repeating either changes nothing.
    """
    proxy: Proxy = request.app.state.proxy
    store, known_id = proxy.keystore, _checked(key_id)
    chunk = await request.body()
    start, total = _position(request.headers.get("content-range"), len(chunk))
    loop = asyncio.get_running_loop()
    received = await loop.run_in_executor(proxy.key_pool, store.write, known_id, start, total, chunk)
    if received is None:
        return JSONResponse({"key_id": known_id, "complete": True, "received": total}, status_code=201)
    return JSONResponse({"key_id": known_id, "complete": False, "received": received}, status_code=202)


def _checked(key_id: str) -> str:
    if not KEY_ID.fullmatch(key_id):
        message = (
            "cannot use this key id: it is not 64 lower-case hex digits. Send the SHA-256 of the key frame."
        )
        raise Refusal("bad_request", message)
    return key_id


def _position(content_range: str | None, length: int) -> tuple[int, int]:
    if content_range is None:
        start, end, total = 0, length - 1, length
    else:
        match = _CONTENT_RANGE.fullmatch(content_range)
        start, end, total = (int(part) for part in match.groups()) if match else (0, -1, 0)
    if not 0 <= start <= end < total or end - start + 1 != length:
        message = (
            "cannot store this chunk: Content-Range is not that of the body. Send 'bytes first-last/total' "
            "with a body of last - first + 1 bytes."
        )
        raise Refusal("bad_request", message)
    return start, total
