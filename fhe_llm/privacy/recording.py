"""What the stores keep of an event, a charge and a budget, and how entries and reservations are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias, cast

from fhe_llm.errors import IdempotencyError, LedgerError, PrivacyParameterError
from fhe_llm.privacy.charge import UNITS, Charge, Kind, Unit
from fhe_llm.privacy.events import Event
from fhe_llm.privacy.ledger import Action, Budget, Entry, Reservation, State, decoded, encoded

Taken: TypeAlias = Mapping[Unit, tuple[int, int]]
"""For each unit the amount of a charge, and the time (ms) whose windows it was taken in."""


def recorded(event: Event) -> str:
    """The event's JSON; raises :class:`PrivacyParameterError` where it could not be read back from the history."""
    text = encoded(event)
    decoded(text)
    return text


def plain(value: Mapping[Any, Any]) -> str:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"))


def read_taken(text: str) -> Taken:
    """What ``plain`` made of a :data:`Taken`."""
    return {unit: (amount, time) for unit, (amount, time) in json.loads(text).items()}


def budget_text(budget: Budget) -> str:
    """A budget's JSON."""
    return plain({"unit": budget.unit, "limit": budget.limit, "window": budget.window})


def read_entry(
    sequence: str,
    time: int,
    principal: str,
    kind: str,
    action: str,
    key: str,
    change: str,
    event: str | None,
    budget: str | None,
) -> Entry:
    """One line of the history; raises :class:`LedgerError` where it is damaged or was written by a newer version."""
    try:
        return Entry(
            sequence,
            time,
            principal,
            cast(Kind, kind),
            cast(Action, action),
            key,
            in_order(json.loads(change)),
            decoded(event) if event else None,
            Budget(**json.loads(budget)) if budget else None,
        )
    except (ValueError, TypeError, KeyError):
        raise LedgerError(
            f"cannot read entry {sequence} of the history: it is damaged, or a newer version wrote it. Update fhe-llm."
        ) from None


def in_order(change: Mapping[Unit, int]) -> dict[Unit, int]:
    """``change`` without zeros, in the order of :data:`UNITS`."""
    return {unit: change[unit] for unit in UNITS if change.get(unit)}


def replayed(first: Reservation, *, same: bool) -> Reservation:
    """What a key that was used before gives: raises :class:`IdempotencyError` unless for the ``same`` live charge."""
    if not same:
        raise IdempotencyError(
            f"cannot use key {first.key!r} again: it was used for another event. Use a new key."
        )
    if first.state == "released":
        raise IdempotencyError(
            f"cannot use key {first.key!r} again: what it paid for was given back. Use a new key."
        )
    return replace(first, replayed=True)


def checked_newest(newest: int | None) -> None:
    """Raises :class:`PrivacyParameterError` unless ``newest`` is None or a count."""
    if newest is not None and (isinstance(newest, bool) or not isinstance(newest, int) or newest < 0):
        raise PrivacyParameterError(
            f"cannot show the newest {newest!r} entries: it must be a count. Change it."
        )


def given_back(reservation: Reservation, taken: Charge, actual: Charge) -> dict[Unit, int]:
    """What a commit gives back of what was ``taken``; raises :class:`PrivacyParameterError` where it costs more."""
    if any(amount > taken.get(unit, 0) for unit, amount in actual.items()):
        raise PrivacyParameterError(
            f"cannot commit {reservation.key!r}: the event costs more than was reserved. Reserve more."
        )
    return in_order({unit: amount - actual.get(unit, 0) for unit, amount in taken.items()})


def negative(change: Charge) -> dict[Unit, int]:
    """``change`` with the other sign."""
    return {unit: -amount for unit, amount in change.items()}


def refuse_state(reservation: Reservation, verb: str, state: State) -> NoReturn:
    """Raises :class:`IdempotencyError`: a charge ends in one way only."""
    raise IdempotencyError(f"cannot {verb} {reservation.key!r}: it was {state}. Reserve under a new key.")


def refuse_unknown(reservation: Reservation, verb: str) -> NoReturn:
    """Raises :class:`LedgerError` for a reservation that this ledger did not make."""
    raise LedgerError(
        f"cannot {verb} {reservation.key!r}: this ledger did not make that reservation. Reserve first."
    )
