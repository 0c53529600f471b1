"""The ledger of one machine: an SQLite file that any number of threads and processes may share."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from fhe_llm.errors import LedgerError
from fhe_llm.privacy.charge import UNITS, Charge, Kind, Unit
from fhe_llm.privacy.counters import (
    Budgets,
    Counter,
    Place,
    balances_in,
    check_left,
    checked_time,
    counter_in,
    time_in,
)
from fhe_llm.privacy.events import Event
from fhe_llm.privacy.ledger import (
    UNCAPPED,
    WINDOWS,
    Action,
    Balance,
    Budget,
    Entry,
    Ledger,
    Reservation,
    State,
    checked_name,
    decoded,
    encoded,
    window_start,
)
from fhe_llm.privacy.recording import (
    Taken,
    budget_text,
    checked_newest,
    given_back,
    negative,
    plain,
    read_entry,
    read_taken,
    recorded,
    refuse_state,
    refuse_unknown,
    replayed,
)
from fhe_llm.privacy.sqlite_connections import Connections
from fhe_llm.privacy.sqlite_file import identity, make, opened

PAGE: Final = 1000
"""Entries of the history read at once."""


class SqliteLedger(Ledger):
    """A ledger in the SQLite file ``path``, which is made (mode 0600, its folder 0700) where there is none.

    Every call that writes is one transaction under the file's write lock, on disk before it returns (WAL,
    ``synchronous=FULL``). Safe to use from threads, from processes and after a fork. Raises :class:`LedgerError` where
    the file cannot be used: not a ledger, written by a newer version, damaged, deleted, read-only, locked, disk full.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], int] | None = None) -> None:
        super().__init__(clock)
        self.path = Path(path).absolute()
        self._connections = Connections(lambda: opened(self.path))
        with self._told():
            make(self.path)
            self._identity = identity(self.path)
        with self._store(self._connections.reading()) as db:
            db.execute("SELECT 1 FROM history LIMIT 1").fetchone()

    def __repr__(self) -> str:
        return f"SqliteLedger({str(self.path)!r})"

    def close(self) -> None:
        """Close the file."""
        self._connections.close()

    def _set_budget(self, principal: str, budget: Budget) -> None:
        place = (budget.unit, budget.window)
        with self._writing() as db:
            if self._budgets(db, principal).get(place) == budget:
                return
            db.execute(
                "INSERT OR REPLACE INTO budgets VALUES (?, ?, ?, ?)", (principal, *place, budget.limit)
            )
            now = checked_time(self.now())
            _append(db, now, principal, budget.kind, "budget", "", {}, None, budget_text(budget))

    def _reserve(self, principal: str, key: str, event: Event, charge: Charge, state: State) -> Reservation:
        text = recorded(event)
        with self._writing() as db:
            known = _charge(db, principal, key)
            if known is not None:
                first_state, first_text, taken, time = known
                amounts = {unit: amount for unit, (amount, _) in taken.items()}
                first = Reservation(principal, key, event, amounts, first_state, time)
                return replayed(first, same=first_text == text)
            now = checked_time(self.now())
            taken = self._take_from(db, principal, charge, now, event.kind, state)
            row = (principal, key, state, text, plain(taken), now)
            db.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?)", row)
            action: Action = "reserve" if state == "reserved" else "charge"
            _append(db, now, principal, event.kind, action, key, charge, text, None)
        return Reservation(principal, key, event, charge, state, now)

    def _take_from(
        self, db: sqlite3.Connection, principal: str, charge: Charge, now: int, kind: Kind, state: State
    ) -> Taken:
        counters = _counters(db, principal, charge)
        budgets = self._budgets(db, principal) if charge else {}
        for unit, amount in charge.items():
            check_left(principal, unit, amount, counters, budgets, now, uncapped=kind in UNCAPPED)
        rows: list[tuple[str, Unit, str, int, int, int]] = []
        for unit, amount in charge.items():
            for window in WINDOWS:
                new = counter_in(counters, unit, window, now).plus(
                    amount, amount if state == "reserved" else 0
                )
                rows.append((principal, unit, window, new.start, new.spent, new.pending))
        db.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?, ?)", rows)
        return {unit: (amount, time_in(counters, unit, now)) for unit, amount in charge.items()}

    def _commit(self, reservation: Reservation, charge: Charge, event: str) -> None:
        decoded(event)  # or the history could not be read any more
        self._end(reservation, "committed", charge, event)

    def _release(self, reservation: Reservation) -> None:
        self._end(reservation, "released", {}, encoded(reservation.event))

    def _end(self, reservation: Reservation, state: State, actual: Charge, event: str) -> None:
        verb: Action = "commit" if state == "committed" else "release"
        principal, key = reservation.principal, reservation.key
        with self._writing() as db:
            known = _charge(db, principal, key)
            if known is None or known[1] != encoded(reservation.event):
                refuse_unknown(reservation, verb)
            before, _, taken, _ = known
            if before == state:
                return
            if before != "reserved":
                refuse_state(reservation, verb, before)
            back = given_back(reservation, {unit: amount for unit, (amount, _) in taken.items()}, actual)
            _settle(db, principal, taken, back)
            row = (state, principal, key)
            db.execute('UPDATE charges SET state = ? WHERE principal = ? AND "key" = ?', row)
            now = checked_time(self.now())
            _append(db, now, principal, reservation.event.kind, verb, key, negative(back), event, None)

    def budgets(self, principal: str) -> tuple[Budget, ...]:
        """See :meth:`Ledger.budgets`."""
        checked_name(principal, "principal")
        with self._reading() as db:
            found = self._budgets(db, principal)
        return tuple(found[unit, window] for unit in UNITS for window in WINDOWS if (unit, window) in found)

    def balances(self, principal: str) -> tuple[Balance, ...]:
        """See :meth:`Ledger.balances`."""
        checked_name(principal, "principal")
        with self._reading() as db:
            counters, budgets = _counters(db, principal, UNITS), self._budgets(db, principal)
        return balances_in(counters, budgets, checked_time(self.now()))

    def history(self, principal: str | None = None, *, newest: int | None = None) -> Iterator[Entry]:
        """See :meth:`Ledger.history`; entries written after the call are not among them."""
        checked_newest(newest)
        of = "1" if principal is None else "principal = ?"
        who = () if principal is None else (checked_name(principal, "principal"),)
        with self._reading() as db:
            newest_first = f"SELECT sequence FROM history WHERE {of} ORDER BY sequence DESC"  # noqa: S608
            last = db.execute(f"{newest_first} LIMIT 1", who).fetchone()
            bound = None if newest is None else db.execute(f"{newest_first} LIMIT 1 OFFSET ?", (*who, newest))
            before = bound.fetchone() if bound else None
        if last is None or newest == 0:
            return iter(())
        return self._entries(of, who, before[0] if before else -1, last[0])

    def _entries(self, of: str, who: tuple[str, ...], before: int, last: int) -> Iterator[Entry]:
        columns = 'sequence, time, principal, kind, action, "key", change, event, budget'
        page = (
            f"SELECT {columns} FROM history WHERE {of} AND sequence > ? AND sequence <= ? "  # noqa: S608
            f"ORDER BY sequence LIMIT {PAGE}"
        )
        while before < last:
            with self._reading() as db:
                rows = db.execute(page, (*who, before, last)).fetchall()
            for sequence, *rest in rows:
                yield read_entry(str(sequence), *rest)
            before = rows[-1][0] if rows else last

    def principals(self) -> tuple[str, ...]:
        """See :meth:`Ledger.principals`."""
        # a step in the index for each name, however long their histories
        steps = """
            WITH RECURSIVE names (name) AS (
                SELECT min(principal) FROM history
                UNION ALL
                SELECT (SELECT min(principal) FROM history WHERE principal > name) FROM names WHERE name IS NOT NULL
            )
            SELECT name FROM names WHERE name IS NOT NULL
        """
        with self._reading() as db:
            return tuple(sorted(name for (name,) in db.execute(steps).fetchall()))

    def _budgets(self, db: sqlite3.Connection, principal: str) -> Budgets:
        rows = db.execute('SELECT unit, most, "window" FROM budgets WHERE principal = ?', (principal,))
        return {(unit, window): Budget(unit, most, window) for unit, most, window in rows.fetchall()}

    def _reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._store(self._connections.reading())

    def _writing(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._store(self._connections.writing())

    @contextlib.contextmanager
    def _store(
        self, call: contextlib.AbstractContextManager[sqlite3.Connection]
    ) -> Iterator[sqlite3.Connection]:
        with self._told():
            with call as db:
                yield db
            if identity(self.path) != self._identity:
                raise LedgerError(
                    f"cannot use the ledger {self.path}: another file was put in its place. Open it anew."
                )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, json.JSONDecodeError) as error:
            raise LedgerError(
                f"cannot use the ledger {self.path}: {error}. Nothing was released; see docs/privacy-ledger.md."
            ) from error


