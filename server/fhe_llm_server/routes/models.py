"""What is served here, and the bundle a client needs to use it."""

from __future__ import annotations

import re
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from fhe_llm_server.proxy import Proxy
from fhe_llm_server.refusal import Refusal

router = APIRouter(prefix="/v1/models")

_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


@router.get("")
async def models(request: Request) -> Response:
    """Names, digests, layers with plan ids and scales, and the limits to keep to."""
    proxy: Proxy = request.app.state.proxy
    listing = {"models": [proxy.host.ready().listing()], "limits": proxy.limits.listing()}
    return JSONResponse(listing)


@router.get("/{name}/bundle")
async def bundle(name: str, request: Request) -> Response:
    """The client bundle; ``ETag`` is its SHA-256, one byte range may be asked for."""
    proxy: Proxy = request.app.state.proxy
    model = proxy.host.ready()
    if name != model.name:
        message = "cannot find this model: it is not served here. See /v1/models for the names."
        raise Refusal("unknown_model", message)
    etag = f'"{model.bundle.digest}"'
    headers = {"etag": etag, "cache-control": "public, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") in (etag, "*"):
        return Response(status_code=304, headers=headers)
    _keep_only_a_valid_range(request, model.bundle.size)
    return FileResponse(model.bundle.path, headers=headers, media_type="application/octet-stream")


def _keep_only_a_valid_range(request: Request, size: int) -> None:
    """Ignore what is not one byte range (RFC 9110 14.2 allows that); refuse one outside the file."""
    asked = request.headers.get("range")
    if asked is None:
        return
    match = _RANGE.fullmatch(asked)
    if match is None or (match[1] and match[2] and int(match[2]) < int(match[1])):
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
    elif (match[1] and int(match[1]) >= size) or match[3] == "0":
        raise Refusal(
            "bad_range", f"cannot send this range: the bundle has {size} bytes. Ask for bytes inside it."
        )
