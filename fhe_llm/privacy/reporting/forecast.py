"""How long a budget lasts at the pace of late.

The pace is what was spent over the last three windows (of a lifetime: thirty days), or since the first charge where
that is later, over the time that passed. Its range is the mean of twelve equal parts of that time, give or take twice
its standard error. It assumes that things go on as they did; it knows nothing of weekends or of what is planned.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from fhe_llm.privacy.ledger import WINDOW_MS, Balance, Window

Outlook = Literal["no-budget", "exhausted", "idle", "too-little-data", "lasts", "runs-out"]
DAY_MS: Final = 86_400_000
LOOK_BACK_MS: Final[Mapping[Window, int]] = {
    window: 3 * length if length else 30 * DAY_MS for window, length in WINDOW_MS.items()
}
PARTS: Final = 12
LEAST_CHARGES: Final = 5
LEAST_PARTS: Final = 3
LEAST_MS: Final[Mapping[Window, int]] = {window: length // PARTS for window, length in LOOK_BACK_MS.items()}
"""A forecast takes so many charges, in so many different parts of the time looked at, and so long a time."""
FURTHEST_MS: Final = 50 * 365 * DAY_MS
"""A budget that lasts longer is said to last."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What becomes of one budget. Times in ms since 1970 UTC; ``pace``, ``slowest`` and ``fastest`` in amounts per day.

    ``since``, ``charges``: what the pace was measured on. ``left_then``: what is left when the window ends (``until``;
    None for a lifetime), and the least and most of it. ``runs_out``: when nothing is left, ``earliest`` and ``latest``;
    None where it does not before ``until``, so a budget that "lasts" may still have an ``earliest``.
    """

    outlook: Outlook
    since: int | None = None
    charges: int = 0
    until: int | None = None
    pace: float | None = None
    slowest: float | None = None
    fastest: float | None = None
    left_then: int | None = None
    left_least: int | None = None
    left_most: int | None = None
    runs_out: int | None = None
    earliest: int | None = None
    latest: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Pace:
    """What was spent of a unit of late, in :data:`PARTS` parts; built from its changes, oldest first."""

    def __init__(self, window: Window, now: int) -> None:
        self._now = now
        self._earliest = now - LOOK_BACK_MS[window]
        self.since: int | None = None
        self.charges = 0
        self.parts = [0] * PARTS
        self.busy: set[int] = set()

    def changed(self, time: int, change: int) -> None:
        """``change`` amounts were spent at ``time``, or given back where it is negative."""
        if self.since is None:
            if change < 0:
                return
            self.since = max(time, self._earliest)
        if time < self.since:
            return
        span = max(1, self._now - self.since)
        part = min(PARTS - 1, (time - self.since) * PARTS // span)
        self.parts[part] += change
        if change > 0:
            self.charges += 1
            self.busy.add(part)


def forecast_of(balance: Balance, pace: Pace, now: int) -> Forecast:
    """What becomes of ``balance`` at ``pace``."""
    if balance.left is None:
        return Forecast("no-budget")
    told = Forecast("idle", pace.since, pace.charges, balance.refreshes_at)
    if balance.left == 0:
        return _with(told, outlook="exhausted")
    if pace.since is None or not pace.charges:
        return told
    seen = now - pace.since
    if pace.charges < LEAST_CHARGES or len(pace.busy) < LEAST_PARTS or seen < LEAST_MS[balance.window]:
        return _with(told, outlook="too-little-data")
    part = seen / PARTS
    mean = statistics.fmean(pace.parts) / part
    error = 2 * statistics.stdev(pace.parts) / math.sqrt(PARTS) / part
    if mean <= 0:
        return told
    rates = (max(0.0, mean - error), mean, mean + error)
    return _projected(told, balance.left, rates, now)


def _projected(told: Forecast, left: int, rates: tuple[float, float, float], now: int) -> Forecast:
    """``rates`` (slowest, mean, fastest) are in amounts per millisecond."""
    until = told.until
    latest, runs_out, earliest = (_end(left, rate, now, until) for rate in rates)
    slow, mean, fast = (rate * DAY_MS for rate in rates)
    told = _with(told, pace=mean, slowest=slow, fastest=fast, runs_out=runs_out)
    told = _with(told, earliest=earliest, latest=latest, outlook="lasts" if runs_out is None else "runs-out")
    if until is None:
        return told
    most, then, least = (max(0, left - math.ceil(rate * max(0, until - now))) for rate in rates)
    return _with(told, left_then=then, left_least=least, left_most=most)


def _end(left: int, rate: float, now: int, until: int | None) -> int | None:
    """When ``left`` is used up at ``rate``; None where that is not before ``until``."""
    if rate <= 0 or left / rate > FURTHEST_MS:
        return None
    end = now + math.floor(left / rate)
    return end if until is None or end < until else None


def _with(told: Forecast, **changes: Any) -> Forecast:
    return Forecast(**(asdict(told) | changes))
