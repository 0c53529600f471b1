"""The two loops that run a generator without I/O: it yields what the network shall do, and is sent what came."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

Op = TypeVar("Op")
A = TypeVar("A")
R = TypeVar("R")


def drive(routine: Generator[Op, A, R], perform: Callable[[Op], A], broken: type[Exception]) -> R:
    """Run ``routine``; a ``broken`` from ``perform`` goes to the routine, anything else ends both."""
    try:
        operation = next(routine)
        while True:
            try:
                answer = perform(operation)
            except broken as error:
                operation = routine.throw(error)
            else:
                operation = routine.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result
    finally:
        routine.close()


async def adrive(
    routine: Generator[Op, A, R], perform: Callable[[Op], Awaitable[A]], broken: type[Exception]
) -> R:
    """:func:`drive` on an event loop; a cancelled task closes the routine."""
    try:
        operation = next(routine)
        while True:
            try:
                answer = await perform(operation)
            except broken as error:
                operation = routine.throw(error)
            else:
                operation = routine.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result
    finally:
        routine.close()
