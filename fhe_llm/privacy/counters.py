"""What was spent of one unit in one window, and which budget stands in a charge's way. Every ledger counts alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fhe_llm.errors import BudgetExhaustedError, LedgerError
from fhe_llm.privacy.charge import MAX_AMOUNT, UNITS, Unit
from fhe_llm.privacy.ledger import (
    WINDOWS,
    Balance,
    Budget,
    Window,
    exhausted_message,
    window_end,
    window_start,
)

LATEST = 10**14
"""A clock beyond it (the year 5138) counts something other than milliseconds."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What was spent of a unit in the window that began at ``start`` (ms); ``spent`` includes ``pending``."""

    start: int = 0
    spent: int = 0
    pending: int = 0

    def at(self, start: int) -> Counter:
        """The counter of the window that begins at ``start``: empty where that is a later one than its own."""
        return Counter(start) if start > self.start else self

    def plus(self, spent: int, pending: int) -> Counter:
        """It with so much more; what is given back is negative."""
        return Counter(self.start, self.spent + spent, self.pending + pending)


Place: TypeAlias = tuple[Unit, Window]
Counters: TypeAlias = Mapping[Place, Counter]
Budgets: TypeAlias = Mapping[Place, Budget]


def time_in(counters: Counters, unit: Unit, now: int) -> int:
    """``now``, or where the clock went back, the beginning of the latest hour this unit was charged in.

    All windows of a unit are charged together and begin when one of their hours does, so this time says for each of
    them which one is open.
    """
    hour = counters.get((unit, "hour"))
    return now if hour is None else max(now, hour.start)


def counter_in(counters: Counters, unit: Unit, window: Window, now: int) -> Counter:
    """What is spent in the window that is open at ``now``."""
    start = window_start(window, time_in(counters, unit, now))
    return counters.get((unit, window), Counter(start)).at(start)


def balance_in(counters: Counters, unit: Unit, window: Window, budget: Budget | None, now: int) -> Balance:
    """The same beside its budget."""
    counter = counter_in(counters, unit, window, now)
    return Balance(unit, window, counter.spent, counter.pending, budget, window_end(window, counter.start))


def balances_in(counters: Counters, budgets: Budgets, now: int) -> tuple[Balance, ...]:
    """One balance for each budget, and the lifetime balance of every unit ever charged."""
    return tuple(
        balance_in(counters, unit, window, budgets.get((unit, window)), now)
        for unit in UNITS
        for window in WINDOWS
        if (unit, window) in budgets or (window == "lifetime" and (unit, window) in counters)
    )


def check_left(
    principal: str, unit: Unit, wanted: int, counters: Counters, budgets: Budgets, now: int, uncapped: bool
) -> None:
    """Raises :class:`BudgetExhaustedError` where ``wanted`` is more than is left in any window.

    It names the budget with the least left; of two, the one that refreshes later. No counter may pass
    :data:`MAX_AMOUNT`, which is a budget that everything has.
    """
    set_ones = [budgets[unit, window] for window in WINDOWS if (unit, window) in budgets]
    if not set_ones and not uncapped:
        raise exhausted(principal, unit, wanted, None)
    most = Budget(unit, MAX_AMOUNT)
    balances = [balance_in(counters, unit, budget.window, budget, now) for budget in [*set_ones, most]]
    tightest = min(balances, key=lambda balance: (balance.left or 0, -(balance.refreshes_at or math.inf)))
    if wanted > (tightest.left or 0):
        raise exhausted(principal, unit, wanted, tightest)


def exhausted(principal: str, unit: Unit, wanted: int, tightest: Balance | None) -> BudgetExhaustedError:
    """The refusal, in words and for programs."""
    return BudgetExhaustedError(
        exhausted_message(principal, unit, wanted, tightest),
        unit=unit,
        left=0 if tightest is None else tightest.left or 0,
        refreshes_at=None if tightest is None else tightest.refreshes_at,
    )


def checked_time(now: int) -> int:
    """Raises :class:`LedgerError` where a clock gives anything but milliseconds since 1970."""
    if isinstance(now, bool) or not isinstance(now, int) or not 0 <= now < LATEST:
        raise LedgerError(
            f"cannot use the clock: it gave {now!r}, which is no whole number of milliseconds since 1970. Mend it."
        )
    return now
