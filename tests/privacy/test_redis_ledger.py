"""The Redis ledger keeps the contract, and no call is counted twice or lost when connections and servers break."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from forking import forked
from ledger_contract import LedgerContract
from ledger_kit import Open, history_sums, spent, tokens, work
from redis_process import RedisProcess, redis_server
from relay import Relay

from fhe_llm.errors import BudgetExhaustedError, IdempotencyError, LedgerError
from fhe_llm.privacy.ledger import Budget, Ledger
from fhe_llm.privacy.redis_ledger import RedisLedger


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisProcess]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisProcess) -> RedisProcess:
    """A running server without anything in it."""
    shared.client().flushall()
    return shared


@pytest.fixture
def opened(server: RedisProcess) -> Iterator[Open]:
    ledgers: list[RedisLedger] = []

    def open_one(clock: Callable[[], int] | None = None) -> RedisLedger:
        ledgers.append(RedisLedger(server.url, clock=clock))
        return ledgers[-1]

    yield open_one
    for ledger in ledgers:
        ledger.close()


class TestRedisLedger(LedgerContract):
    """The whole contract."""


def test_the_time_is_the_servers_so_that_machines_agree(
    opened: Open, server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    seconds, _ = server.client().time()
    assert abs(opened().charge("ann", work(1), key="k").time - seconds * 1000) < 60_000


def test_ledgers_under_other_prefixes_know_nothing_of_each_other(opened: Open, server: RedisProcess) -> None:
    opened().charge("ann", work(1), key="k")
    with RedisLedger(server.url, prefix="fhe-llm") as other:
        assert (other.principals(), list(other.history())) == ((), [])
        assert not other.charge("ann", work(1), key="k").replayed


def test_all_keys_of_a_ledger_lie_in_one_slot_of_a_cluster(opened: Open, server: RedisProcess) -> None:
    ledger = opened()
    for name in ("ann", "{bob}", "}{"):
        ledger.set_budget(name, Budget("rounds", 5))
        ledger.charge(name, work(1), key="k")
    keys = server.client().keys()
    assert len(keys) == 3 + 3 * 4
    assert {key.partition(b"}")[0] for key in keys} == {b"{fhe-llm-ledger"}


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_needs_no_lock_that_a_thread_of_its_parent_held(opened: Open) -> None:
    ledger = opened()
    ledger.charge("ann", work(1), key="before")
    assert isinstance(ledger, RedisLedger)

    def child() -> bytes:
        signal.alarm(30)  # rather than hang
        return ledger.charge("ann", work(1), key="child").key.encode()

    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger._store._clients.own().connection_pool._lock:
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        with forked(child) as result:
            assert result() == b"child"
    finally:
        over.set()
        holder.join()


class TestCutConnections:
    """A connection breaks after the server did what it was asked, and before anybody heard of it."""

    @pytest.fixture
    def relay(self, server: RedisProcess) -> Iterator[Relay]:
        with Relay(f"http://127.0.0.1:{server.port}") as relay:
            yield relay

    @pytest.fixture
    def ledger(self, relay: Relay) -> Iterator[Ledger]:
        with RedisLedger(relay.url.replace("http", "redis")) as ledger:
            ledger.set_budget("ann", Budget.of(10, "epsilon"))
            yield ledger

    def test_a_charge_is_sent_again_and_is_no_replay(self, ledger: Ledger, relay: Relay) -> None:
        relay.cut_answers(1)
        made = ledger.reserve("ann", tokens(3), key="k")
        assert (made.state, made.replayed, made.charge) == ("reserved", False, {"epsilon": 3_000_000})
        assert relay.cuts == 1
        assert spent(ledger) == {("epsilon", "lifetime"): 3_000_000}
        assert ledger.reserve("ann", tokens(3), key="k").replayed

    def test_an_end_is_sent_again_and_changes_nothing_more(self, ledger: Ledger, relay: Relay) -> None:
        kept, back = (ledger.reserve("ann", tokens(3), key=key) for key in "kb")
        for end in (lambda: ledger.commit(kept, tokens(1)), lambda: ledger.release(back)):
            relay.cut_answers(1)
            end()
        assert relay.cuts == 2
        assert spent(ledger) == {("epsilon", "lifetime"): 1_000_000}
        assert [entry.action for entry in ledger.history("ann")][-2:] == ["commit", "release"]

    def test_a_budget_is_sent_again_and_is_one_entry(self, ledger: Ledger, relay: Relay) -> None:
        relay.cut_answers(1)
        ledger.set_budget("ann", Budget.of(11, "epsilon"))
        assert [entry.action for entry in ledger.history("ann")] == ["budget", "budget"]

    def test_cut_twice_it_is_refused_and_the_key_charges_once(self, ledger: Ledger, relay: Relay) -> None:
        relay.cut_answers(2)
        with pytest.raises(LedgerError, match="Nothing was released"):
            ledger.charge("ann", tokens(3), key="k")
        assert ledger.charge("ann", tokens(3), key="k").replayed
        assert spent(ledger) == {("epsilon", "lifetime"): 3_000_000}

    def test_a_refusal_is_sent_again_and_is_the_same(self, ledger: Ledger, relay: Relay) -> None:
        relay.cut_answers(1)
        with pytest.raises(BudgetExhaustedError, match="10 ε of 10 ε in all is left"):
            ledger.charge("ann", tokens(11), key="k")
        assert len(list(ledger.history())) == 1

    def test_another_event_under_the_key_is_still_refused(self, ledger: Ledger, relay: Relay) -> None:
        ledger.charge("ann", tokens(3), key="k")
        relay.cut_answers(1)
        with pytest.raises(IdempotencyError, match="another event"):
            ledger.charge("ann", tokens(2), key="k")


def test_a_server_killed_in_mid_use_refuses_and_comes_back_with_all_it_confirmed() -> None:
    with redis_server() as server, RedisLedger(server.url) as ledger:
        ledger.set_budget("ann", Budget("rounds", 100_000))
        told: list[str] = []
        refused = threading.Event()

        def spend() -> None:
            while not refused.is_set():
                try:
                    told.append(ledger.charge("ann", work(1), key=str(len(told))).key)
                except LedgerError:
                    refused.set()

        thread = threading.Thread(target=spend)
        thread.start()
        while len(told) < 50:
            pass
        server.kill()
        thread.join()
        for call in (
            lambda: ledger.charge("ann", work(1), key="down"),
            lambda: ledger.balances("ann"),
            lambda: RedisLedger(server.url),
        ):
            with pytest.raises(LedgerError, match="cannot use the ledger"):
                call()
        server.start()
        kept = [entry.key for entry in ledger.history("ann")][1:]
        assert kept[: len(told)] == told
        assert len(kept) <= len(told) + 1  # the call that broke may have been written
        assert history_sums(ledger, "ann") == {"rounds": ledger.balances("ann")[0].spent} == {"rounds": len(kept)}
        assert not ledger.charge("ann", work(1), key="it goes on").replayed


def test_a_server_that_forgot_what_it_confirmed_is_not_believed() -> None:
    with redis_server("--appendonly", "no", "--save", "3600 1000000") as server:
        ledger, later = RedisLedger(server.url), RedisLedger(server.url)
        ledger.set_budget("ann", Budget("rounds", 10))
        server.client().save()
        ledger.charge("ann", work(1), key="k")
        server.kill()
        server.start()
        with pytest.raises(LedgerError, match="lost 1 entries that it had confirmed"):
            ledger.charge("ann", work(1), key="l")
        with pytest.raises(LedgerError, match="lost 1 entries"):
            ledger.balances("ann")
        assert later.balances("ann")[0].spent == 0  # it had heard of none
