"""A ledger in a Redis cluster: any node's URL opens it, and it is followed to wherever its slot goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
import redis
from ledger_kit import history_sums, spent, work
from redis_process import START_S, RedisProcess, free_port, redis_server

from fhe_llm.errors import LedgerError
from fhe_llm.privacy.ledger import Budget
from fhe_llm.privacy.redis_ledger import RedisLedger

SLOTS = 16384


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisProcess]]:
    """Two primaries with half of the slots each."""
    with contextlib.ExitStack() as stack:
        buses = [str(free_port()) for _ in range(2)]
        options = ("--cluster-enabled", "yes", "--cluster-port")
        nodes = [stack.enter_context(redis_server(*options, bus)) for bus in buses]
        clients = [stack.enter_context(node.client()) for node in nodes]
        for number, client in enumerate(clients):
            client.execute_command(
                "CLUSTER", "ADDSLOTSRANGE", number * SLOTS // 2, (number + 1) * SLOTS // 2 - 1
            )
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, buses[1])
        until = time.monotonic() + START_S
        while not all(agrees(client) for client in clients):
            assert time.monotonic() < until, "the nodes do not come together"
            time.sleep(0.02)
        yield nodes


def agrees(client: redis.Redis) -> bool:
    text = client.execute_command("CLUSTER", "INFO")
    return "cluster_state:ok" in (text if isinstance(text, str) else str(text))


def url(node: RedisProcess) -> str:
    return f"redis://127.0.0.1:{node.port}"


def move(source: redis.Redis, target: redis.Redis, port: int, slot: int) -> None:
    """A slot and what is in it, from one node to the other."""
    names = [str(client.execute_command("CLUSTER", "MYID"), "ascii") for client in (source, target)]
    target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
    source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
    keys = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
    source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
    for client in (target, source):
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[1])


def test_any_node_opens_it_and_it_is_followed_when_it_moves(nodes: list[RedisProcess]) -> None:
    with (
        RedisLedger(url(nodes[0])) as first,
        RedisLedger(url(nodes[1])) as second,
        nodes[0].client() as one,
        nodes[1].client() as other,
    ):
        first.set_budget("ann", Budget("rounds", 10))
        made = first.reserve("ann", work(2), key="k")
        assert second.reserve("ann", work(2), key="k").replayed
        slot = int(one.execute_command("CLUSTER", "KEYSLOT", "{fhe-llm-ledger}"))
        ways = [(one, other, nodes[1]), (other, one, nodes[0])]
        for source, target, at in ways if slot < SLOTS // 2 else reversed(ways):
            move(source, target, at.port, slot)
            assert source.dbsize() == 0
            for number, ledger in enumerate((first, second)):
                ledger.charge("ann", work(1), key=f"{at.port}-{number}")
        second.commit(made, work(1))
        assert spent(first) == spent(second) == {("rounds", "lifetime"): 5}
        assert history_sums(second, "ann") == {"rounds": 5}


def test_a_cluster_without_that_node_refuses(nodes: list[RedisProcess]) -> None:
    with nodes[0].client() as one, RedisLedger(url(nodes[0]), prefix="other") as ledger:
        ledger.charge("ann", work(1), key="k")
        slot = int(one.execute_command("CLUSTER", "KEYSLOT", "{other}"))
        keeper = nodes[0 if slot < SLOTS // 2 else 1]
        keeper.kill()
        with pytest.raises(LedgerError, match="cannot use the ledger"):
            ledger.charge("ann", work(1), key="l")
        keeper.start()
        until = time.monotonic() + START_S
        while True:
            try:
                ledger.charge("ann", work(1), key="l")
                break
            except LedgerError:
                assert time.monotonic() < until
                time.sleep(0.02)
        assert spent(ledger) == {("rounds", "lifetime"): 2}
