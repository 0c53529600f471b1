"""The report: what a ledger says of every principal, as data."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.charge import UNIT_INFO, Kind, Unit, check_delta
from fhe_llm.privacy.ledger import Balance, Entry, Ledger, Window, checked_name
from fhe_llm.privacy.reporting.epsilon import DELTA, EpsilonAtDelta, epsilons
from fhe_llm.privacy.reporting.exposure import EventTally
from fhe_llm.privacy.reporting.forecast import Forecast, forecast_of
from fhe_llm.privacy.reporting.series import Series
from fhe_llm.privacy.reporting.tally import PrincipalTally, places_of

NEWEST: Final = 500


@dataclass(frozen=True, slots=True)
class Line:
    """One unit of a principal in one window. ``epsilon`` says what a ρ is at some δ; empty for other units."""

    balance: Balance
    series: Series
    forecast: Forecast
    epsilon: tuple[EpsilonAtDelta, ...]

    @property
    def unit(self) -> Unit:
        """Never added to another unit."""
        return self.balance.unit

    @property
    def kind(self) -> Kind:
        """The ledger it belongs to."""
        return self.balance.kind

    @property
    def window(self) -> Window:
        """The time the budget is for."""
        return self.balance.window

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in integer amounts: ``amounts_per_unit`` of them are one of the unit."""
        budget = self.balance.budget
        return {
            "kind": self.kind,
            "unit": self.unit,
            "window": self.window,
            "amounts_per_unit": UNIT_INFO[self.unit].scale,
            "spent": self.balance.spent,
            "pending": self.balance.pending,
            "limit": budget.limit if budget else None,
            "left": self.balance.left,
            "refreshes_at": self.balance.refreshes_at,
            "forecast": self.forecast.to_dict(),
            "epsilon": [each.to_dict() for each in self.epsilon],
            "series": self.series.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class PrincipalReport:
    """A principal's whole exposure. ``first`` and ``last`` (ms) are when its history begins and ends.

    ``adds_up``: whether the changes in the history sum to what the ledger counts as spent; None where the ledger was
    written while it was read, so that the two cannot be compared.
    """

    principal: str
    lines: tuple[Line, ...]
    exposure: tuple[EventTally, ...]
    entries: int
    first: int | None
    last: int | None
    adds_up: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "lines": [line.to_dict() for line in self.lines],
            "exposure": [tally.to_dict() for tally in self.exposure],
            "entries": self.entries,
            "first": self.first,
            "last": self.last,
            "adds_up": self.adds_up,
        }


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """``made_at`` (ms) by the ledger's clock; ``store`` is the kind of ledger, never where it lies; ``newest`` are the
    last entries of the history, oldest first, of ``entries`` in all."""

    made_at: int
    store: str
    principals: tuple[PrincipalReport, ...]
    entries: int
    newest: tuple[Entry, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the history itself is what ``fhe-llm budget export`` is for."""
        return {
            "made_at": self.made_at,
            "store": self.store,
            "entries": self.entries,
            "principals": {each.principal: each.to_dict() for each in self.principals},
        }


def report_on(
    ledger: Ledger, principal: str | None = None, *, delta: float = DELTA, newest: int = NEWEST
) -> BudgetReport:
    """Read the ledger once: of one ``principal``, or of all.

    Raises :class:`PrivacyParameterError` for a principal that the ledger does not know or a ``delta`` outside (0, 1),
    and :class:`LedgerError`.
    """
    check_delta(delta)
    known = ledger.principals()
    if principal is not None and checked_name(principal, "principal") not in known:
        raise PrivacyParameterError(
            f"cannot report on {principal!r}: the ledger has nothing of that principal. "
            "`fhe-llm budget show` lists all."
        )
    names = known if principal is None else (principal,)
    now = max([ledger.now(), *(entry.time for entry in ledger.history(principal, newest=1))])
    before = {name: ledger.balances(name) for name in names}
    tallies: dict[str, PrincipalTally] = {}
    entries, last = 0, deque[Entry](maxlen=newest)
    for entry in ledger.history(principal):
        if entry.principal not in before:  # it came while we read
            continue
        entries += 1
        last.append(entry)
        tally = tallies.get(entry.principal)
        if tally is None:
            places = places_of(before[entry.principal])
            tally = tallies[entry.principal] = PrincipalTally(now, entry.time, places)
        tally.add(entry)
    reports = [
        _principal(name, tallies.get(name), before[name], ledger.balances(name), now, delta) for name in names
    ]
    store = type(ledger).__name__.removesuffix("Ledger")
    return BudgetReport(now, {"Sqlite": "SQLite"}.get(store, store), tuple(reports), entries, tuple(last))


def _principal(
    name: str,
    tally: PrincipalTally | None,
    before: tuple[Balance, ...],
    after: tuple[Balance, ...],
    now: int,
    delta: float,
) -> PrincipalReport:
    tally = tally or PrincipalTally(now, now, places_of(before))
    lines = []
    for balance in before:
        limit = balance.budget.limit if balance.budget else None
        lines.append(
            Line(
                balance,
                tally.series(balance),
                forecast_of(balance, tally.pace(balance), now),
                epsilons(balance.unit, balance.spent, limit, delta),
            )
        )
    spent = {balance.unit: balance.spent for balance in before if balance.window == "lifetime"}
    still = _lifetimes(before) == _lifetimes(after)
    return PrincipalReport(
        name,
        tuple(lines),
        tally.exposure.tallies(),
        tally.entries,
        tally.first if tally.entries else None,
        tally.last if tally.entries else None,
        _nonzero(tally.sums) == _nonzero(spent) if still else None,
    )


def _lifetimes(balances: tuple[Balance, ...]) -> dict[Unit, int]:
    return {balance.unit: balance.spent for balance in balances if balance.window == "lifetime"}


def _nonzero(amounts: Mapping[Unit, int]) -> dict[Unit, int]:
    return {unit: amount for unit, amount in amounts.items() if amount}
