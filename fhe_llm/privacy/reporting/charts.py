"""Step charts as SVG paths, in a box of 1000 by 240 that the page stretches to its width."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fhe_llm.privacy.charge import UNIT_INFO, Unit
from fhe_llm.privacy.ledger import WINDOW_MS, window_end, window_start
from fhe_llm.privacy.reporting.forecast import DAY_MS, Forecast
from fhe_llm.privacy.reporting.series import Point, Series
from fhe_llm.privacy.reporting.words import LENGTHS, briefly, number

WIDTH: Final = 1000
HEIGHT: Final = 240
X_LABELS: Final = 5
MOST_RESETS: Final = 48
AHEAD: Final = 0.5
"""A forecast is drawn at most so far beyond now, relative to the time that is shown."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Paths of one chart; empty where there is nothing to draw. Labels stand at even distances: ``x_labels`` from the
    left, ``y_labels`` from the top. ``start``, ``end`` (ms) are what the box spans, ``now`` is where it is now (x)."""

    spent: str
    area: str
    limit: str
    forecast: str
    band: str
    resets: str
    now: float
    start: int
    end: int
    x_labels: tuple[str, ...]
    y_labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Box:
    """Where times and amounts lie."""

    start: int
    end: int
    top: int

    def x(self, time: float) -> str:
        return _number(min(max(0.0, (time - self.start) / (self.end - self.start)), 1.0) * WIDTH)

    def y(self, amount: float) -> str:
        return _number(HEIGHT - min(amount / self.top, 1.0) * HEIGHT)


def chart_of(series: Series, forecast: Forecast) -> Chart:
    """The chart of one budget."""
    box = _box(series, forecast)
    last = series.points[-1]
    spent = _steps([(point.time, point.spent) for point in series.points], box)
    if len(series.points) == 1:  # all of it was spent just now
        spent = f"M{box.x(last.time)} {HEIGHT}V{box.y(last.spent)}"
    limits = [(point.time, point.limit) for point in series.points if point.limit is not None]
    if limits:
        limits = [
            limits[0],
            *(b for a, b in itertools.pairwise(limits) if a[1] != b[1]),
            (box.end, limits[-1][1]),
        ]
    first = box.x(series.points[0].time)
    return Chart(
        spent=spent,
        area=f"{spent}V{HEIGHT}H{first}Z" if spent else "",
        limit=_steps(limits, box),
        forecast=_ahead(last, forecast.pace, box),
        band=_band(last, forecast, box),
        resets=_resets(series, box),
        now=float(box.x(last.time)),
        start=box.start,
        end=box.end,
        x_labels=_x_labels(box),
        y_labels=tuple(y_label(box.top * part, series.unit) for part in (1.0, 0.5, 0.0)),
    )


def _box(series: Series, forecast: Forecast) -> _Box:
    points = series.points
    first, last = points[0].time, points[-1].time
    start = min(first, last - 60_000)
    seen = last - start
    refresh = window_end(series.window, last)
    if refresh is None:
        ahead = ((forecast.latest or forecast.runs_out or last) - last) * 1.05 if forecast.pace else 0.0
        end = last + max(min(ahead, AHEAD * seen), 0.03 * seen)
    else:
        end = min(refresh, last + 2 * seen)
    most = max(max(point.spent, point.limit or 0) for point in points)
    return _Box(start, int(end) + 1, _top(most, series.unit))


def _steps(points: list[tuple[int, int]], box: _Box) -> str:
    """A path that stays at each value until the next."""
    if not points:
        return ""
    (time, value), *rest = points
    return f"M{box.x(time)} {box.y(value)}" + "".join(f"H{box.x(t)}V{box.y(v)}" for t, v in rest)


def _ahead(last: Point, pace: float | None, box: _Box) -> str:
    if pace is None or last.limit is None:
        return ""
    time, amount = _meets(last, pace, box)
    return f"M{box.x(last.time)} {box.y(last.spent)}L{box.x(time)} {box.y(amount)}"


def _band(last: Point, forecast: Forecast, box: _Box) -> str:
    if forecast.fastest is None or forecast.slowest is None or last.limit is None:
        return ""
    corners = [(last.time, float(last.spent)), _meets(last, forecast.fastest, box)]
    slow = _meets(last, forecast.slowest, box)
    if corners[1][0] < slow[0]:
        corners.append((slow[0], float(last.limit)))  # the fastest has met the limit and stays there
    corners.append(slow)
    return "M" + "L".join(f"{box.x(time)} {box.y(amount)}" for time, amount in corners) + "Z"


def _meets(last: Point, pace: float, box: _Box) -> tuple[float, float]:
    """Where a line of ``pace`` (amounts per day) meets the limit or the end of the box."""
    limit = float(last.limit or 0)
    end = last.spent + pace / DAY_MS * (box.end - last.time)
    if end <= limit or pace <= 0:
        return box.end, min(end, limit)
    return last.time + (limit - last.spent) / pace * DAY_MS, limit


def _resets(series: Series, box: _Box) -> str:
    length = WINDOW_MS[series.window]
    if not length or (box.end - box.start) // length > MOST_RESETS:
        return ""
    times = range(window_start(series.window, box.start) + length, box.end, length)
    return "".join(f"M{box.x(time)} 0V{HEIGHT}" for time in times)


def _top(most: int, unit: Unit) -> int:
    if unit == "milliseconds":
        length = next((length for length, _ in LENGTHS if most >= length), 1)
        return length * _nice(-(-most // length), 1)
    return _nice(most, UNIT_INFO[unit].scale)


def _nice(most: int, scale: int) -> int:
    """An amount at or above ``most`` whose half is a short number too."""
    floor = max(most, 2 if scale == 1 else scale // 1000)
    power: int = 10 ** (len(str(floor)) - 1)
    steps = (10, 12, 14, 16, 20, 24, 30, 40, 50, 60, 80, 100)
    return next(step for step in steps if step * power >= floor * 10) * power // 10


def _x_labels(box: _Box) -> tuple[str, ...]:
    span = box.end - box.start
    times = [
        datetime.fromtimestamp((box.start + span * i / (X_LABELS - 1)) / 1000, UTC) for i in range(X_LABELS)
    ]
    if span > 6 * DAY_MS:
        return tuple(f"{time.day} {time:%b}" for time in times)
    if span > DAY_MS:
        return tuple(f"{time.day} {time:%b %H:%M}" for time in times)
    return tuple(f"{time:%H:%M}" if span > 600_000 else f"{time:%H:%M:%S}" for time in times)


def y_label(amount: float, unit: Unit) -> str:
    """A short number, with its unit only where the number is told in another one."""
    told = briefly if unit in ("bytes", "milliseconds") else number
    return told(amount, unit, up=False) if amount else "0"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