def _charge(db: sqlite3.Connection, principal: str, key: str) -> tuple[State, str, Taken, int] | None:
    query = 'SELECT state, event, taken, time FROM charges WHERE principal = ? AND "key" = ?'
    row = db.execute(query, (principal, key)).fetchone()
    return None if row is None else (row[0], row[1], read_taken(row[2]), row[3])


def _counters(db: sqlite3.Connection, principal: str, units: Iterable[Unit]) -> dict[Place, Counter]:
    query = 'SELECT "window", start, spent, pending FROM counters WHERE principal = ? AND unit = ?'
    return {
        (unit, window): Counter(start, spent, pending)
        for unit in units
        for window, start, spent, pending in db.execute(query, (principal, unit)).fetchall()
    }


def _settle(db: sqlite3.Connection, principal: str, taken: Taken, back: Charge) -> None:
    """Nothing of ``taken`` is pending any more, and ``back`` of it is not spent: in the windows it was taken in."""
    rows = [
        (back.get(unit, 0), amount, principal, unit, window, window_start(window, time))
        for unit, (amount, time) in taken.items()
        for window in WINDOWS
    ]
    db.executemany(
        "UPDATE counters SET spent = spent - ?, pending = pending - ? "
        'WHERE principal = ? AND unit = ? AND "window" = ? AND start = ?',
        rows,
    )


def _append(
    db: sqlite3.Connection,
    time: int,
    principal: str,
    kind: Kind,
    action: Action,
    key: str,
    change: Charge,
    event: str | None,
    budget: str | None,
) -> None:
    db.execute(
        'INSERT INTO history (time, principal, kind, action, "key", change, event, budget) '
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (time, principal, kind, action, key, plain(change), event, budget),
    )
