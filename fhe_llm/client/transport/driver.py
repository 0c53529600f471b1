"""The interface a transport offers."""

from __future__ import annotations

from typing import Protocol, TypeVar

from fhe_llm.client.transport.operations import Routine

R = TypeVar("R")


class Transport(Protocol):
    """Runs routines, blocking."""

    def run(self, routine: Routine[R]) -> R: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """Runs routines on an event loop."""

    async def run(self, routine: Routine[R]) -> R: ...

    async def aclose(self) -> None: ...
