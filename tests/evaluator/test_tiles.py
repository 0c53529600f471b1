"""Tiles are transposed word for word, wherever their columns begin, and nothing beside them is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from fhe_llm.evaluator.tiles import TILE, gather_tile, scatter_tile

COLUMNS, STRIDE = 40, 23


@njit
def _gather(source: Any, starts: Any, first: int, column: int, target: Any, offset: int, stride: int) -> None:
    gather_tile(source, starts, first, column, target, offset, stride)


@njit
def _scatter(
    source: Any, offset: int, stride: int, target: Any, starts: Any, first: int, column: int
) -> None:
    scatter_tile(source, offset, stride, target, starts, first, column)


def starts() -> Any:
    """Where the columns of a buffer begin, in any order, with room between some."""
    return (np.random.default_rng().permutation(COLUMNS) * (TILE + 9)).astype(np.int32)


def tiles() -> Any:
    return np.random.default_rng().integers(0, 1 << 32, (COLUMNS, TILE + 9)).astype(np.uint32)


@pytest.mark.parametrize(("first", "column", "offset"), [(0, 0, 0), (9, 24, 5), (3, 7, 100)])
def test_gathering_and_scattering(first: int, column: int, offset: int) -> None:
    source, where = tiles(), starts()
    target = np.full(TILE * STRIDE + 200, 7, dtype=np.uint32)
    expected = target.copy()
    for j in range(TILE):
        for k in range(TILE):
            expected[offset + k * STRIDE + j] = source.reshape(-1)[where[column + j] + first + k]
    _gather(source, where, first, column, target, offset, STRIDE)
    np.testing.assert_array_equal(target, expected)

    back = np.full_like(source, 9)
    whole = back.reshape(-1).copy()
    for j in range(TILE):
        at = where[column + j] + first
        whole[at : at + TILE] = source.reshape(-1)[at : at + TILE]
    _scatter(target, offset, STRIDE, back, where, first, column)
    np.testing.assert_array_equal(back.reshape(-1), whole)


def test_arrays_that_are_not_contiguous_do_not_compile() -> None:
    with pytest.raises(TypingError, match="not C-contiguous"):
        _gather(tiles().T, starts(), 0, 0, np.zeros(TILE * TILE, dtype=np.uint32), 0, TILE)
    with pytest.raises(TypingError, match="not C-contiguous"):
        _scatter(np.zeros(TILE * TILE, dtype=np.uint32), 0, TILE, tiles().T, starts(), 0, 0)
