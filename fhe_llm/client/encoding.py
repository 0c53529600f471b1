"""CKKS encodings: complex slots to residues and back. No secret is involved; SEAL's encoder is the oracle.

Slot j is the value of the plaintext polynomial m at zeta^(3^j), zeta = exp(i pi / N). With d_k = c_k + i c_{k+N/2} the
values at the exponents 4t + 1 are sum_k d_k zeta^k exp(2 pi i t k / (N/2)): one complex FFT of N/2 points. An exponent
3^j with odd j is not of that form, but its negative is, and belongs to the conjugate slot.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import rns
from fhe_llm.evaluator.encoding import encoding_tables
from fhe_llm.params import Preset

Slots = NDArray[np.complex128]
Words = rns.Words


def encode_slot_order(preset: Preset, slots: Slots, log_scale: float) -> Words:
    """Slots [n, N/2] to plaintext words [n, data limbs, N] in slot-order NTT form, at scale 2^log_scale.

    Every rounded coefficient is within 0.5 + 2^-50 |coefficient| of the exact one. Raises :class:`ParameterError`
    where a coefficient leaves 2^62 or half the modulus.
    """
    words = np.zeros((len(slots), len(preset.data_primes), preset.ring_degree), dtype=np.uint32)
    add_coefficients(preset, slots, log_scale, words)
    return rns.to_slot_order_ntt(words, rns.ring_tables(preset.ring_degree, preset.data_primes))


def add_coefficients(preset: Preset, slots: Slots, log_scale: float, onto: Words) -> None:
    """Add the encodings of slots [n, N/2] at scale 2^log_scale to ``onto`` [n, data limbs, N], coefficient domain.

    Rounding and errors as for :func:`encode_slot_order`; ``onto`` is spoilt by an error. Cost: one FFT, no NTT.
    """
    tables = encoding_tables(preset.ring_degree)
    d = np.empty(slots.shape, dtype=np.complex128)
    _to_fft_order(slots, tables.position, d)
    d = np.fft.fft(d, axis=1)
    primes = np.array(preset.data_primes, dtype=np.int64)
    limit = float(min(2**62, prod(preset.data_primes) // 2))
    if not _add_residues(d, tables.twist, 2.0**log_scale / preset.slots, primes, limit, onto):
        raise ParameterError(
            "cannot encode the slots: a coefficient leaves the modulus. Lower the input scale."
        )


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
    factor = preset.slots * 2.0**-log_scale
    if len(primes) == 1:
        _centre_one(coefficients, primes[0], tables.twist, factor, d)
    else:
        inverse = pow(primes[0], -1, primes[1])
        _centre_two(coefficients, primes[0], primes[1], inverse, tables.twist, factor, d)
    slots = np.empty_like(d)
    _from_fft_order(np.fft.ifft(d, axis=1), tables.position, slots)
    return slots


@njit(nogil=True, cache=True)
def _to_fft_order(slots, position, out):  # type: ignore[no-untyped-def]
    """Slots [n, N/2] to the places of their exponents, odd ones conjugated."""
    for i in range(slots.shape[0]):
        for j in range(0, slots.shape[1], 2):
            out[i, position[j]] = slots[i, j]
            out[i, position[j + 1]] = np.conj(slots[i, j + 1])


@njit(nogil=True, cache=True)
def _from_fft_order(values, position, out):  # type: ignore[no-untyped-def]
    """Inverse of :func:`_to_fft_order`."""
    for i in range(values.shape[0]):
        for j in range(0, values.shape[1], 2):
            out[i, j] = values[i, position[j]]
            out[i, j + 1] = np.conj(values[i, position[j + 1]])


@njit(nogil=True, cache=True)
def _add_residues(d, twist, factor, primes, limit, out):  # type: ignore[no-untyped-def]
    """Round ``d`` [n, N/2] times conj(twist) times factor and add it to ``out`` [n, limbs, N]; False where a
    coefficient is out of range or not finite.

    A quotient by a prime is estimated in double precision: for |c| < 2^62 what is left is within (-p, p).
    """
    n, half = d.shape
    row = np.empty((2, half))
    good = True
    for i in range(n):
        for k in range(half):
            c = d[i, k] * np.conj(twist[k]) * factor
            row[0, k], row[1, k] = np.rint(c.real), np.rint(c.imag)
            good &= (abs(row[0, k]) < limit) & (abs(row[1, k]) < limit)
        if not good:
            return False
        for limb in range(primes.shape[0]):
            p = primes[limb]
            inverse = 1.0 / p
            for side in range(2):
                target = out[i, limb, side * half : (side + 1) * half]
                for k in range(half):
                    value = row[side, k]
                    rest = np.int64(value) - np.int64(np.rint(value * inverse)) * p + np.int64(target[k])
                    rest += p if rest < 0 else 0
                    rest -= p if rest >= p else 0
                    target[k] = np.uint32(rest - p if rest >= p else rest)
    return True


@njit(nogil=True, cache=True)
def _centre_one(words, p, twist, factor, out):  # type: ignore[no-untyped-def]
    """Residues [n, 1, N] to their representatives nearest to zero, twisted and scaled: [n, N/2]."""
    half = out.shape[1]
    for i in range(out.shape[0]):
        for k in range(half):
            a, b = np.int64(words[i, 0, k]), np.int64(words[i, 0, half + k])
            a -= p if 2 * a > p else 0
            b -= p if 2 * b > p else 0
            out[i, k] = complex(np.float64(a), np.float64(b)) * twist[k] * factor


@njit(nogil=True, cache=True)
def _centre_two(words, p, q, p_inverse, twist, factor, out):  # type: ignore[no-untyped-def]
    """:func:`_centre_one` for two residues, recombined (Garner); p q < 2^62."""
    half = out.shape[1]
    for i in range(out.shape[0]):
        for k in range(half):
            low = _garner(np.int64(words[i, 0, k]), np.int64(words[i, 1, k]), p, q, p_inverse)
            high = _garner(np.int64(words[i, 0, half + k]), np.int64(words[i, 1, half + k]), p, q, p_inverse)
            out[i, k] = complex(np.float64(low), np.float64(high)) * twist[k] * factor


@njit(inline="always")
def _garner(a, b, p, q, p_inverse):  # type: ignore[no-untyped-def]
    digit = (b - a) % q * p_inverse % q
    value = a + p * digit
    return value - p * q if 2 * value > p * q else value
