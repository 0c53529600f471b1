"""The prefix cache: what every store must do, what a hostile folder cannot do, and generations that use it."""

from __future__ import annotations

import itertools
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import LAYERS, expected, run, task

from fhe_llm.client.prefix_cache import BLOCK, FIRST_BLOCK, PrefixCache, PrefixScope
from fhe_llm.client.prefix_store import DiskStore, MemoryStore
from fhe_llm.client.sampling import RequestError
from fhe_llm.errors import KeyRingError, WrongPassphraseError
from fhe_llm.models.kv_cache import KVCache

LAYOUT = (2, 3, 4)
IDENTITY = {"model": "m", "bundle": "b", "preset": "default", "proxy": "http://p"}


def scope(cache: PrefixCache, **identity: str) -> PrefixScope:
    return cache.scope(LAYOUT, **(IDENTITY | identity))


def filled(ids: Sequence[int]) -> KVCache:
    """A cache whose every number tells layer and token."""
    cache = KVCache(*LAYOUT, 1000)
    for layer in range(LAYOUT[0]):
        rows = np.broadcast_to(np.array(ids, np.float32)[:, None, None], (len(ids), *LAYOUT[1:]))
        cache.write(layer, rows + 1000 * layer, -rows - layer)
    cache.commit(len(ids))
    return cache


def loaded(where: PrefixScope, ids: Sequence[int]) -> int:
    """How much of ``ids`` is known; checks that it is right to the bit."""
    cache = KVCache(*LAYOUT, 1000)
    count = where.load(ids, cache)
    assert cache.length == count <= max(0, len(ids) - 1)
    np.testing.assert_array_equal(cache.span(0, count), filled(ids).span(0, count))
    return count


def whole(count: int) -> int:
    """The end of the last whole block within ``count`` tokens."""
    return 0 if count < FIRST_BLOCK else count - (count - FIRST_BLOCK) % BLOCK


class Contract:
    """What a prefix cache does, wherever its entries lie."""

    def make(self, folder: Path, **limits: Any) -> PrefixCache:
        raise NotImplementedError

    def test_a_stored_prefix_comes_back_to_the_bit(self, tmp_path: Path) -> None:
        ids = list(range(50))
        with self.make(tmp_path) as cache:
            assert loaded(scope(cache), ids) == 0
            scope(cache).store(ids, filled(ids))
            assert loaded(scope(cache), [*ids, 7, 8]) == whole(50)
            assert loaded(scope(cache), ids) == whole(49)  # one token is always run
            assert loaded(scope(cache), [*ids[:30], 99, *ids[31:]]) == whole(30)
            assert loaded(scope(cache), [99, *ids[1:]]) == 0

    def test_conversations_share_what_they_begin_with(self, tmp_path: Path) -> None:
        first, second = [*range(40), 1, 2, 3, 4], [*range(40), 9, 8, 7, 6]
        with self.make(tmp_path) as cache:
            scope(cache).store(first, filled(first))
            scope(cache).store(second, filled(second))
            assert loaded(scope(cache), [*first, 5]) == loaded(scope(cache), [*second, 5]) == 44

    def test_a_short_prefix_is_not_kept(self, tmp_path: Path) -> None:
        ids = list(range(FIRST_BLOCK - 1))
        with self.make(tmp_path) as cache:
            scope(cache).store(ids, filled(ids))
            assert loaded(scope(cache), [*ids, 1]) == 0

    @pytest.mark.parametrize("other", [{name: "another"} for name in IDENTITY])
    def test_another_model_bundle_preset_or_proxy_is_another_cache(
        self, tmp_path: Path, other: dict[str, str]
    ) -> None:
        ids = list(range(40))
        with self.make(tmp_path) as cache:
            scope(cache).store(ids, filled(ids))
            assert loaded(scope(cache, **other), ids) == 0
            assert cache.scope((3, 2, 4), **IDENTITY).load(ids, KVCache(3, 2, 4, 100)) == 0

    def test_a_named_proxy_may_change_its_address(self, tmp_path: Path) -> None:
        ids = list(range(40))
        with self.make(tmp_path, proxy="ours") as cache:
            scope(cache).store(ids, filled(ids))
            assert loaded(scope(cache, proxy="http://p:2"), [*ids, 1]) == 40

    def test_clear_forgets(self, tmp_path: Path) -> None:
        ids = list(range(40))
        with self.make(tmp_path) as cache:
            scope(cache).store(ids, filled(ids))
            cache.clear()
            assert loaded(scope(cache), ids) == 0

    def test_the_byte_limit_drops_the_least_recently_used(self, tmp_path: Path) -> None:
        one = 8 * int(np.prod(LAYOUT)) * 40
        used, idle = list(range(40)), list(range(100, 140))
        with self.make(tmp_path, max_bytes=200_000 + 8 * one) as cache:
            here = scope(cache)
            for ids in (used, idle):
                here.store(ids, filled(ids))
            for first in range(200, 20_000, 100):
                assert loaded(here, used) == whole(39)
                ids = list(range(first, first + 40))
                here.store(ids, filled(ids))
            assert loaded(here, idle) == 0

    def test_entries_expire(self, tmp_path: Path) -> None:
        ids = list(range(40))
        with self.make(tmp_path, ttl=1e-9) as cache:
            scope(cache).store(ids, filled(ids))
            assert loaded(scope(cache), ids) == 0


