"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fhe_llm_server.proxy import Proxy
from fhe_llm_server.refusal import Refusal

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Response:
    """The event loop turns."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 once rounds can be answered; before that the envelope, with the loading phase beside it."""
    proxy: Proxy = request.app.state.proxy
    phase = proxy.host.phase
    progress = {"phase": phase.name, "done": phase.done, "total": phase.total}
    try:
        proxy.host.ready()
    except Refusal as refusal:
        error = {
            "code": refusal.proxy_code,
            "message": str(refusal),
            "retry_after_ms": refusal.retry_after_ms,
        }
        return JSONResponse({"error": error, **progress}, status_code=refusal.status)
    return JSONResponse({"status": "ready", **progress})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    proxy: Proxy = request.app.state.proxy
    return Response(proxy.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
