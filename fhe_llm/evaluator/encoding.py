"""CKKS encoding (Cheon, Kim, Kim, Song, ASIACRYPT 2017, section 3.2) of complex slots; no key is involved.

A real polynomial m of degree below N is folded to a_n = m_n + i m_{n+N/2}. Modulo X^{N/2} - i its values at the roots
zeta^e, e = 1 (mod 4), are the slots (or their conjugates), so one complex transform of length N/2 suffices.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.rns import slot_exponents


@lru_cache(maxsize=4)
def _tables(ring_degree: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.complex128]]:
    exponents = slot_exponents(ring_degree)[: ring_degree // 2]
    conjugated = exponents % 4 == 3
    position = (np.where(conjugated, 2 * ring_degree - exponents, exponents) - 1) // 4
    twist = np.exp(1j * np.pi * np.arange(ring_degree // 2) / ring_degree)
    return position, conjugated, twist


def slots_to_coefficients(slots: NDArray[np.complex128], scale: float) -> NDArray[np.float64]:
    """Coefficients [..., N], unrounded, of the polynomial whose slots [..., N/2] are ``scale`` times those given."""
    half = slots.shape[-1]
    position, conjugated, twist = _tables(2 * half)
    values = np.empty_like(slots, dtype=np.complex128)
    values[..., position] = np.where(conjugated, np.conj(slots), slots)
    folded = np.fft.fft(values, axis=-1) * (np.conj(twist) * (scale / half))
    return np.concatenate([folded.real, folded.imag], axis=-1)


def coefficients_to_slots(coefficients: NDArray[np.float64], scale: float) -> NDArray[np.complex128]:
    """Inverse of :func:`slots_to_coefficients`: coefficients [..., N] to slots [..., N/2], divided by ``scale``."""
    half = coefficients.shape[-1] // 2
    position, conjugated, twist = _tables(2 * half)
    folded = coefficients[..., :half] + 1j * coefficients[..., half:]
    values = np.fft.ifft(folded * twist, axis=-1)[..., position] * (half / scale)
    slots: NDArray[np.complex128] = np.where(conjugated, np.conj(values), values)
    return slots


def coefficients_to_words(coefficients: NDArray[np.float64], primes: tuple[int, ...]) -> NDArray[np.uint32]:
    """Round coefficients [..., N] (magnitude below 2^62) to residues [..., limbs, N]."""
    rounded = np.rint(coefficients).astype(np.int64)
    return np.stack([np.mod(rounded, p).astype(np.uint32) for p in primes], axis=-2)
