"""CKKS encoding (Cheon, Kim, Kim, Song, ASIACRYPT 2017, section 3.2) of complex slots; no key is involved.

A real polynomial m of degree below N is folded to a_n = m_n + i m_{n+N/2}. Modulo X^{N/2} - i its values at the roots
zeta^e, e = 1 (mod 4), are the slots (or their conjugates), so one complex transform of length N/2 suffices.

The transform is ours, operation by operation, and ``kernels/encode.cu`` repeats it: a coefficient that lies near a half
is then rounded alike wherever weights are encoded. A library's would differ from machine to machine in its last bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.evaluator.rns import slot_exponents


@dataclass(frozen=True, slots=True)
class EncodingTables:
    """``position[j]``: the transform's index of slot j; odd slots, whose exponents are 3 modulo 4, are conjugated.
    ``twist`` is zeta^k, [N/2]. For the transform: ``roots`` exp(-2 pi i k / (N/2)), [N/4, 2], ``untwist`` zeta^-k,
    [N/2, 2], and ``order[k]``, where it leaves its k-th value, [N/2]."""

    position: NDArray[np.intp]
    twist: NDArray[np.complex128]
    roots: NDArray[np.float64]
    untwist: NDArray[np.float64]
    order: NDArray[np.int32]


@lru_cache(maxsize=8)
def encoding_tables(ring_degree: int) -> EncodingTables:
    """Tables of one ring, built once."""
    exponents = slot_exponents(ring_degree)[: ring_degree // 2]
    one_mod_four = np.where(exponents % 4 == 1, exponents, 2 * ring_degree - exponents)
    half, bits = ring_degree // 2, ring_degree.bit_length() - 2
    roots = np.exp(-2j * np.pi * np.arange(half // 2) / half)
    twist = np.exp(1j * np.pi * np.arange(half) / ring_degree)
    order = np.array([int(f"{k:0{bits}b}"[::-1], 2) for k in range(half)], dtype=np.int32)
    return EncodingTables(
        (one_mod_four - 1) // 4,
        twist,
        roots.view(np.float64).reshape(-1, 2),
        np.conj(twist).view(np.float64).reshape(-1, 2),
        order,
    )


def slots_to_coefficients(slots: NDArray[np.complex128], scale: float) -> NDArray[np.float64]:
    """Coefficients [..., N], unrounded, of the polynomial whose slots [..., N/2] are ``scale`` times those given."""
    half = slots.shape[-1]
    tables = encoding_tables(2 * half)
    values = np.empty_like(slots, dtype=np.complex128, order="C")
    values[..., tables.position[::2]] = slots[..., ::2]
    values[..., tables.position[1::2]] = np.conj(slots[..., 1::2])
    out = np.empty((*slots.shape[:-1], 2 * half))
    pairs, rows = values.view(np.float64).reshape(-1, half, 2), out.reshape(-1, 2 * half)
    _coefficients(pairs, tables.roots, tables.untwist, tables.order, scale / half, rows)
    return out


@njit(nogil=True, cache=True)
def _coefficients(values, roots, untwist, order, factor, out):  # type: ignore[no-untyped-def]
    """Fourier transform of ``values`` [P, N/2, 2] in place (decimation in frequency), then times ``untwist`` and
    ``factor``: ``out`` [P, N]. N/4 log2 (N/2) butterflies of 10 operations a polynomial, none of them contracted."""
    count, n, _ = values.shape
    for p in range(count):
        z, row = values[p], out[p]
        half = n // 2
        while half >= 1:
            stride = n // 2 // half
            for base in range(0, n, 2 * half):
                for k in range(half):
                    low, high = base + k, base + k + half
                    x, y = z[low, 0] - z[high, 0], z[low, 1] - z[high, 1]
                    z[low, 0] += z[high, 0]
                    z[low, 1] += z[high, 1]
                    real, imag = roots[k * stride, 0], roots[k * stride, 1]
                    z[high, 0] = x * real - y * imag
                    z[high, 1] = x * imag + y * real
            half //= 2
        for k in range(n):
            x, y, real, imag = z[order[k], 0], z[order[k], 1], untwist[k, 0], untwist[k, 1]
            row[k] = (x * real - y * imag) * factor
            row[n + k] = (x * imag + y * real) * factor


def coefficients_to_words(coefficients: NDArray[np.float64], primes: tuple[int, ...]) -> NDArray[np.uint32]:
    """Round coefficients [..., N] (magnitude below 2^62) to residues [..., limbs, N]."""
    rounded = np.rint(coefficients).astype(np.int64)
    return np.stack([np.mod(rounded, p).astype(np.uint32) for p in primes], axis=-2)
