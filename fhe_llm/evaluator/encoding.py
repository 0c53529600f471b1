"""CKKS encoding (Cheon, Kim, Kim, Song, ASIACRYPT 2017, section 3.2) of complex slots; no key is involved.

A real polynomial m of degree below N is folded to a_n = m_n + i m_{n+N/2}. Modulo X^{N/2} - i its values at the roots
zeta^e, e = 1 (mod 4), are the slots (or their conjugates), so one complex transform of length N/2 suffices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.rns import slot_exponents


@dataclass(frozen=True, slots=True)
class EncodingTables:
    """``position[j]``: the FFT index of slot j; odd slots, whose exponents are 3 modulo 4, are conjugated. ``twist`` is
    zeta^k, [N/2]."""

    position: NDArray[np.intp]
    twist: NDArray[np.complex128]


@lru_cache(maxsize=8)
def encoding_tables(ring_degree: int) -> EncodingTables:
    """Tables of one ring, built once."""
    exponents = slot_exponents(ring_degree)[: ring_degree // 2]
    one_mod_four = np.where(exponents % 4 == 1, exponents, 2 * ring_degree - exponents)
    twist = np.exp(1j * np.pi * np.arange(ring_degree // 2) / ring_degree)
    return EncodingTables((one_mod_four - 1) // 4, twist)


def slots_to_coefficients(slots: NDArray[np.complex128], scale: float) -> NDArray[np.float64]:
    """Coefficients [..., N], unrounded, of the polynomial whose slots [..., N/2] are ``scale`` times those given."""
    half = slots.shape[-1]
    tables = encoding_tables(2 * half)
    values = np.empty_like(slots, dtype=np.complex128)
    values[..., tables.position[::2]] = slots[..., ::2]
    values[..., tables.position[1::2]] = np.conj(slots[..., 1::2])
    folded = np.fft.fft(values, axis=-1) * (np.conj(tables.twist) * (scale / half))
    return np.concatenate([folded.real, folded.imag], axis=-1)


def coefficients_to_words(coefficients: NDArray[np.float64], primes: tuple[int, ...]) -> NDArray[np.uint32]:
    """Round coefficients [..., N] (magnitude below 2^62) to residues [..., limbs, N]."""
    rounded = np.rint(coefficients).astype(np.int64)
    return np.stack([np.mod(rounded, p).astype(np.uint32) for p in primes], axis=-2)
