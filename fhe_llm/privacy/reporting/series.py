"""What was spent of one budget over time, from a history of any length in a bounded number of points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fhe_llm.privacy.charge import Unit
from fhe_llm.privacy.ledger import WINDOW_MS, Window, window_end, window_start

SHOWN: Final[Mapping[Window, tuple[int, int]]] = {
    "hour": (24, 12),
    "day": (14, 24),
    "week": (12, 28),
    "30days": (12, 30),
}
"""How many windows back a series reaches, and in how many steps each may be told. A lifetime is told as a whole."""
LIFETIME_STEPS: Final = 360


@dataclass(frozen=True, slots=True)
class Point:
    """From ``time`` (ms since 1970 UTC) on, so much was spent of ``limit`` (None: no budget was set yet)."""

    time: int
    spent: int
    limit: int | None

    @property
    def left(self) -> int | None:
        """What could still be spent."""
        return None if self.limit is None else max(0, self.limit - self.spent)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"time": self.time, "spent": self.spent, "limit": self.limit, "left": self.left}


@dataclass(frozen=True, slots=True)
class Series:
    """A step function: each point holds until the next. It begins with the history, or the first window that is shown,
    and ends now.

    Of several changes within ``step`` milliseconds only the last is kept, so that every value is one that was true.
    """

    unit: Unit
    window: Window
    step: int
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"step": self.step, "points": [point.to_dict() for point in self.points]}


class SeriesTally:
    """Builds a :class:`Series` from the changes of one principal's unit, oldest first.

    Times are those of the ledger's windows: of a charge, when it was counted; of what is given back, also when what it
    gives back was counted.
    """

    def __init__(self, unit: Unit, window: Window, first: int, now: int) -> None:
        """``first``: when the ledger's history begins; ``now``: where the series ends (ms)."""
        self.unit, self.window, self.now = unit, window, now
        if window == "lifetime":
            self._from, self.step = first, max(1, (now - first) // LIFETIME_STEPS + 1)
        else:
            windows, parts = SHOWN[window]
            length = WINDOW_MS[window]
            self._from = window_start(window, now) - (windows - 1) * length
            self.step = length // parts
        self._open = 0
        self._spent = 0
        self._limit: int | None = None
        self._points = [Point(max(self._from, first), 0, None)]
        self._step_of_last: int | None = None

    def charged(self, time: int, amount: int) -> None:
        """``amount`` was taken in the window of ``time``."""
        start = window_start(self.window, time)
        if start > self._open:
            self._close(time)
            self._open, self._spent = start, 0
        self._spent += amount
        self._record(time)

    def given_back(self, time: int, taken: int, amount: int) -> None:
        """At ``time``, ``amount`` of what was taken in the window of ``taken`` came back."""
        if window_start(self.window, taken) == self._open:
            self._close(time)
            self._spent -= amount
            self._record(time)

    def limited(self, time: int, limit: int) -> None:
        """The budget was set."""
        self._close(time)
        self._limit = limit
        self._record(time)

    def finished(self, now: int) -> Series:
        """The series up to ``now``, the latest time of any of its windows."""
        self._close(now)
        self._step_of_last = None
        self._record(now)
        return Series(self.unit, self.window, self.step, tuple(self._points))

    def _close(self, time: int) -> None:
        """Where the open window ended before ``time``, nothing was spent any more from there on."""
        end = window_end(self.window, self._open)
        if end is not None and end <= time and self._points[-1].spent:
            self._append(Point(end, 0, self._limit))
            self._step_of_last = None

    def _record(self, time: int) -> None:
        end = window_end(self.window, self._open)
        closed = end is not None and end <= time
        self._append(Point(time, 0 if closed else self._spent, self._limit))

    def _append(self, point: Point) -> None:
        point = Point(max(point.time, self._points[-1].time), point.spent, point.limit)
        step = (point.time - self._from) // self.step
        if step == self._step_of_last or point.time == self._points[0].time:
            self._points[-1] = point
        else:
            self._points.append(point)
        self._step_of_last = step
