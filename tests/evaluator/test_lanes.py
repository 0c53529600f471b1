"""Every instruction on word vectors does to each lane what its docstring says, at the ends of the range too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from fhe_llm.evaluator.lanes import (
    SUMS,
    WORDS,
    add,
    even,
    folded,
    high_product,
    high_words,
    load,
    load_sums,
    low_product,
    minimum,
    multiply_add,
    multiply_low,
    no_sums,
    odd,
    spread,
    spread_sum,
    store,
    store_first,
    store_high,
    store_sums,
    sub,
    will_read_once,
)

EDGES = (0, 1, 2, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)
LOW = (1 << 32) - 1


def words(count: int = WORDS) -> Any:
    """Random words, with some from the ends of the range among them."""
    rng = np.random.default_rng()
    edges = rng.choice(np.array(EDGES, dtype=np.uint32), count)
    return np.where(rng.random(count) < 0.3, edges, rng.integers(0, 1 << 32, count)).astype(np.uint32)


def sums() -> Any:
    return words(2 * SUMS).view(np.uint64).copy()


def integers(array: Any) -> Any:
    """Python's integers, which do not wrap around."""
    return array.astype(object)


def on_words(operation: Any) -> Callable[[Any, Any, Any], None]:
    @njit
    def run(x: Any, y: Any, out: Any) -> None:
        store(out, 0, operation(load(x, 0), load(y, 0)))

    return run  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("operation", "definition"),
    [
        (add, lambda x, y: (x + y) & LOW),
        (sub, lambda x, y: (x - y) & LOW),
        (low_product, lambda x, y: (x * y) & LOW),
        (high_product, lambda x, y: (x * y) >> 32),
        (minimum, np.minimum),
    ],
    ids=["add", "sub", "low_product", "high_product", "minimum"],
)
def test_operations_on_words(operation: Any, definition: Callable[[Any, Any], Any]) -> None:
    run, out = on_words(operation), np.empty(WORDS, dtype=np.uint32)
    for _ in range(200):
        x, y = words(), words()
        run(x, y, out)
        np.testing.assert_array_equal(integers(out), definition(integers(x), integers(y)))


@njit
def _move(source: Any, target: Any, i: int, j: int) -> None:
    store(target, j, load(source, i))


@njit
def _move_sums(source: Any, target: Any, i: int, j: int) -> None:
    store_sums(target, j, load_sums(source, i))


@pytest.mark.parametrize(
    ("move", "kind", "count"), [(_move, np.uint32, WORDS), (_move_sums, np.uint64, SUMS)]
)
def test_loads_and_stores_take_any_flat_offset(move: Any, kind: Any, count: int) -> None:
    source = np.arange(3 * 4 * count, dtype=kind).reshape(3, 4, count)
    for i, j in ((0, 0), (1, 3), (2 * count + 5, 7), (11 * count, 11 * count)):
        target = np.zeros_like(source)
        move(source, target, i, j)
        expected = np.zeros(source.size, dtype=kind)
        expected[j : j + count] = source.reshape(-1)[i : i + count]
        np.testing.assert_array_equal(target.reshape(-1), expected)


@njit
def _spread(word: Any, total: Any, out: Any, out_sums: Any) -> None:
    store(out, 0, spread(word))
    store_sums(out_sums, 0, spread_sum(total))
    store_sums(out_sums, SUMS, no_sums())


def test_one_value_in_all_lanes() -> None:
    out, out_sums = np.empty(WORDS, dtype=np.uint32), np.empty(2 * SUMS, dtype=np.uint64)
    _spread(np.uint32(0xFFFFFFFE), np.uint64(0xFFFFFFFF00000001), out, out_sums)
    assert (out == 0xFFFFFFFE).all()
    assert (out_sums[:SUMS] == 0xFFFFFFFF00000001).all()
    assert (out_sums[SUMS:] == 0).all()


@njit
def _halves(x: Any, evens: Any, odds: Any) -> None:
    store_sums(evens, 0, even(load(x, 0)))
    store_sums(odds, 0, odd(load(x, 0)))


@njit
def _joined(evens: Any, odds: Any, out: Any) -> None:
    store(out, 0, high_words(load_sums(evens, 0), load_sums(odds, 0)))


def test_halves_and_back() -> None:
    x, evens, odds = words(), np.empty(SUMS, dtype=np.uint64), np.empty(SUMS, dtype=np.uint64)
    _halves(x, evens, odds)
    np.testing.assert_array_equal(evens & np.uint64(LOW), x[::2])
    np.testing.assert_array_equal(odds, x[1::2])
    out = np.empty(WORDS, dtype=np.uint32)
    _joined(evens << np.uint64(32) | np.uint64(7), odds << np.uint64(32) | np.uint64(9), out)
    np.testing.assert_array_equal(out, x)


@njit
def _on_sums(total: Any, x: Any, y: Any, out: Any) -> None:
    t, u, v = load_sums(total, 0), load_sums(x, 0), load_sums(y, 0)
    store_sums(out, 0, multiply_add(t, u, v))
    store_sums(out, SUMS, multiply_low(u, v))
    store_sums(out, 2 * SUMS, folded(t, u))


def test_operations_on_sums() -> None:
    out = np.empty(3 * SUMS, dtype=np.uint64)
    for _ in range(200):
        total, x, y = sums(), sums(), sums()
        _on_sums(total, x, y, out)
        t, u, v = integers(total), integers(x), integers(y)
        np.testing.assert_array_equal(integers(out[:SUMS]), (t + (u & LOW) * (v & LOW)) % 2**64)
        np.testing.assert_array_equal(integers(out[SUMS : 2 * SUMS]) & LOW, (u & LOW) * (v & LOW) & LOW)
        np.testing.assert_array_equal(integers(out[2 * SUMS :]), np.minimum(t, (t - u) % 2**64))


@njit
def _store_parts(total: Any, x: Any, high: Any, first: Any) -> None:
    store_high(high, 3, load_sums(total, 0))
    store_first(first, 3, load(x, 0))


def test_half_vectors_leave_the_rest_alone() -> None:
    total, x = sums(), words()
    high, first = np.full(WORDS, 5, dtype=np.uint32), np.full(WORDS, 5, dtype=np.uint32)
    _store_parts(total, x, high, first)
    for out, part in ((high, (total >> np.uint64(32)).astype(np.uint32)), (first, x[:SUMS])):
        np.testing.assert_array_equal(out[3 : 3 + SUMS], part)
        assert (np.delete(out, range(3, 3 + SUMS)) == 5).all()


@njit
def _ask(x: Any, offset: int) -> None:
    will_read_once(x, offset)


def test_asking_ahead_changes_nothing_even_past_the_end() -> None:
    x = words()
    before = x.copy()
    for offset in (0, WORDS, 1 << 20):
        _ask(x, offset)
    np.testing.assert_array_equal(x, before)


def test_arrays_that_are_not_contiguous_do_not_compile() -> None:
    with pytest.raises(TypingError, match="not C-contiguous"):
        _move(words(2 * WORDS)[::2], words(), 0, 0)
    with pytest.raises(TypingError, match="not C-contiguous"):
        _move(words(), np.asfortranarray(words(4 * WORDS).reshape(WORDS, 4)), 0, 0)
