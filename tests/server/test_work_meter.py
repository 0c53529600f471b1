"""Work is counted per tenant against quotas in the ledger: never over a quota, never a write per round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fhe_llm.errors import LedgerError
from fhe_llm.privacy import Budget, SqliteLedger
from fhe_llm.privacy.ledger import Ledger
from fhe_llm_server.refusal import Refusal
from fhe_llm_server.work_meter import BLOCK, RoundWork, WorkMeter

WORK = RoundWork(ciphertexts=2, bytes=1000)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "work.sqlite") as opened:
        yield opened


def metered(path: Path, run: Callable[[WorkMeter], Any]) -> Any:
    """Run against a meter of its own, which is closed afterwards."""

    async def inside() -> Any:
        meter = WorkMeter(lambda: SqliteLedger(path / "work.sqlite"), settle_seconds=3600)
        await meter.start()
        try:
            return await run(meter)
        finally:
            await meter.close()

    return asyncio.run(inside())


def spent(ledger: Ledger, tenant: str) -> dict[str, int]:
    return {b.unit: b.spent for b in ledger.balances(tenant) if b.window == "lifetime"}


def test_rounds_are_counted_and_written_in_few_steps(ledger: SqliteLedger, tmp_path: Path) -> None:
    async def run(meter: WorkMeter) -> None:
        for _ in range(100):
            await meter.admit("key-a", WORK)
            meter.count_seconds("key-a", 0.0015)

    metered(tmp_path, run)
    assert spent(ledger, "key-a") == {
        "rounds": 100,
        "ciphertexts": 200,
        "bytes": 100_000,
        "milliseconds": 150,
    }
    actions = [entry.action for entry in ledger.history("key-a")]
    assert actions == ["reserve", "commit"]


@pytest.mark.parametrize("unit", ["rounds", "ciphertexts", "bytes"])
def test_a_quota_is_reached_exactly_and_never_exceeded(
    ledger: SqliteLedger, tmp_path: Path, unit: str
) -> None:
    each = {"rounds": 1, "ciphertexts": 2, "bytes": 1000}[unit]
    ledger.set_budget("key-a", Budget(unit, 7 * each, "day"))  # type: ignore[arg-type]

    async def run(meter: WorkMeter) -> int:
        done = 0

        async def until_refused() -> None:
            nonlocal done
            while True:
                await meter.admit("key-a", WORK)
                done += 1

        with pytest.raises(Refusal, match=r"left\. It refreshes at") as caught:
            await until_refused()
        assert caught.value.proxy_code == "budget_exhausted"
        assert caught.value.status == 429
        assert caught.value.retry_after_ms is not None
        await meter.admit("key-b", WORK)  # others are not concerned
        return done

    assert metered(tmp_path, run) == 7
    assert spent(ledger, "key-a")[unit] == 7 * each


def test_time_beyond_a_quota_is_owed_and_refuses_what_follows(ledger: SqliteLedger, tmp_path: Path) -> None:
    ledger.set_budget("key-a", Budget("milliseconds", 50))

    async def run(meter: WorkMeter) -> None:
        await meter.admit("key-a", WORK)
        meter.count_seconds("key-a", 0.080)
        with pytest.raises(Refusal, match="does not refresh"):
            await meter.admit("key-a", WORK)

    metered(tmp_path, run)
    assert spent(ledger, "key-a")["milliseconds"] == 50


def test_meters_that_share_a_ledger_share_the_quota(ledger: SqliteLedger, tmp_path: Path) -> None:
    ledger.set_budget("key-a", Budget("rounds", 40))

    async def drain(meter: WorkMeter) -> int:
        done = 0
        while True:
            try:
                await meter.admit("key-a", WORK)
            except Refusal:
                return done
            done += 1
            await meter.balances("key-a")  # settles, so that the other gets its share
            await asyncio.sleep(0)

    async def inside() -> list[int]:
        meters = [WorkMeter(lambda: SqliteLedger(tmp_path / "work.sqlite"), 3600) for _ in range(2)]
        for meter in meters:
            await meter.start()
        found = await asyncio.gather(*(drain(meter) for meter in meters))
        for meter in meters:
            await meter.close()
        return list(found)

    assert sum(asyncio.run(inside())) <= 40
    assert spent(ledger, "key-a")["rounds"] <= 40


def test_an_open_lease_of_a_crashed_proxy_stays_spent(ledger: SqliteLedger, tmp_path: Path) -> None:
    ledger.set_budget("key-a", Budget("rounds", 1000))

    async def crash() -> None:
        meter = WorkMeter(lambda: SqliteLedger(tmp_path / "work.sqlite"), 3600)
        await meter.start()
        await meter.admit("key-a", WORK)
        assert meter._settling is not None
        meter._settling.cancel()

    asyncio.run(crash())
    balance = next(b for b in ledger.balances("key-a") if b.unit == "rounds")
    assert balance.pending == balance.spent == BLOCK.rounds + 1


def test_a_client_that_hangs_up_leaves_no_reservation_behind(ledger: SqliteLedger, tmp_path: Path) -> None:
    async def run(meter: WorkMeter) -> None:
        task = asyncio.create_task(meter.admit("key-a", WORK))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    metered(tmp_path, run)
    balances = ledger.balances("key-a")
    assert all(balance.pending == 0 for balance in balances)
    assert all(balance.spent == 0 for balance in balances)


def test_a_ledger_that_fails_refuses_the_round(ledger: SqliteLedger, tmp_path: Path) -> None:
    async def run(meter: WorkMeter) -> None:
        used = meter._ledger
        assert used is not None

        def fail(*_: Any, **__: Any) -> Any:
            raise LedgerError("cannot write the ledger: disk full. Make room.")

        real, used.reserve = used.reserve, fail  # type: ignore[method-assign]
        with pytest.raises(Refusal, match="cannot be written") as caught:
            await meter.admit("key-a", WORK)
        assert caught.value.proxy_code == "ledger_unusable"
        used.reserve = real  # type: ignore[method-assign]
        await meter.admit("key-a", WORK)

    metered(tmp_path, run)
