"""Every instruction on vectors of doubles does to each lane what its docstring says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fhe_llm.evaluator.float_lanes import (
    FLOATS,
    load_floats,
    load_singles,
    minus,
    nearest,
    plus,
    spread_float,
    store_floats,
    times,
    to_residues,
)
from fhe_llm.evaluator.lanes import spread_sum, store_sums


@njit
def _compute(x: Any, y: Any, number: float, out: Any) -> None:
    u, v = load_floats(x, 3), load_floats(y, 0)
    store_floats(out, 0, plus(u, v))
    store_floats(out, FLOATS, minus(u, v))
    store_floats(out, 2 * FLOATS, times(u, v))
    store_floats(out, 3 * FLOATS, nearest(u))
    store_floats(out, 4 * FLOATS, spread_float(number))


def test_arithmetic() -> None:
    rng = np.random.default_rng()
    for _ in range(100):
        x, y = rng.normal(scale=1e6, size=FLOATS + 3), rng.normal(size=FLOATS)
        out = np.empty((5, FLOATS))
        _compute(x, y, float(y[0]), out)
        u = x[3:]
        np.testing.assert_array_equal(out, [u + y, u - y, u * y, np.rint(u), np.full(FLOATS, y[0])])


def test_ties_go_to_even() -> None:
    x = np.array([0, 0, 0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2.0**50 + 0.5, 2.0**50 + 1.5])
    out = np.empty((5, FLOATS))
    _compute(x, x[:FLOATS], 0.0, out)
    np.testing.assert_array_equal(out[3], [0, 2, 2, 0, -2, -2, 2.0**50, 2.0**50 + 2])


@njit
def _singles(x: Any, offset: int, out: Any) -> None:
    store_floats(out, 0, load_singles(x, offset))


def test_singles_are_widened_exactly() -> None:
    x = np.random.default_rng().normal(size=(3, FLOATS)).astype(np.float32)
    out = np.empty(FLOATS)
    _singles(x, 5, out)
    np.testing.assert_array_equal(out, x.reshape(-1)[5 : 5 + FLOATS].astype(np.float64))


@njit
def _residues(x: Any, modulus: Any, out: Any) -> None:
    store_sums(out, 0, to_residues(load_floats(x, 0), spread_sum(modulus)))


def test_whole_numbers_to_residues() -> None:
    modulus = (1 << 30) - 35
    x = np.array([0, 1, -1, modulus - 1, 1 - modulus, -modulus, 12345, -54321], dtype=np.float64)
    out = np.empty(FLOATS, dtype=np.uint64)
    _residues(x, np.uint64(modulus), out)
    np.testing.assert_array_equal(out, x.astype(np.int64) % modulus)
