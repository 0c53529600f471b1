"""The half of the contract that is about windows, names, the history, and many callers at once."""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from typing import Any

import pytest
from forking import forked
from ledger_kit import DAY, HOUR, NOON, Clock, Open, history_sums, spent, tokens, work

from fhe_llm.errors import BudgetExhaustedError, LedgerError, PrivacyParameterError
from fhe_llm.privacy.events import EncryptedCall, Event, ValuesDisclosed
from fhe_llm.privacy.ledger import WINDOW_MS, WINDOWS, Budget, Ledger, Window


class LedgerStoreContract:
    """See :class:`ledger_contract.LedgerContract`."""

    # -- windows

    @pytest.mark.parametrize("window", [w for w in WINDOWS if w != "lifetime"])
    def test_a_window_refreshes_at_its_end(self, ledger: Ledger, clock: Clock, window: Window) -> None:
        length = WINDOW_MS[window]
        start = clock.now = NOON // length * length
        ledger.set_budget("ann", Budget("rounds", 5, window))
        ledger.charge("ann", work(5), key="1")
        clock.now = start + length - 1
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.charge("ann", work(1), key="2")
        assert refused.value.refreshes_at == start + length
        clock.now = start + length
        assert spent(ledger) == {("rounds", window): 0, ("rounds", "lifetime"): 5}
        ledger.charge("ann", work(4), key="2")
        first, *_ = ledger.balances("ann")
        assert (first.spent, first.left, first.refreshes_at) == (4, 1, start + 2 * length)

    def test_a_lifetime_never_refreshes(self, ledger: Ledger, clock: Clock) -> None:
        ledger.set_budget("ann", Budget("rounds", 5))
        ledger.charge("ann", work(5), key="1")
        clock.now += 1000 * WINDOW_MS["30days"]
        with pytest.raises(BudgetExhaustedError, match="does not refresh"):
            ledger.charge("ann", work(1), key="2")

    def test_a_clock_that_goes_back_opens_no_earlier_window(self, ledger: Ledger, clock: Clock) -> None:
        for window in WINDOWS:
            ledger.set_budget("ann", Budget("rounds", 5, window))
        clock.now += DAY
        ledger.charge("ann", work(3), key="1")
        clock.now -= 400 * DAY
        with pytest.raises(BudgetExhaustedError):
            ledger.charge("ann", work(3), key="2")
        back = ledger.reserve("ann", work(2), key="3")
        assert {b.left for b in ledger.balances("ann")} == {0}
        hour, *_ = ledger.balances("ann")
        assert hour.refreshes_at == NOON + DAY + HOUR
        ledger.release(back)
        assert {b.left for b in ledger.balances("ann")} == {2}
        clock.now = NOON + DAY
        assert {b.left for b in ledger.balances("ann")} == {2}

    @pytest.mark.parametrize("end", ["release", "commit"])
    def test_what_is_given_back_goes_to_the_windows_it_was_taken_from(
        self, ledger: Ledger, clock: Clock, end: str
    ) -> None:
        for window in ("hour", "day", "lifetime"):
            ledger.set_budget("ann", Budget("rounds", 10, window))
        made = ledger.reserve("ann", work(6), key="1")
        clock.now += HOUR
        ledger.charge("ann", work(3), key="2")
        ledger.release(made) if end == "release" else ledger.commit(made, work(1))
        kept = 0 if end == "release" else 1
        assert spent(ledger) == {
            ("rounds", "hour"): 3,
            ("rounds", "day"): 3 + kept,
            ("rounds", "lifetime"): 3 + kept,
        }
        assert {b.pending for b in ledger.balances("ann")} == {0}

    def test_a_reservation_that_ends_in_a_quiet_later_window_frees_nothing_there(
        self, ledger: Ledger, clock: Clock
    ) -> None:
        ledger.set_budget("ann", Budget("rounds", 10, "hour"))
        made = ledger.reserve("ann", work(6), key="1")
        clock.now += HOUR
        assert spent(ledger) == {("rounds", "hour"): 0, ("rounds", "lifetime"): 6}
        ledger.release(made)
        assert spent(ledger) == {("rounds", "hour"): 0, ("rounds", "lifetime"): 0}
        ledger.charge("ann", work(10), key="2")

    # -- history, names, life

    def test_the_history_reads_from_the_oldest_on(self, ledger: Ledger, clock: Clock) -> None:
        assert list(ledger.history("nobody")) == []
        for number in range(5):
            clock.now += 1
            ledger.charge(("ann", "bob")[number % 2], work(number), key=str(number))
        every = list(ledger.history())
        assert [e.key for e in every] == ["0", "1", "2", "3", "4"]
        assert [e.time for e in every] == [NOON + n for n in range(1, 6)]
        assert len({(e.principal, e.sequence) for e in every}) == 5
        assert [e.key for e in ledger.history("ann")] == ["0", "2", "4"]
        assert [e.key for e in ledger.history(newest=2)] == ["3", "4"]
        assert [e.key for e in ledger.history("ann", newest=2)] == ["2", "4"]
        assert [e.key for e in ledger.history("bob", newest=9)] == ["1", "3"]
        assert list(ledger.history(newest=0)) == []
        for bad in (-1, 1.5, True):
            with pytest.raises(PrivacyParameterError, match="must be a count"):
                ledger.history(newest=bad)  # type: ignore[arg-type]

    def test_a_long_history_is_read_in_pages(self, ledger: Ledger) -> None:
        for number in range(2200):
            ledger.charge("ann", work(1), key=str(number))
        entries = ledger.history("ann")
        assert next(entries).key == "0"
        ledger.charge("ann", work(1), key="later")
        assert [e.key for e in entries] == [str(number) for number in range(1, 2200)]
        assert [e.key for e in ledger.history("ann", newest=1500)][:2] == ["701", "702"]

    def test_principals_are_those_with_a_budget_or_a_history(self, ledger: Ledger) -> None:
        assert ledger.principals() == ()
        ledger.set_budget("zoë", Budget("rounds", 1))
        ledger.charge("bob", EncryptedCall(model="m", rounds=1, bytes_up=1, bytes_down=1), key="k")
        with pytest.raises(BudgetExhaustedError):
            ledger.charge("eve", tokens(1), key="k")
        assert ledger.principals() == ("bob", "zoë")

    def test_any_printable_name_is_its_own(self, ledger: Ledger) -> None:
        names = ["a", "a}b", "{a}", "}", "{}", "a:history", "*", "a b", "ä'\";--", "%61", "猫", "x" * 256]
        for number, name in enumerate(names, 1):
            ledger.set_budget(name, Budget("rounds", 100))
            ledger.charge(name, work(number), key=name)
        assert ledger.principals() == tuple(sorted(names))
        for number, name in enumerate(names, 1):
            assert spent(ledger, name) == {("rounds", "lifetime"): number}
            assert [e.key for e in ledger.history(name, newest=1)] == [name]

    @pytest.mark.parametrize("bad", ["", "a\nb", "\x00", "x" * 257, "\ud800", None, 5, b"a"])
    def test_a_bad_name_is_refused(self, ledger: Ledger, bad: Any) -> None:
        for call in (
            lambda: ledger.charge(bad, work(1), key="k"),
            lambda: ledger.reserve("ann", work(1), key=bad),
            lambda: ledger.set_budget(bad, Budget("rounds", 1)),
            lambda: ledger.budgets(bad),
            lambda: ledger.balances(bad),
        ):
            with pytest.raises(PrivacyParameterError, match="1 to 256 printable"):
                call()
        assert list(ledger.history()) == []

    def test_an_event_that_could_not_be_read_back_is_refused(self, ledger: Ledger) -> None:
        class Unknown(Event):
            kind = "text"
            name = "unknown"

            def describe(self) -> str:
                return "unknown"

        nan = float("nan")
        unfit: list[Event] = [
            Unknown(),
            ValuesDisclosed(queries=0, values=1, noise=nan, statistical_bits=40, query_limit=1),
            EncryptedCall(model=object(), rounds=1, bytes_up=1, bytes_down=1),  # type: ignore[arg-type]
        ]
        kept = ledger.reserve("ann", EncryptedCall(model="m", rounds=1, bytes_up=1, bytes_down=1), key="k")
        for event in unfit:
            with pytest.raises(PrivacyParameterError):
                ledger.charge("ann", event, key="bad")
        with pytest.raises(PrivacyParameterError):
            ledger.commit(kept, unfit[0])
        assert [e.key for e in ledger.history()] == ["k"]

    @pytest.mark.parametrize("bad", [-1, 1.5, None, True, 10**14])
    def test_a_clock_that_gives_no_time_is_refused(self, opened: Open, bad: Any) -> None:
        ledger = opened(clock=lambda: bad)
        for call in (
            lambda: ledger.charge("ann", work(1), key="k"),
            lambda: ledger.set_budget("ann", Budget("rounds", 1)),
        ):
            with pytest.raises(LedgerError, match="cannot use the clock"):
                call()
        assert list(ledger.history()) == []

    def test_the_time_is_that_of_the_store_without_a_clock(self, opened: Open) -> None:
        ledger = opened()
        before = ledger.now()
        made = ledger.charge("ann", work(1), key="k")
        assert before - 1000 <= made.time <= ledger.now() + 1000
        assert next(ledger.history()).time == made.time

    def test_everything_is_in_the_store(self, opened: Open, clock: Clock) -> None:
        with opened(clock=clock) as first:
            first.set_budget("ann", Budget("rounds", 10, "day"))
            made = first.reserve("ann", work(3), key="k")
        second = opened(clock=clock)
        assert second.budgets("ann") == (Budget("rounds", 10, "day"),)
        assert second.reserve("ann", work(3), key="k") == type(made)(
            "ann", "k", work(3), {"rounds": 3}, "reserved", NOON, replayed=True
        )
        second.commit(made, work(1))
        assert spent(second) == {("rounds", "day"): 1, ("rounds", "lifetime"): 1}

    def test_a_closed_ledger_says_so(self, opened: Open) -> None:
        ledger = opened()
        ledger.close()
        ledger.close()
        for call in (
            lambda: ledger.charge("ann", work(1), key="k"),
            lambda: ledger.set_budget("ann", Budget("rounds", 1)),
            lambda: ledger.balances("ann"),
            lambda: list(ledger.history()),
            ledger.principals,
        ):
            with pytest.raises(LedgerError, match="closed"):
                call()

    # -- many at once

    def test_threads_spend_a_cap_to_the_last_unit(self, ledger: Ledger) -> None:
        cap = 300
        ledger.set_budget("ann", Budget("rounds", cap))
        refused: list[str] = []

        def spend(name: str) -> None:
            for number in range(60):
                try:
                    if number % 3 == 0:
                        ledger.charge("ann", work(1), key=f"{name}-{number}")
                    elif number % 3 == 1:
                        ledger.commit(ledger.reserve("ann", work(2), key=f"{name}-{number}"), work(1))
                    else:
                        ledger.release(ledger.reserve("ann", work(2), key=f"{name}-{number}"))
                except BudgetExhaustedError as error:
                    refused.append(error.unit)

        threads = [threading.Thread(target=spend, args=(str(n),)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while (left := ledger.balances("ann")[0].left or 0) > 0:
            ledger.charge("ann", work(1), key=f"last-{left}")
        assert refused
        assert history_sums(ledger, "ann") == {"rounds": cap}
        assert [(b.spent, b.pending) for b in ledger.balances("ann")] == [(cap, 0)]

    def test_threads_with_one_key_charge_once(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget("rounds", 100))
        start = threading.Barrier(8)
        replays: list[bool] = []

        def spend() -> None:
            start.wait()
            replays.append(ledger.charge("ann", work(1), key="k").replayed)

        threads = [threading.Thread(target=spend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(replays) == {False: 1, True: 7}

    def test_a_forked_child_goes_on_beside_its_parent(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget("rounds", 1000))
        ledger.charge("ann", work(1), key="before")

        def child() -> bytes:
            for number in range(50):
                ledger.charge("ann", work(1), key=f"child-{number}")
            return str(os.getpid()).encode()

        with forked(child) as first, forked(child) as second:
            for number in range(50):
                ledger.charge("ann", work(1), key=f"parent-{number}")
            assert first() != second()
        assert spent(ledger) == {
            ("rounds", "lifetime"): 101
        }  # the second child replayed the first one's keys

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    def test_a_fork_between_other_threads_calls_hangs_nobody(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget("rounds", 100_000))
        over = threading.Event()
        counts = [0, 0]

        def spend(which: int) -> None:
            while not over.is_set():
                ledger.charge("ann", work(1), key=uuid.uuid4().hex)
                counts[which] += 1

        threads = [threading.Thread(target=spend, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        children = 12
        for number in range(children):
            with forked(lambda n=number: ledger.charge("ann", work(1), key=f"c{n}").key.encode()) as result:  # type: ignore[misc]
                assert result() == f"c{number}".encode()
        over.set()
        for thread in threads:
            thread.join()
        assert spent(ledger) == {("rounds", "lifetime"): sum(counts) + children}
