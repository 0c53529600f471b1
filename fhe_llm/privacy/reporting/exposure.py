"""What left for one principal: counts for each kind of event, never added across kinds or units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fhe_llm.privacy.charge import Charge, Kind, Unit
from fhe_llm.privacy.events import (
    EncryptedCall,
    Event,
    IdentifiersReplaced,
    TextInClear,
    TokensReplaced,
    ValuesDisclosed,
    VectorsNoised,
    WorkDone,
)

Protection = Literal["mechanism", "encrypted", "unprotected", "quota"]
PROTECTION: Final[Mapping[type[Event], Protection]] = {
    TokensReplaced: "mechanism",
    VectorsNoised: "mechanism",
    ValuesDisclosed: "mechanism",
    EncryptedCall: "encrypted",
    IdentifiersReplaced: "unprotected",
    TextInClear: "unprotected",
    WorkDone: "quota",
}
"""What stands behind an event; one that is not listed counts as unprotected."""
COUNTED: Final[Mapping[type[Event], tuple[str, ...]]] = {
    TokensReplaced: ("tokens",),
    VectorsNoised: ("vectors",),
    ValuesDisclosed: ("queries", "values"),
    EncryptedCall: ("rounds", "bytes_up", "bytes_down"),
    IdentifiersReplaced: ("replaced",),
    TextInClear: ("messages", "characters"),
    WorkDone: ("rounds", "ciphertexts", "bytes", "milliseconds"),
}
"""The fields of an event that can be added up over events."""
MOST_NOTES: Final = 8
OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class EventTally:
    """All events of one name and unit. ``pending`` of them are reserved and not settled: whether they left is unknown.

    ``counts`` adds up fields of the events (tokens, vectors, bytes …), ``spent`` integer amounts of ``unit``s, both
    with what is pending. ``notes`` counts mechanisms, or the assumptions of encrypted calls.
    """

    name: str
    kind: Kind
    protection: Protection
    unit: Unit | None
    events: int
    pending: int
    counts: Mapping[str, int]
    spent: Mapping[Unit, int]
    notes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "event": self.name,
            "kind": self.kind,
            "protection": self.protection,
            "unit": self.unit,
            "events": self.events,
            "pending": self.pending,
            "counts": dict(self.counts),
            "spent": dict(self.spent),
            "notes": dict(self.notes),
        }


@dataclass(slots=True)
class _Row:
    event: type[Event]
    unit: Unit | None
    events: int = 0
    pending: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    spent: dict[Unit, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, event: Event, sign: int) -> None:
        self.events += sign
        for name in COUNTED.get(self.event, ()):
            self.counts[name] = self.counts.get(name, 0) + sign * getattr(event, name)
        if note := _note(event):
            note = note if note in self.notes or len(self.notes) < MOST_NOTES else OTHERS
            self.notes[note] = self.notes.get(note, 0) + sign

    def tally(self) -> EventTally:
        notes = {note: count for note, count in self.notes.items() if count > 0}
        spent = {unit: amount for unit, amount in self.spent.items() if amount}
        return EventTally(
            self.event.name,
            self.event.kind,
            PROTECTION.get(self.event, "unprotected"),
            self.unit,
            self.events,
            self.pending,
            self.counts,
            spent,
            notes,
        )


class ExposureTally:
    """Counts one principal's events, oldest first."""

    def __init__(self) -> None:
        self._rows: dict[tuple[type[Event], Unit | None], _Row] = {}

    def happened(self, event: Event, charge: Charge, *, pending: bool) -> None:
        """An event was charged, or reserved (``pending``)."""
        row = self._row(event)
        row.add(event, 1)
        row.pending += pending
        _add(row.spent, charge, 1)

    def settled(self, reserved: Event, charge: Charge, actual: Event | None, back: Charge) -> None:
        """A reservation of ``charge`` came to an end as ``actual`` (None: it was released), giving ``back`` so much."""
        row = self._row(reserved)
        row.pending -= 1
        row.add(reserved, -1)
        _add(row.spent, charge, -1)
        if actual is not None:
            row = self._row(actual)
            row.add(actual, 1)
            _add(row.spent, charge, 1)
            _add(row.spent, back, -1)

    def tallies(self) -> tuple[EventTally, ...]:
        """Every kind of event that there was, in the order of :data:`PROTECTION`."""
        order = list(PROTECTION)
        rows = sorted(
            self._rows.values(), key=lambda row: order.index(row.event) if row.event in order else len(order)
        )
        return tuple(row.tally() for row in rows if row.events)

    def _row(self, event: Event) -> _Row:
        unit = event.unit if isinstance(event, TokensReplaced) else None
        return self._rows.setdefault((type(event), unit), _Row(type(event), unit))


def _note(event: Event) -> str | None:
    if isinstance(event, EncryptedCall):
        return event.assumption
    return event.mechanism if isinstance(event, TokensReplaced) else None


def _add(sums: dict[Unit, int], charge: Charge, sign: int) -> None:
    for unit, amount in charge.items():
        sums[unit] = sums.get(unit, 0) + sign * amount
