"""A prefix cache on disk: what a damaged, foreign or hostile folder cannot do, and processes that share one."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefix_kit import filled, loaded, scope, whole

from fhe_llm.client.prefix_cache import BLOCK, FIRST_BLOCK, PrefixCache
from fhe_llm.errors import KeyRingError, WrongPassphraseError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


IDS = list(range(60))


def stored(folder: Path, **how: Any) -> None:
    with PrefixCache(folder, **how) as cache:
        scope(cache).store(IDS, filled(IDS))


def known(folder: Path, **how: Any) -> int:
    with PrefixCache(folder, **how) as cache:
        return loaded(scope(cache), [*IDS, 1])


def rows(folder: Path) -> list[tuple[int, bytes, bytes]]:
    with sqlite3.connect(folder / "blocks" / "cache.db") as database:
        found = database.execute(
            "SELECT rowid, key, value FROM Cache WHERE length(key) = 32 ORDER BY rowid DESC"
        ).fetchall()
    database.close()
    return found


def change(folder: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(folder / "blocks" / "cache.db") as database:
        database.execute(statement, values)
    database.close()


def test_nothing_on_disk_tells_tokens_or_entries(folder: Path) -> None:
    stored(folder)
    names = {key for _, key, _ in rows(folder)}
    everything = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert len(names) == 1 + (60 - FIRST_BLOCK) // BLOCK
    plain = filled(IDS).span(0, 60)
    for layer in range(2):
        assert plain[0, layer, 0, 20:24].tobytes() not in everything
        assert plain[1, layer, 0, 20:24].tobytes() not in everything
    assert np.array(IDS[16:20], "<u4").tobytes() not in everything
    other = folder.with_name("other")
    stored(other)
    assert not names & {key for _, key, _ in rows(other)}  # names are keyed


def test_the_key_is_private_and_may_have_a_passphrase(folder: Path) -> None:
    stored(folder, passphrase="correct horse")
    assert (folder / "prefix-cache.key").stat().st_mode & 0o077 == 0
    assert known(folder, passphrase="correct horse") == 60
    for wrong in (None, "wrong"):
        with pytest.raises(WrongPassphraseError, match="passphrase"):
            PrefixCache(folder, passphrase=wrong)


def test_a_key_that_others_can_read_is_refused(folder: Path) -> None:
    stored(folder)
    (folder / "prefix-cache.key").chmod(0o644)
    with pytest.raises(KeyRingError, match="chmod 600"):
        PrefixCache(folder)


def test_a_damaged_key_is_replaced_and_the_entries_are_lost(folder: Path) -> None:
    stored(folder)
    (folder / "prefix-cache.key").write_bytes(b"FHEK damaged")
    assert known(folder) == 0
    stored(folder)
    assert known(folder) == 60


@pytest.mark.parametrize("block", [0, 3, 11])
@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_flipped_byte_costs_one_block_and_is_dropped(folder: Path, block: int, place: int) -> None:
    stored(folder)
    rowid, name, value = rows(folder)[block]
    spoilt = bytearray(value)
    spoilt[place] ^= 1
    change(folder, "UPDATE Cache SET value = ? WHERE rowid = ?", bytes(spoilt), rowid)
    assert known(folder) == (0 if block == 0 else FIRST_BLOCK + (block - 1) * BLOCK)
    assert name not in {key for _, key, _ in rows(folder)}
    stored(folder)
    assert known(folder) == 60


@pytest.mark.parametrize("value", [b"", b"x", bytes(27), bytes(5000), "text", 7, None])
def test_a_truncated_or_foreign_value_is_a_miss(folder: Path, value: Any) -> None:
    stored(folder)
    change(folder, "UPDATE Cache SET value = ?", value)
    assert known(folder) == 0


def test_an_entry_under_another_name_is_a_miss(folder: Path) -> None:
    stored(folder)
    (_, _, first), (_, _, second), (rowid, _, third) = rows(folder)[:3]
    assert len(second) == len(third) != len(first)
    change(folder, "UPDATE Cache SET value = ? WHERE rowid = ?", second, rowid)
    assert known(folder) == FIRST_BLOCK + BLOCK


def test_a_foreign_key_finds_nothing(folder: Path, tmp_path: Path) -> None:
    stored(folder)
    stored(tmp_path / "other")
    (folder / "prefix-cache.key").write_bytes((tmp_path / "other" / "prefix-cache.key").read_bytes())
    assert known(folder) == 0


class Bomb:
    """Fails the test when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (pytest.fail, ("a row was unpickled",))


def test_a_row_is_never_unpickled_and_its_path_never_followed(folder: Path, tmp_path: Path) -> None:
    stored(folder)
    victim = tmp_path / "victim"
    victim.write_bytes(pickle.dumps(Bomb()))
    for mode in (2, 3, 4):
        change(folder, "UPDATE Cache SET mode = ?, filename = ?, value = NULL", mode, str(victim))
        assert known(folder) == 0
    change(folder, "UPDATE Cache SET mode = 4, filename = NULL, value = ?", pickle.dumps(Bomb()))
    change(folder, "UPDATE Cache SET raw = 0 WHERE rowid % 2")
    assert known(folder) == 0
    change(folder, "UPDATE Cache SET filename = ?, expire_time = 1", str(victim))
    with PrefixCache(folder) as cache:
        scope(cache).store(IDS, filled(IDS))
        cache.clear()
    assert victim.exists()


