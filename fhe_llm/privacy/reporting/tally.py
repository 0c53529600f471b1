"""One pass over the history: exposure, series and pace of every principal.

Memory grows with principals and budgets, and by one record for each reservation that is still open; not with the
history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from fhe_llm.privacy.charge import Charge, Unit
from fhe_llm.privacy.events import Event
from fhe_llm.privacy.ledger import WINDOW_MS, Balance, Entry, Window, window_start
from fhe_llm.privacy.reporting.exposure import ExposureTally
from fhe_llm.privacy.reporting.forecast import Pace
from fhe_llm.privacy.reporting.series import Series, SeriesTally

Place: TypeAlias = tuple[Unit, Window]


@dataclass(frozen=True, slots=True)
class _Open:
    """A reservation that has not ended: its event, what it took, and the time whose windows it took that in."""

    event: Event
    charge: Charge
    taken: Mapping[Unit, int]


@dataclass(slots=True)
class PrincipalTally:
    """What the history says of one principal. ``sums`` adds up all changes."""

    now: int
    first: int
    places: tuple[Place, ...]
    entries: int = 0
    last: int = 0
    exposure: ExposureTally = field(default_factory=ExposureTally)
    sums: dict[Unit, int] = field(default_factory=dict)
    _hours: dict[Unit, int] = field(default_factory=dict)
    _open: dict[str, _Open] = field(default_factory=dict)
    _series: dict[Place, SeriesTally] = field(default_factory=dict)
    _paces: dict[Place, Pace] = field(default_factory=dict)
    _windows: dict[Unit, list[Window]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for unit, window in self.places:
            self._series[unit, window] = SeriesTally(unit, window, self.first, self.now)
            self._paces[unit, window] = Pace(window, self.now)
            self._windows.setdefault(unit, []).append(window)

    def add(self, entry: Entry) -> None:
        """The next entry of this principal."""
        self.entries += 1
        self.last = entry.time
        for unit, amount in entry.change.items():
            self.sums[unit] = self.sums.get(unit, 0) + amount
            for window in self._windows.get(unit, ()):
                self._paces[unit, window].changed(entry.time, amount)
        if entry.budget is not None:
            place = (entry.budget.unit, entry.budget.window)
            if place in self.places:
                self._series[place].limited(
                    self._counted_at(entry.budget.unit, entry.time), entry.budget.limit
                )
        elif entry.event is not None and entry.action in ("charge", "reserve"):
            self._charged(entry, entry.event)
        elif entry.event is not None:
            self._ended(entry, entry.event)

    def series(self, balance: Balance) -> Series:
        """The series up to now: by the clock of ``balance``, which may be a server's and another one than ours."""
        now = self._counted_at(balance.unit, self.now)
        if balance.refreshes_at is not None:
            began = balance.refreshes_at - WINDOW_MS[balance.window]
            now = min(max(now, began), balance.refreshes_at - 1)
        return self._series[balance.unit, balance.window].finished(now)

    def pace(self, balance: Balance) -> Pace:
        """What was spent of late."""
        return self._paces[balance.unit, balance.window]

    def _charged(self, entry: Entry, event: Event) -> None:
        taken: dict[Unit, int] = {}
        for unit, amount in entry.change.items():
            taken[unit] = time = self._counted_at(unit, entry.time)
            self._hours[unit] = window_start("hour", time)
            for window in self._windows.get(unit, ()):
                self._series[unit, window].charged(time, amount)
        pending = entry.action == "reserve"
        if pending:
            self._open[entry.key] = _Open(event, entry.change, taken)
        self.exposure.happened(event, entry.change, pending=pending)

    def _ended(self, entry: Entry, event: Event) -> None:
        opened = self._open.pop(entry.key, None)
        if opened is None:
            return
        back = {unit: -amount for unit, amount in entry.change.items()}
        for unit, amount in back.items():
            time = self._counted_at(unit, entry.time)
            for window in self._windows.get(unit, ()):
                self._series[unit, window].given_back(time, opened.taken.get(unit, time), amount)
        actual = event if entry.action == "commit" else None
        self.exposure.settled(opened.event, opened.charge, actual, back)

    def _counted_at(self, unit: Unit, time: int) -> int:
        """As the ledger counts: a clock that went back opens no earlier window."""
        return max(time, self._hours.get(unit, 0))


def places_of(balances: tuple[Balance, ...]) -> tuple[Place, ...]:
    """What there is a series for: each budget, and the lifetime of every unit ever spent."""
    return tuple((balance.unit, balance.window) for balance in balances)
