"""The register tile is exact, also where its sums are largest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from fhe_llm.evaluator.packed_tile import LAZY_PRODUCTS, TILE_COLUMNS, TILE_ROWS, multiply_tile
from fhe_llm.params import PRESETS


@njit
def _tile(v: Any, x: Any, out: Any, q: Any, q_inverse: Any, fold: Any) -> None:
    depth = v.shape[1]
    multiply_tile(
        v.reshape(-1), 0, depth, x.reshape(-1), 0, depth, out.reshape(-1), 0, out.shape[1], q, q_inverse, fold
    )


@pytest.mark.parametrize("prime", sorted({q for p in PRESETS.values() for q in p.data_primes}))
@pytest.mark.parametrize("depth", [1, LAZY_PRODUCTS, LAZY_PRODUCTS + 1, 144, 384])
@pytest.mark.parametrize("extreme", ["none", "same", "opposite"])
def test_tile_is_exact(prime: int, depth: int, extreme: str) -> None:
    half = prime // 2
    rng = np.random.default_rng()
    v = rng.integers(-half, half + 1, (TILE_ROWS, depth)).astype(np.int32)
    x = rng.integers(-half, half + 1, (depth, TILE_COLUMNS)).astype(np.int32)
    if extreme != "none":
        v[:], x[:] = half, half if extreme == "same" else -half
    out = np.zeros((TILE_ROWS, TILE_COLUMNS), dtype=np.uint32)
    fold = pow(2, 32, prime)
    fold -= prime if fold > half else 0
    _tile(v, x, out, np.uint32(prime), np.uint32(pow(prime, -1, 1 << 32)), np.int32(fold))
    expected = (v.astype(object) @ x.astype(object)) * pow(1 << 32, -1, prime) % prime
    np.testing.assert_array_equal(out, expected.astype(np.uint32))