@pytest.mark.parametrize("size", [0, 100, 5000, None])
def test_a_damaged_database_is_replaced(folder: Path, size: int | None) -> None:
    stored(folder)
    database = folder / "blocks" / "cache.db"
    data = database.read_bytes()
    database.write_bytes(b"\xa5" * len(data) if size is None else data[:size])
    for log in folder.glob("blocks/cache.db-*"):
        log.unlink()
    assert known(folder) == 0
    stored(folder)
    assert known(folder) in (
        0,
        60,
    )  # a database cut in the middle may open, and stay a cache that knows nothing


def test_a_database_of_another_program_is_replaced(folder: Path) -> None:
    stored(folder)
    change(folder, "DROP TABLE Cache")
    change(folder, "CREATE TABLE Cache (other INTEGER)")
    assert known(folder) == 0
    stored(folder)
    assert known(folder) == 60


def test_a_locked_database_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    stored(folder)
    ticks = iter(range(0, 10**6, 61))
    monkeypatch.setattr("diskcache.core.time.time", ticks.__next__)  # its own patience is 60 s
    busy = sqlite3.connect(folder / "blocks" / "cache.db", isolation_level=None)
    busy.execute("BEGIN EXCLUSIVE")
    with PrefixCache(folder) as cache:
        assert cache.directory is None
    busy.execute("ROLLBACK")
    busy.close()
    assert "replacing" not in caplog.text
    monkeypatch.undo()
    assert known(folder) == 60


def test_a_database_damaged_in_use_is_a_cache_that_knows_nothing(folder: Path) -> None:
    stored(folder)
    with PrefixCache(folder) as cache:
        assert loaded(scope(cache), [*IDS, 1]) == 60
        cache._store.close()
        (folder / "blocks" / "cache.db").write_bytes(b"\xa5" * 40_000)
        assert loaded(scope(cache), [*IDS, 1]) == 0
        scope(cache).store(IDS, filled(IDS))
    assert known(folder) == 0


def test_a_folder_that_cannot_be_used_gives_a_cache_in_memory(tmp_path: Path, caplog: Any) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with PrefixCache(blocked / "prefixes") as cache:
        assert "stays in memory" in caplog.text
        assert cache.directory is None
        scope(cache).store(IDS, filled(IDS))
        assert loaded(scope(cache), [*IDS, 1]) == 60


def test_a_full_disk_is_a_miss(folder: Path) -> None:
    stored(folder)
    with PrefixCache(folder) as cache:
        pages = cache._store._cache._sql("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
        cache._store._cache._sql(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]
        more = list(range(500, 900))
        scope(cache).store(more, filled(more))
        assert loaded(scope(cache), [*IDS, 1]) == 60


def test_a_process_that_distrusts_the_folder_speaks_for_all(folder: Path) -> None:
    with PrefixCache(folder) as here, PrefixCache(folder) as there:
        running = scope(here)
        running.store(IDS[:20], filled(IDS[:20]))
        scope(there).distrust()
        running.store(IDS, filled(IDS))
        assert loaded(scope(here), IDS) == 0
        scope(here).store(IDS, filled(IDS))
        assert loaded(scope(there), [*IDS, 1]) == 60


def test_what_cannot_be_cleared_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    stored(folder)
    with PrefixCache(folder) as cache:
        monkeypatch.setattr(cache._store._cache, "clear", _locked)  # type: ignore[attr-defined]
        scope(cache).distrust()
        assert "does not work" in caplog.text
        assert loaded(scope(cache), IDS) == 0
        more = list(range(500, 540))
        scope(cache).store(more, filled(more))
        assert loaded(scope(cache), more) == 0


def _locked() -> None:
    raise sqlite3.OperationalError("database is locked")


WRITER = """
import sys, numpy as np
sys.path[:0] = {path!r}
from prefix_kit import PrefixCache, scope, filled, loaded
from pathlib import Path
with PrefixCache(Path({folder!r})) as cache:
    for turn in range(8):
        ids = [*range(30), *range({me} * 100, {me} * 100 + 4 * turn)]
        loaded(scope(cache), ids)
        scope(cache).store(ids, filled(ids))
"""


def test_processes_share_a_folder_from_its_first_moment(folder: Path) -> None:
    path = [str(Path(__file__).parent), *sys.path]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER.format(path=path, folder=str(folder), me=me)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in (1, 2, 3)
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert (writer.returncode, said) == (0, "")
    with PrefixCache(folder) as cache:
        for me in (1, 2, 3):
            assert loaded(scope(cache), [*range(30), *range(me * 100, me * 100 + 29)]) == whole(58)
