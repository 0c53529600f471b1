"""The ASGI application: routes, the one error envelope, and the layers in front of them.

From the outside in: request log, admission, authentication, body limit, routes. Nothing is shared between two
applications of one process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from fhe_llm.evaluator.contract import Evaluator
from fhe_llm.progress import Progress, silent
from fhe_llm_server.asgi import refuse
from fhe_llm_server.auth import Authentication, BearerKeys
from fhe_llm_server.devices import make_evaluator
from fhe_llm_server.limits import Admission, BodyLimit
from fhe_llm_server.metrics import Metrics
from fhe_llm_server.proxy import Proxy
from fhe_llm_server.refusal import Refusal
from fhe_llm_server.request_log import RequestLog
from fhe_llm_server.routes import budget, evaluate, health, keys, models
from fhe_llm_server.settings import Settings

HELD_BODIES = 8
"""Bodies of the largest size that may be held in memory at once; smaller ones share the same bytes."""


def create_app(
    settings: Settings,
    evaluator: Callable[[Settings], Evaluator] | None = None,
    progress: Progress = silent,
) -> FastAPI:
    """Build the application; the model is loaded in the background once the application starts.

    ``evaluator`` makes the evaluator from the settings; by default the one ``settings.device`` names.
    ``progress`` follows the loading.
    Raises ``OSError`` or ``ValueError`` where the API key file cannot be used.
    """
    metrics = Metrics()
    keys_accepted = BearerKeys(settings.accepted_api_keys())
    make = evaluator or make_evaluator

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.proxy = Proxy(settings, make(settings), metrics, progress)
        await app.state.proxy.start()
        try:
            yield
        finally:
            await app.state.proxy.stop()

    app = FastAPI(
        title="fhe-llm proxy",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (health.router, models.router, keys.router, evaluate.router, budget.router):
        app.include_router(router)
    app.router.default = _no_route
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    held = HELD_BODIES * settings.max_body_bytes
    app.add_middleware(BodyLimit, most=settings.max_body_bytes, budget=held)
    app.add_middleware(Authentication, keys=keys_accepted)
    app.add_middleware(Admission, most=settings.max_connections, gauge=metrics.connections)
    app.add_middleware(RequestLog, metrics=metrics)
    return app


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    await refuse(_not_found(), scope, receive, send)


def _not_found() -> Refusal:
    return Refusal("not_found", "cannot find this path: the proxy has no such route. See /v1/models.")


def _respond(request: Request, refusal: Refusal, extra: dict[str, str] | None = None) -> Response:
    request.scope["fhe_llm.error"] = refusal.proxy_code
    headers = {**refusal.headers(), **(extra or {})}
    return Response(refusal.envelope(), status_code=refusal.status, headers=headers)


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101 - registered for this type only
    return _respond(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type only
    if error.status_code == 404:
        return _respond(request, _not_found())
    if error.status_code == 405:
        refusal = Refusal("method_not_allowed", "cannot use this method here: the path does not take it.")
        return _respond(request, refusal, dict(error.headers or {}))
    return await _on_invalid(request, error)


async def _on_invalid(request: Request, _error: Exception) -> Response:
    message = "cannot read this request: a parameter is malformed. Check it against the documentation."
    return _respond(request, Refusal("bad_request", message))
