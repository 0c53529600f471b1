"""The ledger: charge before release, atomically, in integer units, under an idempotency key.

``reserve`` takes an event's charge from every budget it falls under or raises, ``commit`` makes it final, ``release``
gives it back where nothing left. A reservation whose process died stays spent: whether something left is not known.
"""

from __future__ import annotations

import abc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.charge import (
    KINDS,
    UNIT_INFO,
    Charge,
    Kind,
    Unit,
    checked_charge,
    shown,
    to_amount,
)
from fhe_llm.privacy.events import Event, event_from_dict

Window = Literal["hour", "day", "week", "30days", "lifetime"]
WINDOWS: Final[tuple[Window, ...]] = get_args(Window)
WINDOW_MS: Final[Mapping[Window, int]] = {
    "hour": 3_600_000,
    "day": 86_400_000,
    "week": 604_800_000,
    "30days": 2_592_000_000,
    "lifetime": 0,
}
"""Windows begin at multiples of their length since 1970-01-01 UTC: two of them side by side may see twice the budget
in less than one length, which a second budget over a longer window bounds."""
MAX_NAME: Final = 256
UNCAPPED: Final[frozenset[Kind]] = frozenset({"work"})
"""Kinds that may be spent where no budget was ever set. Everything else is refused then."""

Action = Literal["budget", "reserve", "commit", "release", "charge"]
State = Literal["reserved", "committed", "released"]


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``limit`` integer amounts of ``unit`` in each ``window``."""

    unit: Unit
    limit: int
    window: Window = "lifetime"

    def __post_init__(self) -> None:
        if self.unit not in UNIT_INFO or self.window not in WINDOW_MS:
            raise PrivacyParameterError(
                f"cannot set a budget of {self.unit!r} per {self.window!r}: units are {', '.join(UNIT_INFO)}, "
                f"windows {', '.join(WINDOWS)}. Change it."
            )
        checked_charge({self.unit: self.limit}, self.kind)

    @classmethod
    def of(cls, value: float, unit: Unit, window: Window = "lifetime") -> Budget:
        """A budget in whole units: ``Budget.of(10, "epsilon", "day")``. Raises :class:`PrivacyParameterError`."""
        if unit not in UNIT_INFO:
            raise PrivacyParameterError(f"cannot use unit {unit!r}: use one of {', '.join(UNIT_INFO)}.")
        return cls(unit, to_amount(value, unit, "a budget"), window)

    @property
    def kind(self) -> Kind:
        """The ledger it belongs to."""
        return UNIT_INFO[self.unit].kind

    def __str__(self) -> str:
        per = "in all" if self.window == "lifetime" else f"per {self.window}"
        return f"{shown(self.limit, self.unit)} {per}"


@dataclass(frozen=True, slots=True)
class Balance:
    """One unit of a principal in one window: ``spent`` includes ``pending``, what is reserved and not yet committed.

    ``budget`` is None where none is set for that window. ``refreshes_at`` is when the window ends, in milliseconds
    since 1970 UTC; None for a lifetime.
    """

    unit: Unit
    window: Window
    spent: int
    pending: int
    budget: Budget | None
    refreshes_at: int | None

    @property
    def kind(self) -> Kind:
        """The ledger it belongs to."""
        return UNIT_INFO[self.unit].kind

    @property
    def left(self) -> int | None:
        """What may still be spent in this window; None without a budget."""
        return None if self.budget is None else max(0, self.budget.limit - self.spent)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A charge that was taken. ``replayed`` says that the key had been used before for the same event, so that
    nothing new was charged and nothing new may be drawn for it."""

    principal: str
    key: str
    event: Event
    charge: Charge
    state: State
    time: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the history. ``change`` is what it did to what is spent, negative where something was given back:
    a principal's ``spent`` is the sum of all changes. ``time`` is in milliseconds since 1970 UTC."""

    sequence: str
    time: int
    principal: str
    kind: Kind
    action: Action
    key: str
    change: Mapping[Unit, int]
    event: Event | None
    budget: Budget | None = None


