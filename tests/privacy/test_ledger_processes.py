"""Processes spend one cap while they, and the server, are killed: nothing is lost, and nothing counted twice."""

from __future__ import annotations

import collections
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger_kit import history_sums, work
from redis_process import IN_MEMORY, RedisProcess, redis_server
from spending_worker import amount_of

from fhe_llm.errors import BudgetExhaustedError, LedgerError
from fhe_llm.privacy.account import Account
from fhe_llm.privacy.events import EncryptedCall
from fhe_llm.privacy.ledger import Budget, Entry, Ledger
from fhe_llm.privacy.mechanism import Protected
from fhe_llm.privacy.redis_ledger import RedisLedger
from fhe_llm.privacy.sqlite_ledger import SqliteLedger

TIMEOUT_S = 900.0
Told = dict[str, str]


class Spenders:
    """The processes; each tries ``keys`` keys of its own at the ledger at ``where``."""

    def __init__(self, where: str, folder: Path, processes: int, keys: int) -> None:
        self._where, self._folder, self._processes, self._keys = where, folder, processes, keys
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self.killed = 0

    def run(self, moments: list[tuple[int, Callable[[], None]]]) -> None:
        """Start them and wait for them all; each of ``moments`` is called when so many bytes were told."""
        todo = sorted(moments, key=lambda moment: moment[0])
        for number in range(self._processes):
            self._start(number)
        until = time.monotonic() + TIMEOUT_S
        try:
            while self._running:
                assert time.monotonic() < until, "the processes do not come to an end"
                while todo and sum(path.stat().st_size for path in self._folder.iterdir()) >= todo[0][0]:
                    todo.pop(0)[1]()
                for number, process in list(self._running.items()):
                    if process.poll() is not None:
                        assert process.returncode == 0, (number, process.returncode)
                        del self._running[number]
                time.sleep(0.005)
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()
        assert not todo, "they were too quick to be killed"

    def kill(self, number: int) -> None:
        """SIGKILL, and a successor."""
        process = self._running.get(number)
        if process is not None:
            process.kill()
            self.killed += process.wait() != 0
            self._start(number)

    def kill_all(self) -> None:
        """All at once, as when the machine's service is stopped."""
        for process in self._running.values():
            process.kill()
        for number in list(self._running):
            self.kill(number)

    def _start(self, number: int) -> None:
        told = self._folder / str(number)
        command = [sys.executable, str(Path(__file__).with_name("spending_worker.py")), f"p{number}"]
        told.touch()
        self._running[number] = subprocess.Popen(
            [*command, str(self._keys), str(told)], env={**os.environ, "FHE_LLM_TEST_PLACE": self._where}
        )

    def told(self) -> Told:
        """What the processes said of each key."""
        lines = [line.split(" ", 1) for path in self._folder.iterdir() for line in path.read_text().splitlines()]
        assert len(lines) == len(dict(lines)), "a key was told twice"
        return dict(lines)


def check(entries: list[Entry], told: Told) -> None:
    """The history has every key that was told to be taken, once, and at its cost."""
    assert set(told.values()) <= {"committed", "released", "refused"}
    counts = collections.Counter((entry.key, entry.action) for entry in entries)
    assert max(counts.values()) == 1
    costs: dict[str, int] = {}
    last: dict[str, str] = {}
    for entry in entries:
        costs[entry.key] = costs.get(entry.key, 0) + entry.change.get("rounds", 0)
        last[entry.key] = entry.action
    kept = {key: outcome for key, outcome in told.items() if outcome != "refused"}
    assert kept.keys() == costs.keys(), "what was told is not what is in the history"
    for key, outcome in kept.items():
        assert costs[key] == amount_of(int(key.partition("-")[2])), key
        assert last[key] in (("commit", "charge") if outcome == "committed" else ("release",)), key


