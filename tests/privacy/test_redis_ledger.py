"""The Redis ledger keeps the contract, and refuses whatever server it cannot trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from ledger_contract import LedgerContract
from ledger_kit import Open
from redis_process import RedisProcess, redis_server

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
