"""Async connections belong to the event loop that opened them: one transport for each loop, closed when the loop is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from fhe_llm.client.transport.http import AsyncHttpTransport


class LoopTransports:
    """The transports of one client. Threads may each run a loop; ``asyncio.run`` may be called again and again."""

    def __init__(self, make: Callable[[], AsyncHttpTransport]) -> None:
        self._make = make
        self._open: dict[
            asyncio.AbstractEventLoop, tuple[AsyncHttpTransport, AsyncGenerator[None, None]]
        ] = {}

    async def get(self) -> AsyncHttpTransport:
        """The transport of the running loop, made on first use."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            for ended in [other for other in list(self._open) if other.is_closed()]:
                self._open.pop(ended, None)
            transport = self._make()
            guard = _until_the_loop_ends(transport)
            await anext(guard)
            self._open[loop] = transport, guard
        return self._open[loop][0]

    async def aclose(self) -> None:
        """Close the running loop's transport; those of other loops are closed by their loops."""
        transport, guard = self._open.pop(asyncio.get_running_loop(), (None, None))
        if transport is not None and guard is not None:
            await transport.aclose()
            await guard.aclose()


async def _until_the_loop_ends(transport: AsyncHttpTransport) -> AsyncGenerator[None, None]:
    """A loop that shuts down finishes the async generators it knows, and this one closes the connections. Nothing else
    tells a library that a loop is about to end."""
    try:
        yield
    finally:
        await transport.abandon()
