"""Async connections belong to the event loop that opened them: one set for each loop, closed when the loop is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar


class Connections(Protocol):
    """What is opened on a loop."""

    async def aclose(self) -> None:
        """Close in good order."""
        ...


C = TypeVar("C", bound=Connections)


class LoopTransports(Generic[C]):
    """The connections of one client. Threads may each run a loop; ``asyncio.run`` may be called again and again."""

    def __init__(self, make: Callable[[], C], abandon: Callable[[C], Awaitable[None]]) -> None:
        """``abandon`` closes at once, when the loop is about to end and no handshake can finish."""
        self._make, self._abandon = make, abandon
        self._open: dict[asyncio.AbstractEventLoop, tuple[C, AsyncGenerator[None, None]]] = {}

    async def get(self) -> C:
        """Those of the running loop, made on first use."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            for ended in [other for other in list(self._open) if other.is_closed()]:
                self._open.pop(ended, None)
            made = self._make()
            guard = self._until_the_loop_ends(made)
            await anext(guard)
            self._open[loop] = made, guard
        return self._open[loop][0]

    async def aclose(self) -> None:
        """Close the running loop's; those of other loops are closed by their loops."""
        made, guard = self._open.pop(asyncio.get_running_loop(), (None, None))
        if made is not None and guard is not None:
            await made.aclose()
            await guard.aclose()

    async def _until_the_loop_ends(self, made: C) -> AsyncGenerator[None, None]:
        """A loop that shuts down finishes the async generators it knows, and this one closes the connections. Nothing
        else tells a library that a loop is about to end."""
        try:
            yield
        finally:
            await self._abandon(made)