class Ledger(abc.ABC):
    """What every ledger does. Threads and processes may share one; each call is one atomic step.

    Nothing is remembered outside the store, and a store that cannot be written raises :class:`LedgerError` before
    anything is released. ``clock`` gives milliseconds since 1970 UTC; a clock that goes back opens no earlier window.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock

    def now(self) -> int:
        """Milliseconds since 1970 UTC."""
        return self._clock() if self._clock else time.time_ns() // 1_000_000

    def set_budget(self, principal: str, budget: Budget) -> None:
        """Set, raise or lower one budget; what was spent stays spent. Raises :class:`LedgerError`."""
        self._set_budget(checked_name(principal, "principal"), budget)

    def reserve(self, principal: str, event: Event, *, key: str) -> Reservation:
        """Take the event's charge from all its budgets or from none.

        A ``key`` that the principal used for the same event before charges nothing and returns that reservation,
        ``replayed``. Raises :class:`BudgetExhaustedError` (what is left, when it refreshes),
        :class:`IdempotencyError` (the key was used for something else, or was released), :class:`LedgerError`.
        """
        return self._take(principal, event, key, "reserved")

    def charge(self, principal: str, event: Event, *, key: str) -> Reservation:
        """:meth:`reserve` and :meth:`commit` in one step, where nothing can go wrong in between."""
        return self._take(principal, event, key, "committed")

    def commit(self, reservation: Reservation, actual: Event | None = None) -> None:
        """Make a charge final. ``actual`` is what really happened where it cost less; the difference is given back.

        Committing twice changes nothing. Raises :class:`IdempotencyError` for one that was released, and
        :class:`PrivacyParameterError` where ``actual`` costs more or is of another kind.
        """
        event = reservation.event if actual is None else actual
        charge = checked_charge(charge_of(event), event.kind)
        fits = event.kind == reservation.event.kind and all(
            amount <= reservation.charge.get(unit, 0) for unit, amount in charge.items()
        )
        if not fits:
            raise PrivacyParameterError(
                "cannot commit: the event costs more than was reserved. Reserve more."
            )
        self._commit(reservation, charge, encoded(event))

    def release(self, reservation: Reservation) -> None:
        """Give a charge back because nothing left. Raises :class:`IdempotencyError` for one that was committed."""
        self._release(reservation)

    def _take(self, principal: str, event: Event, key: str, state: State) -> Reservation:
        charge = checked_charge(charge_of(event), event.kind)
        return self._reserve(
            checked_name(principal, "principal"), checked_name(key, "key"), event, charge, state
        )

    @abc.abstractmethod
    def _set_budget(self, principal: str, budget: Budget) -> None: ...

    @abc.abstractmethod
    def _reserve(
        self, principal: str, key: str, event: Event, charge: Charge, state: State
    ) -> Reservation: ...

    @abc.abstractmethod
    def _commit(self, reservation: Reservation, charge: Charge, event: str) -> None: ...

    @abc.abstractmethod
    def _release(self, reservation: Reservation) -> None: ...

    @abc.abstractmethod
    def budgets(self, principal: str) -> tuple[Budget, ...]:
        """The budgets set for a principal."""

    @abc.abstractmethod
    def balances(self, principal: str) -> tuple[Balance, ...]:
        """One balance for each budget, and the lifetime balance of every unit ever spent."""

    @abc.abstractmethod
    def history(self, principal: str | None = None, *, newest: int | None = None) -> Iterator[Entry]:
        """Entries from the oldest on; only the ``newest`` so many where that is given."""

    @abc.abstractmethod
    def principals(self) -> tuple[str, ...]:
        """All principals that have a budget or a history, sorted."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the store."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checked_name(name: str, what: str) -> str:
    """A principal or a key: 1 to 256 characters, all printable. Raises :class:`PrivacyParameterError`."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise PrivacyParameterError(
            f"cannot use this {what}: it must be 1 to {MAX_NAME} printable characters. Change it."
        )
    return name


def window_start(window: Window, now: int) -> int:
    """When the window that ``now`` lies in began (0 for a lifetime), in milliseconds."""
    length = WINDOW_MS[window]
    return now - now % length if length else 0


def window_end(window: Window, now: int) -> int | None:
    """When it ends; None for a lifetime."""
    return window_start(window, now) + WINDOW_MS[window] if WINDOW_MS[window] else None


def encoded(event: Event) -> str:
    """An event as the stores keep it: JSON that is equal for equal events (6 and 6.0 are).

    Raises :class:`PrivacyParameterError` where a field is not finite or not plain.
    """
    fields = {name: _shortest(value) for name, value in event.to_dict().items()}
    try:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError):
        raise PrivacyParameterError(
            f"cannot record this {event.name}: a field is no finite number and no text. Change it."
        ) from None


def _shortest(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def decoded(text: str) -> Event:
    """The event that :func:`encoded` wrote."""
    data: Any = json.loads(text)
    return event_from_dict(data)


def exhausted_message(principal: str, unit: Unit, wanted: int, balance: Balance | None) -> str:
    """Why a charge is refused, what is left and when there will be more."""
    asked = f"cannot spend {shown(wanted, unit)} for {principal!r}"
    if balance is None or balance.budget is None:
        return f"{asked}: no budget of {unit} is set, and none means nothing may leave. Set one."
    left = f"{shown(balance.left or 0, unit)} of {balance.budget} is left"
    if balance.refreshes_at is None:
        return f"{asked}: {left}. It does not refresh; raise the budget, or send less."
    when = datetime.fromtimestamp(balance.refreshes_at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{asked}: {left}. It refreshes at {when}; wait, or send less."


__all__ = [
    "KINDS",
    "WINDOWS",
    "WINDOW_MS",
    "Action",
    "Balance",
    "Budget",
    "Entry",
    "Ledger",
    "Reservation",
    "State",
    "Window",
]