def _common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x for x, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


@pytest.mark.parametrize("on_disk", [False, True])
@settings(max_examples=15, deadline=None)
@given(prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), max_size=5))
def test_the_longest_known_prefix_is_found(
    on_disk: bool, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with PrefixCache(tmp_path_factory.mktemp("cache") if on_disk else None) as cache:
        for n, ids in enumerate(prompts):
            common = [whole(len(_common(ids, old))) for old in prompts[:n]]
            assert loaded(scope(cache), ids) == min(max(common, default=0), whole(len(ids) - 1))
            scope(cache).store(ids, filled(ids))


class TestMemory(Contract):
    def make(self, folder: Path, **limits: Any) -> PrefixCache:
        cache = PrefixCache(**limits)
        assert isinstance(cache._store, MemoryStore)
        return cache

    def test_closing_forgets(self) -> None:
        ids = list(range(40))
        cache = PrefixCache()
        scope(cache).store(ids, filled(ids))
        cache.close()
        assert loaded(scope(cache), ids) == 0


class TestDisk(Contract):
    def make(self, folder: Path, **limits: Any) -> PrefixCache:
        cache = PrefixCache(folder / "prefixes", **limits)
        assert isinstance(cache._store, DiskStore)
        return cache

    def test_entries_survive_closing(self, tmp_path: Path) -> None:
        ids = list(range(40))
        with self.make(tmp_path) as cache:
            scope(cache).store(ids, filled(ids))
        with self.make(tmp_path) as cache:
            assert loaded(scope(cache), [*ids, 1]) == 40


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
        found = database.execute("SELECT rowid, key, value FROM Cache ORDER BY rowid DESC").fetchall()
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


WRITER = """
import sys, numpy as np
sys.path[:0] = {path!r}
from test_prefix_cache import PrefixCache, scope, filled, loaded
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


@pytest.mark.parametrize("bad", [{"max_bytes": 0}, {"ttl": 0}, {"ttl": float("nan")}, {"passphrase": "x"}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="cannot make the prefix cache"):
        PrefixCache(**bad)


def test_a_cache_is_not_copied_and_shows_no_secret(folder: Path) -> None:
    with PrefixCache(folder) as cache:
        assert repr(cache) == f"PrefixCache({str(folder)!r})"
        with pytest.raises(TypeError, match="cannot copy"):
            pickle.dumps(cache)


def sent(rounds: Sequence[Any]) -> list[int]:
    """Tokens of every pass."""
    return [len(r.x) for r in rounds if r.layer == "layer.0"]


def prefixed(cache: PrefixCache, prompt: Sequence[int], **how: Any) -> Any:
    job = task(prompt, **how)
    object.__setattr__(job, "prefix", cache.scope((1, 1, 1), model="hash"))
    return run(job)


@pytest.mark.parametrize("pad_to", [None, 16, 64])
@pytest.mark.parametrize("length", [5, 16, 17, 40, 100, 290])
def test_a_cached_prompt_gives_the_same_tokens_in_fewer(length: int, pad_to: int | None) -> None:
    prompt = [(11 * i) % 50 for i in range(length)]
    with PrefixCache() as cache:
        cold, _, first = prefixed(cache, prompt, max_tokens=6, pad_to=pad_to)
        warm, _, second = prefixed(cache, prompt, max_tokens=6, pad_to=pad_to)
    assert cold.token_ids == warm.token_ids == tuple(expected(prompt, 6))
    assert (cold.cached_tokens, warm.cached_tokens) == (0, whole(length - 1))
    left, bucket = length - warm.cached_tokens, pad_to or 1
    assert sum(sent(second)) - 5 == min(-(-left // bucket) * bucket, 300 - warm.cached_tokens)
    assert sum(sent(second)) <= sum(sent(first))


def test_the_next_turn_finds_the_answer_too() -> None:
    prompt = [(11 * i) % 50 for i in range(20)]
    with PrefixCache() as cache:
        first, _, _ = prefixed(cache, prompt, max_tokens=21)
        turn = [*prompt, *first.token_ids, 3, 1, 4]
        second, _, _ = prefixed(cache, turn, max_tokens=4)
    assert second.cached_tokens == whole(40)  # the last token was chosen, never run
    assert list(second.token_ids) == expected(turn, 4)


def test_an_abandoned_generation_leaves_its_prompt() -> None:
    prompt = [(11 * i) % 50 for i in range(20)]
    with PrefixCache() as cache:
        job = task(prompt, max_tokens=50)
        object.__setattr__(job, "prefix", cache.scope((1, 1, 1), model="hash"))
        with pytest.raises(InterruptedError):
            run(job, _interrupt_after(LAYERS + 1))
        assert prefixed(cache, prompt, max_tokens=1)[0].cached_tokens == whole(19)


def _interrupt_after(steps: int) -> Callable[[Any], None]:
    left = iter(range(steps))

    def each(_: Any) -> None:
        if next(left, None) is None:
            raise InterruptedError

    return each
