"""Whatever was done to the keys of a ledger, it is a LedgerError, and nothing is charged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from ledger_kit import spent, work
from redis_process import RedisProcess, redis_server

from fhe_llm.errors import LedgerError, PrivacyParameterError
from fhe_llm.privacy.ledger import Budget
from fhe_llm.privacy.redis_ledger import RedisLedger

TAG = "{fhe-llm-ledger}:"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisProcess]:
    with redis_server() as server:
        yield server


@pytest.fixture
def other(server: RedisProcess) -> Iterator[redis.Redis]:
    """Somebody else at the server, which has nothing in it yet."""
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def ledger(server: RedisProcess, other: redis.Redis) -> Iterator[RedisLedger]:
    """A ledger in which ann has a budget of 10 rounds, 3 of them spent and 1 reserved."""
    with RedisLedger(server.url) as ledger:
        ledger.set_budget("ann", Budget("rounds", 10))
        ledger.charge("ann", work(3), key="spent")
        ledger.reserve("ann", work(1), key="kept")
        yield ledger


def refused(ledger: RedisLedger, other: redis.Redis, match: str) -> None:
    """No call writes anything."""
    before = {key: other.dump(key) for key in other.keys()}  # noqa: SIM118
    made = RedisLedger.reserve
    for call in (
        lambda: ledger.charge("ann", work(1), key="new"),
        lambda: made(ledger, "ann", work(1), key="newer"),
        lambda: ledger.set_budget("ann", Budget("rounds", 99)),
    ):
        with pytest.raises(LedgerError, match=match):
            call()
    assert {key: other.dump(key) for key in other.keys()} == before  # noqa: SIM118


KEYS = ("meta", "history", "principals", "budgets:ann", "counters:ann", "charges:ann", "entries:ann")


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_was_evicted(ledger: RedisLedger, other: redis.Redis, server: RedisProcess, key: str) -> None:
    other.delete(TAG + key)
    refused(ledger, other, r"damaged or incomplete|was deleted")
    if key == "meta":
        with pytest.raises(LedgerError, match="its first key"):
            RedisLedger(server.url)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["text", "list", "hash"])
def test_a_key_of_another_kind(ledger: RedisLedger, other: redis.Redis, key: str, kind: str) -> None:
    other.delete(TAG + key)
    if kind == "text":
        other.set(TAG + key, "hello")
    elif kind == "list":
        other.rpush(TAG + key, "hello")
    else:
        other.hset(TAG + key, mapping={"hello": "world", "good": "bye", "see": "you"})
    refused(ledger, other, r"WRONGTYPE|damaged|was deleted")


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("counters:ann", "rounds lifetime", "0 1 2"),
        ("counters:ann", "rounds lifetime", "0 -1 0"),
        ("counters:ann", "rounds lifetime", "0 9007199254740993 0"),
        ("counters:ann", "rounds hour", "0 1e3 0"),
        ("counters:ann", "rounds hour", "nan nan nan"),
        ("counters:ann", "rounds hour", "\xff\x00"),
        ("counters:ann", "rounds day", "0 1"),
        ("budgets:ann", "rounds lifetime", "-1"),
        ("budgets:ann", "rounds lifetime", "inf"),
        ("budgets:ann", "rounds lifetime", "99999999999999999999"),
        ("meta", "entries", "many"),
    ],
)
def test_a_number_that_is_none(
    ledger: RedisLedger, other: redis.Redis, key: str, field: str, value: str
) -> None:
    other.hset(TAG + key, field, value.encode("latin-1"))
    with pytest.raises(LedgerError, match="damaged or incomplete"):
        ledger.charge("ann", work(1), key="new")
    with pytest.raises(LedgerError, match="damaged or incomplete"):
        ledger.balances("ann")
    if not key.startswith("counters"):
        with pytest.raises(LedgerError, match="damaged or incomplete"):
            ledger.budgets("ann")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: text[:20],
        lambda text: text.replace(b"[1,", b"[-1,"),
        lambda text: text.replace(b"[1,", b"[1e9,"),
        lambda text: text.replace(b"[1,", b"[9007199254740993,"),
        lambda text: text.replace(b'{"rounds"', b'{"x":0,"rounds"'),
    ],
)
def test_a_charge_that_nobody_wrote(
    ledger: RedisLedger, other: redis.Redis, change: Callable[[bytes], bytes]
) -> None:
    made = ledger.reserve("ann", work(1), key="kept")
    found: Any = other.hget(TAG + "charges:ann", "kept")
    other.hset(TAG + "charges:ann", "kept", change(found))
    for call in (
        lambda: ledger.reserve("ann", work(1), key="kept"),
        lambda: ledger.release(made),
        lambda: ledger.commit(made),
    ):
        with pytest.raises(LedgerError, match="damaged or incomplete"):
            call()
    assert spent(ledger) == {("rounds", "lifetime"): 4}


def test_a_counter_too_small_for_what_is_given_back(ledger: RedisLedger, other: redis.Redis) -> None:
    made = ledger.reserve("ann", work(1), key="kept")
    other.hset(TAG + "counters:ann", "rounds lifetime", "0 3 0")
    with pytest.raises(LedgerError, match="damaged or incomplete"):
        ledger.release(made)


@pytest.mark.parametrize(
    "row",
    [
        {"hello": "world"},
        {"time": "never", "principal": "ann", "kind": "work", "action": "charge", "key": "k", "change": "{}"},
        {
            **{"time": "1", "principal": "ann", "kind": "work", "action": "charge", "key": "k"},
            **{"change": "{", "event": "", "budget": ""},
        },
    ],
)
def test_an_entry_that_nobody_wrote(ledger: RedisLedger, other: redis.Redis, row: dict[Any, Any]) -> None:
    other.xdel(TAG + "history", "3-0")
    other.xadd(TAG + "history", row, id="4-0")
    with pytest.raises(LedgerError, match=r"damaged|newer version"):
        list(ledger.history())


def test_entries_cut_from_the_history(ledger: RedisLedger, other: redis.Redis) -> None:
    other.xtrim(TAG + "history", maxlen=1, approximate=False)
    refused(ledger, other, "entries of the history")
    with pytest.raises(LedgerError, match="entries of the history"):
        ledger.history()


def test_entries_cut_while_they_are_read(ledger: RedisLedger, other: redis.Redis) -> None:
    for number in range(600):
        ledger.charge("ann", work(0), key=str(number))
    entries = ledger.history("ann")
    next(entries)
    other.xtrim(TAG + "history", maxlen=1, approximate=False)
    with pytest.raises(LedgerError, match="entries of the history"):
        list(entries)


def test_one_of_a_newer_format(ledger: RedisLedger, server: RedisProcess, other: redis.Redis) -> None:
    other.hset(TAG + "meta", "format", "2")
    refused(ledger, other, r"another version wrote it \(2, this one knows 1\)")
    with pytest.raises(LedgerError, match="another version"):
        RedisLedger(server.url)


def test_one_deleted_or_replaced_while_it_is_open(
    ledger: RedisLedger, server: RedisProcess, other: redis.Redis
) -> None:
    other.flushall()
    for call in (lambda: ledger.charge("ann", work(1), key="k"), lambda: ledger.balances("ann")):
        with pytest.raises(LedgerError, match="was deleted"):
            call()
    assert other.keys() == []
    RedisLedger(server.url).set_budget("ann", Budget("rounds", 5))
    refused(ledger, other, "another one was put in its place")


def test_a_forgotten_script_is_sent_again(ledger: RedisLedger, other: redis.Redis) -> None:
    other.script_flush()
    assert not ledger.charge("ann", work(1), key="k").replayed
    other.script_flush()
    assert spent(ledger) == {("rounds", "lifetime"): 5}


@pytest.mark.parametrize("bad", ["", "x" * 65, "a{b}", "}", "a\n"])
def test_a_prefix_that_would_spoil_the_hash_tag(server: RedisProcess, bad: str) -> None:
    with pytest.raises(PrivacyParameterError, match="cannot use this prefix"):
        RedisLedger(server.url, prefix=bad)


def test_the_amounts_in_the_script_are_those_of_the_library(ledger: RedisLedger) -> None:
    from fhe_llm.privacy.charge import MAX_AMOUNT

    assert f"local MAX = {MAX_AMOUNT}\n" in ledger._store._script
