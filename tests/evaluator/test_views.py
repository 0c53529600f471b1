"""Borrowed views see the words they are cut from, and only of arrays that flat offsets describe."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numba.core.errors import TypingError

from fhe_llm.evaluator.views import array_at, view


@njit
def _double(array: Any, offset: int, length: int) -> int:
    part = view(array, offset, length)
    for i in range(part.shape[0]):
        part[i] *= 2
    return int(part.size)


@given(st.integers(0, 59), st.integers(0, 60), st.sampled_from([np.uint32, np.uint64, np.float64]))
def test_a_view_is_a_flat_range_of_its_array(offset: int, length: int, kind: Any) -> None:
    length = min(length, 60 - offset)
    array = np.arange(60, dtype=kind).reshape(3, 4, 5)
    expected = np.arange(60, dtype=kind)
    expected[offset : offset + length] *= 2
    assert _double(array, offset, length) == length
    np.testing.assert_array_equal(array.reshape(-1), expected)


@njit
def _row(array: Any, i: int) -> Any:
    return view(array[i], 1, 2)[0]


def test_a_view_of_a_part() -> None:
    assert _row(np.arange(12, dtype=np.uint32).reshape(3, 4), 2) == 9


@njit
def _sum_at(address: int, like: Any) -> float:
    total = 0.0
    for row in array_at(address, like):
        total += row.sum()
    return total


def test_an_array_by_its_address_has_the_shape_of_another() -> None:
    like, other = np.zeros((3, 5)), np.arange(15.0).reshape(3, 5)
    before = sys.getrefcount(other), sys.getrefcount(like)
    assert _sum_at(other.ctypes.data, like) == 105
    assert (sys.getrefcount(other), sys.getrefcount(like)) == before


@pytest.mark.parametrize(
    "array", [np.arange(8)[::2], np.asfortranarray(np.arange(12).reshape(3, 4))], ids=["strided", "columns"]
)
def test_arrays_that_are_not_contiguous_do_not_compile(array: Any) -> None:
    with pytest.raises(TypingError, match="not C-contiguous"):
        _double(array, 0, 1)
    with pytest.raises(TypingError, match="not C-contiguous"):
        _sum_at(0, array)
