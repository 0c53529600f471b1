"""Transports without a network: a plain function, or an ASGI app in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import httpx

from fhe_llm.client.transport.operations import (
    NOTHING,
    Answer,
    HttpCall,
    Operation,
    Pause,
    Round,
    Routine,
    Unreachable,
)
from fhe_llm.routines import adrive, drive

R = TypeVar("R")
_EVALUATE: Final = "/v1/evaluate"


class FunctionTransport:
    """Frames go to ``evaluate``, other calls to ``serve`` (404 without one)."""

    def __init__(
        self, evaluate: Callable[[bytes], bytes], serve: Callable[[HttpCall], Answer] | None = None
    ) -> None:
        self._evaluate = evaluate
        self._serve = serve

    def run(self, routine: Routine[R]) -> R:
        """Run a routine to its end; raises what it raises."""
        return drive(routine, self._perform, Unreachable)

    def close(self) -> None:
        """Nothing to close."""

    def _perform(self, operation: Operation) -> Answer:
        match operation:
            case Pause(seconds):
                time.sleep(seconds)
                return NOTHING
            case HttpCall():
                return self._serve(operation) if self._serve is not None else Answer(404, {}, b"")
            case Round(frame=frame, meanwhile=meanwhile):
                if meanwhile is not None:
                    meanwhile()
                return Answer(200, {}, self._evaluate(frame))


class AsyncAppTransport:
    """An ASGI app; its lifespan is the caller's to run."""

    def __init__(self, app: Any, *, api_key: str | None = None) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://proxy.invalid", headers=headers
        )

    async def run(self, routine: Routine[R]) -> R:
        """Run a routine to its end; raises what it raises."""
        return await adrive(routine, self._perform, Unreachable)

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def _perform(self, operation: Operation) -> Answer:
        match operation:
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return NOTHING
            case HttpCall():
                call = operation
            case Round(frame=frame, meanwhile=meanwhile):
                if meanwhile is not None:
                    meanwhile()
                call = HttpCall("POST", _EVALUATE, {"content-type": "application/octet-stream"}, frame)
        response = await self._client.request(
            call.method, call.path, headers=dict(call.headers), content=bytes(call.body)
        )
        return Answer(response.status_code, response.headers, response.content)


class AppTransport:
    """The same, blocking: a private event loop that runs only inside :meth:`run`."""

    def __init__(self, app: Any, *, api_key: str | None = None) -> None:
        self._runner = asyncio.Runner()
        self._inner = AsyncAppTransport(app, api_key=api_key)

    def run(self, routine: Routine[R]) -> R:
        """Run a routine to its end; raises what it raises."""
        return self._runner.run(self._inner.run(routine))

    def close(self) -> None:
        """Close the client and the loop."""
        self._runner.run(self._inner.aclose())
        self._runner.close()
