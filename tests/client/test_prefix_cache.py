"""The prefix cache: what every store must do, and generations that use it."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_kit import IDENTITY, LAYOUT, filled, loaded, scope, whole
from test_generation import LAYERS, expected, run, task

from fhe_llm.client.prefix_cache import FIRST_BLOCK, PrefixCache
from fhe_llm.client.prefix_store import DiskStore, MemoryStore
from fhe_llm.client.sampling import RequestError
from fhe_llm.models.kv_cache import KVCache


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

    @pytest.mark.parametrize("ending", ["distrust", "clear"])
    def test_a_running_conversation_keeps_nothing_once_the_cache_was_emptied(
        self, tmp_path: Path, ending: str
    ) -> None:
        ids = list(range(40))
        with self.make(tmp_path) as cache:
            running, failing = scope(cache), scope(cache)
            running.store(ids[:20], filled(ids[:20]))
            failing.distrust() if ending == "distrust" else cache.clear()
            for late in (running, failing):
                late.store(ids, filled(ids))
                assert loaded(scope(cache), ids) == 0
            scope(cache).store(ids, filled(ids))  # one that began since
            assert loaded(scope(cache), [*ids, 1]) == 40

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


@pytest.mark.parametrize("bad", [{"max_bytes": 0}, {"ttl": 0}, {"ttl": float("nan")}, {"passphrase": "x"}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="cannot make the prefix cache"):
        PrefixCache(**bad)


def test_a_cache_is_not_copied_and_shows_no_secret(tmp_path: Path) -> None:
    with PrefixCache(tmp_path) as cache:
        assert repr(cache) == f"PrefixCache({str(tmp_path)!r})"
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