class LedgerProcessesContract:
    """A subclass has the fixtures ``where`` (an empty ledger's place) and ``crash`` (what may befall its store)."""

    def spent_by_all(
        self, where: str, crash: Callable[[Spenders], None], *, processes: int, keys: int, kills: int
    ) -> None:
        """``keys`` keys over all processes, of which the cap admits nine in ten."""
        draw = random.Random(keys)
        each = keys // processes
        cap = sum(amount_of(number) for number in range(each)) * processes * 9 // 10
        with ledger_at(where) as ledger:
            ledger.set_budget("ann", Budget("rounds", cap))
        with tempfile.TemporaryDirectory(prefix="fhe-llm-told-") as folder:
            spenders = Spenders(where, Path(folder), processes, each)
            least = 12 * keys  # a line has more bytes
            moments: list[tuple[int, Callable[[], None]]] = [
                (draw.randrange(least), lambda: spenders.kill(draw.randrange(processes))) for _ in range(kills)
            ]
            moments += [(least * part // 3, lambda: crash(spenders)) for part in (1, 2)]
            spenders.run(moments)
            told = spenders.told()
        assert spenders.killed
        assert len(told) == each * processes
        assert "refused" in told.values()
        with ledger_at(where) as ledger:
            self.check_sums(ledger, cap)
            check([entry for entry in ledger.history("ann") if entry.action != "budget"], told)
            while ledger.balances("ann")[0].left:
                ledger.charge("ann", work(1), key=f"last-{ledger.balances('ann')[0].left}")
            with pytest.raises(BudgetExhaustedError):
                ledger.charge("ann", work(1), key="one too many")
            self.check_sums(ledger, cap)
            assert ledger.balances("ann")[0].spent == cap

    def check_sums(self, ledger: Ledger, cap: int) -> None:
        (balance,) = ledger.balances("ann")
        assert balance.spent <= cap
        assert balance.pending == 0
        assert history_sums(ledger, "ann") == {"rounds": balance.spent}

    def test_processes_that_are_killed_spend_one_cap(
        self, where: str, crash: Callable[[Spenders], None]
    ) -> None:
        self.spent_by_all(where, crash, processes=6, keys=2_000, kills=5)

    @pytest.mark.slow
    def test_sixteen_processes_that_are_killed_spend_one_cap(
        self, where: str, crash: Callable[[Spenders], None]
    ) -> None:
        self.spent_by_all(where, crash, processes=16, keys=100_000, kills=150)

    def test_nothing_is_drawn_where_nothing_can_be_written(
        self, where: str, broken: Callable[[], None]
    ) -> None:
        drawn: list[int] = []
        event = EncryptedCall(model="tiny", rounds=1, bytes_up=1, bytes_down=1)

        def draw() -> Protected[int]:
            drawn.append(1)
            return Protected(1, event)

        with ledger_at(where) as ledger:
            account = Account(ledger, "ann")
            assert account.pay(event, draw).value == 1
            broken()
            for _ in range(2):
                with pytest.raises(LedgerError, match="cannot use the ledger"):
                    account.pay(event, draw)
            assert drawn == [1]

    def test_what_was_drawn_is_kept_back_where_it_cannot_be_committed(
        self, where: str, broken: Callable[[], None]
    ) -> None:
        event = EncryptedCall(model="tiny", rounds=1, bytes_up=1, bytes_down=1)

        def draw_while_it_breaks() -> Protected[int]:
            broken()
            return Protected(1, event)

        with ledger_at(where) as ledger, pytest.raises(LedgerError, match="cannot use the ledger"):
            Account(ledger, "ann").pay(event, draw_while_it_breaks)


def ledger_at(where: str) -> Ledger:
    return RedisLedger(where) if "://" in where else SqliteLedger(where)


class TestSqlite(LedgerProcessesContract):
    @pytest.fixture
    def where(self) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="fhe-llm-ledger-", dir=IN_MEMORY) as folder:
            yield str(Path(folder) / "ledger.db")

    @pytest.fixture
    def crash(self) -> Callable[[Spenders], None]:
        return Spenders.kill_all

    @pytest.fixture
    def broken(self, where: str) -> Callable[[], None]:
        return lambda: Path(where).rename(f"{where}.gone")


class TestRedis(LedgerProcessesContract):
    @pytest.fixture
    def server(self) -> Iterator[RedisProcess]:
        with redis_server() as server:
            yield server

    @pytest.fixture
    def where(self, server: RedisProcess) -> str:
        return server.url

    @pytest.fixture
    def crash(self, server: RedisProcess) -> Callable[[Spenders], None]:
        def crash(spenders: Spenders) -> None:
            server.kill()
            spenders.kill(0)
            server.start()

        return crash

    @pytest.fixture
    def broken(self, server: RedisProcess) -> Callable[[], None]:
        return server.kill
