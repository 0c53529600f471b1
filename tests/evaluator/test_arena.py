"""Scratch arrays do not overlap, are aligned, and come from one block once a pass has been seen."""

from __future__ import annotations

import numpy as np
import pytest

from fhe_llm.evaluator.arena import Arena

SHAPES = [(3, 5), (1,), (2, 2, 16), (7, 64), (0, 4)]


def test_arrays_of_a_second_pass_share_one_block() -> None:
    arena = Arena()
    for _ in range(3):
        arrays = [arena.words(*shape) for shape in SHAPES]
        for i, array in enumerate(arrays):
            array[...] = i
        for i, (array, shape) in enumerate(zip(arrays, SHAPES, strict=True)):
            assert array.shape == shape
            assert array.dtype == np.uint32
            assert array.flags.c_contiguous
            assert (array == i).all()
        arena.clear()
    arrays = [arena.words(*shape) for shape in SHAPES]
    bases = {id(array.base.base if array.base.base is not None else array.base) for array in arrays}
    assert len(bases) == 1
    assert all(array.ctypes.data % 64 == 0 for array in arrays if array.size)


def test_a_larger_pass_gets_memory_of_its_own() -> None:
    arena = Arena()
    small = arena.words(8)
    arena.clear()
    small, large = arena.words(8), arena.words(4096)
    small[:], large[:] = 1, 2
    assert (small == 1).all()
    arena.clear()
    assert np.shares_memory(arena.words(8), arena._block)
    assert np.shares_memory(arena.words(4096), arena._block)


def test_clearing_asks_for_no_memory() -> None:
    arena = Arena()
    arena.words(4096)
    arena.clear()
    assert len(arena._block) == 0  # an evaluation that has its replies must not fail for the next one's sake
    assert np.shares_memory(arena.words(1), arena._block)
    assert len(arena._block) >= 4 * 4096


@pytest.mark.parametrize("kind", [np.uint64, np.int32, np.float64, np.uint8])
def test_other_kinds_of_numbers(kind: type) -> None:
    arena = Arena()
    for _ in range(2):
        arena.array(np.uint8, 3)
        numbers = arena.array(kind, 5, 7)
        numbers[...] = 1
        assert numbers.dtype == kind
        assert numbers.shape == (5, 7)
        assert numbers.ctypes.data % 64 == 0
        arena.clear()
