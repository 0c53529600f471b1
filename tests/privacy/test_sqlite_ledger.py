"""The SQLite ledger keeps the contract, and refuses whatever file it cannot trust."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forking import forked
from ledger_contract import LedgerContract
from ledger_kit import Open, history_sums, work

from fhe_llm.errors import LedgerError
from fhe_llm.privacy import sqlite_file
from fhe_llm.privacy.ledger import Budget
from fhe_llm.privacy.sqlite_ledger import SqliteLedger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "ledger.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    ledgers: list[SqliteLedger] = []

    def open_one(clock: Callable[[], int] | None = None) -> SqliteLedger:
        ledgers.append(SqliteLedger(path, clock=clock))
        return ledgers[-1]

    yield open_one
    for ledger in ledgers:
        ledger.close()


class TestSqliteLedger(LedgerContract):
    """The whole contract."""


def test_only_the_owner_may_read_it(path: Path, opened: Open) -> None:
    ledger = opened()
    ledger.charge("ann", work(1), key="k")
    modes = {found.name: oct(found.stat().st_mode & 0o777) for found in path.parent.iterdir()}
    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm"), "0o600")
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_charged_is_on_disk_before_the_call_returns(opened: Open) -> None:
    ledger = opened()
    assert isinstance(ledger, SqliteLedger)
    with ledger._connections.reading() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_many_may_make_it_at_once(path: Path) -> None:
    start = threading.Barrier(8)
    failed: list[Exception] = []

    def use(name: str) -> None:
        start.wait()
        try:
            with SqliteLedger(path) as ledger:
                ledger.charge("ann", work(1), key=name)
        except LedgerError as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with SqliteLedger(path) as ledger:
        assert ledger.balances("ann")[0].spent == 8
    assert [found.name for found in path.parent.iterdir()] == ["ledger.db"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE history SET change = '{}'",
        "DELETE FROM history",
        "INSERT OR REPLACE INTO history SELECT * FROM history",
        "UPDATE counters SET spent = spent - 100",
        "UPDATE counters SET spent = 1e300",
    ],
)
def test_the_history_only_grows(path: Path, opened: Open, statement: str) -> None:
    opened().charge("ann", work(5), key="k")
    with (
        contextlib.closing(sqlite3.connect(path)) as other,
        pytest.raises(sqlite3.IntegrityError, match=r"append-only|CHECK"),
    ):
        other.execute(statement)


def test_the_connections_of_threads_that_ended_are_used_again(opened: Open) -> None:
    ledger = opened()
    assert isinstance(ledger, SqliteLedger)
    for number in range(20):
        thread = threading.Thread(target=ledger.charge, args=("ann", work(1)), kwargs={"key": str(number)})
        thread.start()
        thread.join()
    assert len(ledger._connections._free) == 1


class TestFilesThatAreNotUsed:
    """Whatever is wrong, it is a LedgerError, and nothing is charged."""

    def refused(self, path: Path, match: str = "cannot use") -> None:
        """Opening or using it is refused."""
        with pytest.raises(LedgerError, match=match):
            self.filled(path)

    def filled(self, path: Path) -> None:
        with SqliteLedger(path) as ledger:
            for number in range(300):
                ledger.charge(f"p{number}", work(1), key=f"k{number}")

    def test_another_database(self, path: Path) -> None:
        path.parent.mkdir()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE history (sequence)")
        before = path.read_bytes()
        self.refused(path, "another file, or damaged")
        assert path.read_bytes() == before

    @pytest.mark.parametrize("content", [b"", b"hello, this is a diary\n" * 500, b"\x00" * 8192])
    def test_a_file_that_is_no_database(self, path: Path, content: bytes) -> None:
        path.parent.mkdir()
        path.write_bytes(content)
        self.refused(path)
        assert path.read_bytes() == content

    def test_a_directory(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.refused(path)

    def test_a_path_below_a_file(self, path: Path) -> None:
        path.parent.write_text("a file")
        self.refused(path)

    def test_one_of_a_newer_version(self, path: Path) -> None:
        self.filled(path)
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA user_version = 2")
        self.refused(path, "newer version")

    @pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
    def test_one_cut_short(self, path: Path, part: float) -> None:
        self.filled(path)
        os.truncate(path, int(path.stat().st_size * part))
        self.refused(path)

    @pytest.mark.parametrize("first", [0, 4096])
    def test_one_overwritten_from_a_page_on(self, path: Path, first: int) -> None:
        self.filled(path)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(first)
            file.write(b"\xa5" * (size - first))
        self.refused(path)

    def test_one_deleted_while_it_is_open(self, path: Path, opened: Open) -> None:
        ledger = opened()
        ledger.set_budget("ann", Budget("rounds", 5))
        path.unlink()
        for call in (lambda: ledger.charge("ann", work(1), key="k"), lambda: ledger.balances("ann")):
            with pytest.raises(LedgerError, match="No such file"):
                call()
        assert not path.exists()

    def test_one_replaced_while_it_is_open(self, path: Path, opened: Open) -> None:
        ledger = opened()
        ledger.charge("ann", work(1), key="k")
        path.rename(path.with_name("old"))
        opened()
        with pytest.raises(LedgerError, match="another file was put in its place"):
            ledger.charge("ann", work(1), key="l")

    def test_one_locked_by_somebody_who_does_not_let_go(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.filled(path)
        monkeypatch.setattr(sqlite_file, "WAIT_S", 0.05)
        with (
            contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
            SqliteLedger(path) as ledger,
        ):
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerError, match="database is locked"):
                ledger.charge("ann", work(1), key="k")
            other.execute("ROLLBACK")
            assert not ledger.charge("ann", work(1), key="k").replayed

    def test_one_that_may_only_be_read(self) -> None:
        with tempfile.TemporaryDirectory(prefix="fhe-llm-read-only-") as folder:
            path = Path(folder) / "ledger.db"
            self.filled(path)
            if os.geteuid() == 0:  # who may write to anything
                os.chown(path, 65534, -1)
                os.chown(folder, 65534, -1)
            path.chmod(0o400)
            Path(folder).chmod(0o500)

            def child() -> bytes:
                if os.geteuid() == 0:
                    os.setuid(65534)
                self.refused(path)
                self.refused(path.with_name("new.db"))
                return b"refused"

            try:
                with forked(child) as result:
                    assert result() == b"refused"
            finally:
                Path(folder).chmod(0o700)

    def test_a_full_disk_loses_nothing_that_was_told(self, path: Path) -> None:
        self.filled(path)

        def child() -> bytes:
            told = []
            limit = 2_000_000  # less than the log grows to before it is written back
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with SqliteLedger(path) as ledger, contextlib.suppress(LedgerError):
                for number in range(100_000):
                    told.append(ledger.charge("ann", work(1), key=f"full-{number}").key)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            return "\n".join(told).encode()

        with forked(child) as result:
            told = result().decode().split()
        assert 20 < len(told) < 10_000
        with SqliteLedger(path) as ledger:
            kept = [entry.key for entry in ledger.history("ann")]
            assert kept[: len(told)] == told
            assert len(kept) <= len(told) + 1  # the call that failed may have been written
            assert history_sums(ledger, "ann") == {"rounds": ledger.balances("ann")[0].spent}
            ledger.charge("ann", work(1), key="there is room again")
