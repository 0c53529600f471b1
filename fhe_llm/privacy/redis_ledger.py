"""The ledger of several machines: Redis, where one script makes each call one atomic step."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, cast

from fhe_llm.privacy.charge import MAX_AMOUNT, UNITS, Charge, Unit
from fhe_llm.privacy.counters import Budgets, Counter, Counters, balances_in, check_left, checked_time
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
    Window,
    checked_name,
    decoded,
    encoded,
)
from fhe_llm.privacy.recording import (
    budget_text,
    checked_newest,
    given_back,
    read_entry,
    read_taken,
    recorded,
    refuse_state,
    refuse_unknown,
    replayed,
)
from fhe_llm.privacy.redis_store import RedisStore

PAGE: Final = 500
"""Entries of the history read at once: the server serves nobody else meanwhile."""


class RedisLedger(Ledger):
    """A ledger at a ``redis://``, ``rediss://`` or ``unix://`` URL, begun where there is none under ``prefix``.

    Any number of machines may share it; the time is the server's unless ``clock`` is given. Safe to use from threads
    and after a fork. Raises :class:`LedgerError` where the server cannot be used: unreachable, out of memory, a
    replica, one that evicts keys or writes nothing to disk, or one that lost what it had confirmed.
    """

    def __init__(
        self, url: str, *, clock: Callable[[], int] | None = None, prefix: str = "fhe-llm-ledger"
    ) -> None:
        super().__init__(clock)
        self._store = RedisStore(url, prefix)

    def __repr__(self) -> str:
        return f"RedisLedger({str(self._store)!r})"

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def _set_budget(self, principal: str, budget: Budget) -> None:
        self._store.call(
            "budget",
            principal,
            **self._time(),
            kind=budget.kind,
            key="",
            unit=budget.unit,
            window=budget.window,
            limit=budget.limit,
            budget=budget_text(budget),
        )

    def _reserve(self, principal: str, key: str, event: Event, charge: Charge, state: State) -> Reservation:
        said, *rest = self._store.call(
            "take",
            principal,
            **self._time(),
            kind=event.kind,
            key=key,
            state=state,
            event=recorded(event),
            charge=list(charge.items()),
            uncapped=event.kind in UNCAPPED,
            call=secrets.token_hex(8),  # of two times this is sent, the second is no replay
        )
        if said == "refused":
            self._refuse(principal, event, charge, *rest)
        if said == "taken":
            return Reservation(principal, key, event, charge, state, int(rest[0]))
        first_state, time, taken, same, ours = rest
        amounts = {unit: amount for unit, (amount, _) in read_taken(taken).items()}
        first = Reservation(principal, key, event, amounts, first_state, int(time))
        return first if ours == "1" else replayed(first, same=same == "1")

    def _refuse(
        self, principal: str, event: Event, charge: Charge, time: str, budgets: Any, counters: Any
    ) -> NoReturn:
        for unit, amount in charge.items():
            check_left(
                principal,
                unit,
                amount,
                self._counters(counters),
                self._budgets(budgets),
                int(time),
                uncapped=event.kind in UNCAPPED,
            )
        raise self._store.damaged("a counter")

    def _commit(self, reservation: Reservation, charge: Charge, event: str) -> None:
        decoded(event)  # or the history could not be read any more
        self._end(reservation, "committed", charge, event)

    def _release(self, reservation: Reservation) -> None:
        self._end(reservation, "released", {}, encoded(reservation.event))

    def _end(self, reservation: Reservation, state: State, actual: Charge, event: str) -> None:
        verb: Action = "commit" if state == "committed" else "release"
        said, *rest = self._store.call(
            "settle",
            reservation.principal,
            **self._time(),
            kind=reservation.event.kind,
            key=reservation.key,
            state=state,
            action=verb,
            reserved=encoded(reservation.event),
            event=event,
            charge=list(actual.items()),
        )
        if said == "unknown":
            refuse_unknown(reservation, verb)
        if said == "ended":
            refuse_state(reservation, verb, cast(State, rest[0]))
        if said == "more":
            given_back(
                reservation, {unit: amount for unit, (amount, _) in read_taken(rest[0]).items()}, actual
            )

    def budgets(self, principal: str) -> tuple[Budget, ...]:
        """See :meth:`Ledger.budgets`."""
        checked_name(principal, "principal")
        _, _, budgets, _ = self._store.call("read", principal)
        found = self._budgets(budgets)
        return tuple(found[unit, window] for unit in UNITS for window in WINDOWS if (unit, window) in found)

    def balances(self, principal: str) -> tuple[Balance, ...]:
        """See :meth:`Ledger.balances`."""
        checked_name(principal, "principal")
        _, time, budgets, counters = self._store.call("read", principal, **self._time())
        return balances_in(self._counters(counters), self._budgets(budgets), int(time))

    def history(self, principal: str | None = None, *, newest: int | None = None) -> Iterator[Entry]:
        """See :meth:`Ledger.history`; entries written after the call are not among them."""
        checked_newest(newest)
        who = "" if principal is None else checked_name(principal, "principal")
        _, count = self._store.call("count", who)
        last = int(count)
        return self._entries(who, 0 if newest is None else max(0, last - newest), last)

    def _entries(self, who: str, before: int, last: int) -> Iterator[Entry]:
        while before < last:
            until = min(before + PAGE, last)
            _, rows = self._store.call("page", who, first=before + 1, last=until)
            if len(rows) != until - before:
                raise self._store.damaged("entries of the history")
            for identifier, flat in rows:
                row = dict(zip(flat[::2], flat[1::2], strict=True))
                try:
                    yield read_entry(identifier.partition("-")[0], int(row.pop("time")), **row)
                except (KeyError, TypeError, ValueError):
                    raise self._store.damaged(f"entry {identifier} of the history") from None
            before = until

    def principals(self) -> tuple[str, ...]:
        """See :meth:`Ledger.principals`."""
        _, names = self._store.call("principals", "")
        return tuple(sorted(names))

    def _time(self) -> dict[str, int]:
        return {"now": checked_time(self.now())} if self._clock else {}

    def _budgets(self, flat: list[str]) -> Budgets:
        found = {}
        for place, limit in zip(flat[::2], flat[1::2], strict=True):
            unit, window = self._place(place)
            found[unit, window] = Budget(unit, self._number(limit), window)
        return found

    def _counters(self, flat: list[str]) -> Counters:
        found = {}
        for place, text in zip(flat[::2], flat[1::2], strict=True):
            parts = text.split(" ")
            counter = Counter(*(self._number(part) for part in parts)) if len(parts) == 3 else None
            if counter is None or counter.pending > counter.spent:
                raise self._store.damaged("a counter")
            found[self._place(place)] = counter
        return found

    def _place(self, text: str) -> tuple[Unit, Window]:
        unit, _, window = text.partition(" ")
        if unit not in UNITS or window not in WINDOWS:
            raise self._store.damaged("a budget or a counter")
        return unit, window

    def _number(self, text: str) -> int:
        if not re.fullmatch("[0-9]{1,16}", text) or int(text) > MAX_AMOUNT:
            raise self._store.damaged("a budget or a counter")
        return int(text)
