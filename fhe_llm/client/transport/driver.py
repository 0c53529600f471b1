"""The two loops that run a routine, and the interface a transport offers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from fhe_llm.client.transport.operations import Answer, Operation, Routine, Unreachable

R = TypeVar("R")


class Transport(Protocol):
    """Runs routines, blocking."""

    def run(self, routine: Routine[R]) -> R: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """Runs routines on an event loop."""

    async def run(self, routine: Routine[R]) -> R: ...

    async def aclose(self) -> None: ...


def drive(routine: Routine[R], perform: Callable[[Operation], Answer]) -> R:
    """Run ``routine``; an :class:`Unreachable` from ``perform`` goes to the routine, anything else ends both."""
    try:
        operation = next(routine)
        while True:
            try:
                answer = perform(operation)
            except Unreachable as error:
                operation = routine.throw(error)
            else:
                operation = routine.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result
    finally:
        routine.close()


async def adrive(routine: Routine[R], perform: Callable[[Operation], Awaitable[Answer]]) -> R:
    """:func:`drive` on an event loop; a cancelled task closes the routine."""
    try:
        operation = next(routine)
        while True:
            try:
                answer = await perform(operation)
            except Unreachable as error:
                operation = routine.throw(error)
            else:
                operation = routine.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result
    finally:
        routine.close()
