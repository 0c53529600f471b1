"""A transport that looks at what it carries: for showing people what a proxy gets to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fhe_llm.client.transport import Transport
from fhe_llm.client.transport.operations import Answer, HttpCall, Operation, Round, Routine, Unreachable

R = TypeVar("R")


@dataclass(slots=True)
class Seen:
    """What passed by: counts, one request frame, and how often any of ``needles`` occurred in bytes sent."""

    needles: tuple[bytes, ...]
    requests: int = 0
    bytes_sent: int = 0
    finds: int = 0
    frame: bytes = b""

    def note(self, operation: Operation) -> None:
        """Count one operation on its way to the proxy."""
        match operation:
            case Round(frame):
                body, self.frame = frame, self.frame or frame
            case HttpCall(method, path, headers, content):
                body = b"\n".join(
                    [method.encode(), path.encode(), repr(dict(headers)).encode(), bytes(content)]
                )
            case _:
                return
        self.requests += 1
        self.bytes_sent += len(body)
        self.finds += sum(body.count(needle) for needle in self.needles)


class Tap:
    """Wraps a blocking transport; ``note`` is called with every operation, ``answered`` with every answer to one."""

    def __init__(
        self,
        inner: Transport,
        note: Callable[[Operation], None],
        answered: Callable[[Operation, Answer], None] | None = None,
    ) -> None:
        self._inner = inner
        self._note = note
        self._answered = answered

    def run(self, routine: Routine[R]) -> R:
        """Run a routine on the wrapped transport."""
        return self._inner.run(self._watched(routine))

    def close(self) -> None:
        """Close the wrapped transport."""
        self._inner.close()

    def _watched(self, routine: Routine[R]) -> Routine[R]:
        try:
            operation = next(routine)
            while True:
                self._note(operation)
                try:
                    answer = yield operation
                except Unreachable as error:
                    operation = routine.throw(error)
                else:
                    if self._answered is not None:
                        self._answered(operation, answer)
                    operation = routine.send(answer)
        except StopIteration as stop:
            result: R = stop.value
            return result
        finally:
            routine.close()


def entropy(data: bytes) -> float:
    """Shannon entropy of the bytes of ``data``, in bits per byte (8 for uniform ones)."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    shares = counts[counts > 0] / max(1, len(data))
    return float(-(shares * np.log2(shares)).sum()) + 0.0
