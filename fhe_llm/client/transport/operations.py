"""What a routine may ask of the outside world, and what it is told back.

A *routine* is a generator without I/O. It yields an operation, is sent an :class:`Answer`, and returns its result; a
failed connection is thrown into it as :class:`Unreachable`. Every transport, sync or async, runs the same routines.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

MAX_ANSWER_BYTES: Final = 256 << 20
"""More than any reply needs; a longer answer is cut off before it fills the memory."""


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One HTTP request to a path below the proxy's URL."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    max_answer_bytes: int = MAX_ANSWER_BYTES


@dataclass(frozen=True, slots=True)
class Round:
    """One request frame. ``meanwhile`` is called once the frame is on its way, where the transport can; then ``spare``
    again and again, as long as it returns True and the transport sees that there is no answer yet."""

    frame: bytes
    meanwhile: Callable[[], None] | None = None
    spare: Callable[[], bool] | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before going on."""

    seconds: float


Operation: TypeAlias = HttpCall | Round | Pause


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (lower case) and body; a frame from a WebSocket has status 200 and no headers."""

    status: int
    headers: Mapping[str, str]
    body: bytes


NOTHING: Final = Answer(204, {}, b"")
"""The answer to a pause."""


class Unreachable(Exception):  # noqa: N818  a fact about the connection; routines turn it into TransportError
    """An operation that got no answer: refused, cut, timed out. The text is the cause in a few words."""


class TimedOut(Unreachable):
    """There was no answer in time."""


R = TypeVar("R")
Routine: TypeAlias = Generator[Operation, Answer, R]
