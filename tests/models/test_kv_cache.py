"""The KV cache against a plain list of positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.errors import ContextOverflowError
from fhe_llm.models.kv_cache import KVCache

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 90)),
        st.tuples(st.just("abandon"), st.integers(1, 90)),
        st.tuples(st.just("truncate"), st.integers(0, 200)),
        st.tuples(st.just("prefix"), st.integers(0, 200)),
    ),
    max_size=8,
)


@given(steps=STEPS)
def test_any_sequence_of_operations(steps: list[tuple[str, int]]) -> None:
    cache, kept, counter = KVCache(2, 3, 4, 1000), list[float](), 0
    for operation, n in steps:
        if operation in ("append", "abandon"):
            fresh = [float(counter + j) for j in range(n)]
            counter += n
            rows = np.broadcast_to(np.array(fresh, np.float32)[:, None, None], (n, 3, 4))
            for layer in range(2 if operation == "append" else 1):
                cache.write(layer, rows + layer, -rows)
            if operation == "append":
                cache.commit(n)
                kept += fresh
        elif operation == "truncate":
            cache.truncate(min(n, len(kept)))
            kept = kept[:n]
        else:
            cache, kept = cache.prefix(min(n, len(kept))), kept[:n]
        assert cache.length == len(kept)
        for layer in range(2):
            keys, values = cache.read(layer, cache.length)
            np.testing.assert_array_equal(keys, np.broadcast_to(np.array(kept)[:, None] + layer, keys.shape))
            np.testing.assert_array_equal(values, np.broadcast_to(-np.array(kept)[:, None], values.shape))


def test_copies_are_independent() -> None:
    cache = KVCache(1, 1, 2, 10)
    cache.write(0, np.ones((3, 1, 2), np.float32), np.ones((3, 1, 2), np.float32))
    cache.commit(3)
    copy = cache.copy()
    cache.truncate(0)
    cache.write(0, np.zeros((3, 1, 2), np.float32), np.zeros((3, 1, 2), np.float32))
    assert copy.length == 3
    assert copy.read(0, 3)[0].sum() == 6


def test_bounds() -> None:
    cache = KVCache(1, 1, 2, 4)
    with pytest.raises(ContextOverflowError, match=r"5 positions.*holds 4"):
        cache.write(0, np.ones((5, 1, 2), np.float32), np.ones((5, 1, 2), np.float32))
    for length in (-1, 1):
        with pytest.raises(ValueError, match="holds 0"):
            cache.truncate(length)
        with pytest.raises(ValueError, match="holds 0"):
            cache.prefix(length)


def test_a_span_copied_into_another_cache_is_the_same_positions() -> None:
    rng, cache = np.random.default_rng(), KVCache(2, 3, 4, 100)
    for layer in range(2):
        cache.write(layer, rng.random((70, 3, 4), np.float32), rng.random((70, 3, 4), np.float32))
    cache.commit(70)
    other = KVCache(2, 3, 4, 100)
    for start, stop in ((0, 5), (5, 69)):
        other.extend(cache.span(start, stop))
    assert other.length == 69
    np.testing.assert_array_equal(other.span(0, 69), cache.span(0, 69))
    np.testing.assert_array_equal(other.read(1, 69)[1], cache.read(1, 69)[1])


def test_a_span_outside_the_cache_is_refused() -> None:
    cache = KVCache(1, 1, 1, 8)
    with pytest.raises(ValueError, match="cannot copy positions"):
        cache.span(0, 1)
    with pytest.raises(ContextOverflowError):
        cache.extend(np.zeros((2, 1, 1, 9, 1), np.float32))
