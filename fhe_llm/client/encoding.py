"""CKKS encodings: complex slots to residues and back. No secret is involved; SEAL's encoder is the oracle.

Slot j is the value of the plaintext polynomial m at zeta^(3^j), zeta = exp(i pi / N). With d_k = c_k + i c_{k+N/2} the
values at the exponents 4t + 1 are sum_k d_k zeta^k exp(2 pi i t k / (N/2)): one complex FFT of N/2 points. An exponent
3^j with odd j is not of that form, but its negative is, and belongs to the conjugate slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import rns
from fhe_llm.params import Preset

Slots = NDArray[np.complex128]
Words = rns.Words


@dataclass(frozen=True, slots=True)
class EncodingTables:
    """``position[j]``: the FFT index of slot j; odd slots are conjugated; ``twist`` is zeta^k, [N/2]."""

    position: NDArray[np.intp]
    twist: NDArray[np.complex128]


@lru_cache(maxsize=8)
def encoding_tables(ring_degree: int) -> EncodingTables:
    """Tables of one ring, built once."""
    exponents = rns.slot_exponents(ring_degree)[: ring_degree // 2]
    one_mod_four = np.where(exponents % 4 == 1, exponents, 2 * ring_degree - exponents)
    twist = np.exp(1j * np.pi * np.arange(ring_degree // 2) / ring_degree)
    return EncodingTables((one_mod_four - 1) // 4, twist)


def encode(preset: Preset, slots: Slots, log_scale: float) -> Words:
    """:func:`encode_slot_order` in SEAL's order."""
    tables = rns.ring_tables(preset.ring_degree, preset.data_primes)
    return np.ascontiguousarray(encode_slot_order(preset, slots, log_scale)[..., tables.seal_from_slot])


def encode_slot_order(preset: Preset, slots: Slots, log_scale: float) -> Words:
    """Slots [n, N/2] to plaintext words [n, data limbs, N] in slot-order NTT form, at scale 2^log_scale.

    Every rounded coefficient is within 0.5 + 2^-50 |coefficient| of the exact one. Raises :class:`ParameterError`
    where a coefficient leaves the int64 range or half the modulus.
    """
    half = preset.slots
    tables = encoding_tables(preset.ring_degree)
    values = np.empty_like(slots)
    values[:, tables.position[0::2]] = slots[:, 0::2]
    values[:, tables.position[1::2]] = slots[:, 1::2].conj()
    d = np.fft.fft(values, axis=1)
    d *= tables.twist.conj() * (2.0**log_scale / half)
    limit = min(2**62, prod(preset.data_primes) // 2)
    words = np.empty((len(slots), len(preset.data_primes), preset.ring_degree), dtype=np.uint32)
    if not _to_residues(d, np.array(preset.data_primes, dtype=np.int64), float(limit), words):
        raise ParameterError(
            "cannot encode the slots: a coefficient leaves the modulus. Lower the input scale."
        )
    return rns.to_slot_order_ntt(words, rns.ring_tables(preset.ring_degree, preset.data_primes))


def decode(preset: Preset, words: Words, log_scale: float) -> Slots:
    """Plaintext words [n, limbs, N] in SEAL-order NTT form, of scale 2^log_scale, to slots [n, N/2].

    Takes one or two limbs (the reply levels of the presets); raises :class:`ParameterError` otherwise.
    """
    primes = preset.data_primes[: words.shape[1]]
    if len(primes) not in (1, 2):
        raise ParameterError(
            f"cannot decode {len(primes)} limbs: replies have one or two. Use a named preset."
        )
    tables = encoding_tables(preset.ring_degree)
    coefficients = rns.ntt_inverse(words, preset.ring_degree, primes)
    d = np.empty((len(words), preset.slots), dtype=np.complex128)
    if len(primes) == 1:
        _centre_one(coefficients, primes[0], d)
    else:
        _centre_two(coefficients, primes[0], primes[1], pow(primes[0], -1, primes[1]), d)
    d *= tables.twist * (preset.slots * 2.0**-log_scale)
    slots = np.fft.ifft(d, axis=1)[:, tables.position]
    np.conjugate(slots[:, 1::2], out=slots[:, 1::2])
    return slots


@njit(nogil=True, cache=True)
def _to_residues(d, primes, limit, out):  # type: ignore[no-untyped-def]
    """Round [n, N/2] complex coefficients into ``out`` [n, limbs, N]; False where one is out of range or not finite."""
    half = d.shape[1]
    for i in range(d.shape[0]):
        for k in range(half):
            low, high = np.rint(d[i, k].real), np.rint(d[i, k].imag)
            if not (abs(low) < limit and abs(high) < limit):
                return False
            a, b = np.int64(low), np.int64(high)
            for limb in range(primes.shape[0]):
                p = primes[limb]
                r, s = a % p, b % p
                out[i, limb, k] = np.uint32(r)
                out[i, limb, half + k] = np.uint32(s)
    return True


@njit(nogil=True, cache=True)
def _centre_one(words, p, out):  # type: ignore[no-untyped-def]
    half = out.shape[1]
    for i in range(out.shape[0]):
        for k in range(half):
            a, b = np.int64(words[i, 0, k]), np.int64(words[i, 0, half + k])
            a -= p if 2 * a > p else 0
            b -= p if 2 * b > p else 0
            out[i, k] = complex(np.float64(a), np.float64(b))


@njit(nogil=True, cache=True)
def _centre_two(words, p, q, p_inverse, out):  # type: ignore[no-untyped-def]
    """Garner's recombination of two residues, then the representative nearest to zero; p q < 2^62."""
    half = out.shape[1]
    for i in range(out.shape[0]):
        for k in range(half):
            low = _garner(np.int64(words[i, 0, k]), np.int64(words[i, 1, k]), p, q, p_inverse)
            high = _garner(np.int64(words[i, 0, half + k]), np.int64(words[i, 1, half + k]), p, q, p_inverse)
            out[i, k] = complex(np.float64(low), np.float64(high))


@njit(inline="always")
def _garner(a, b, p, q, p_inverse):  # type: ignore[no-untyped-def]
    digit = (b - a) % q * p_inverse % q
    value = a + p * digit
    return value - p * q if 2 * value > p * q else value
