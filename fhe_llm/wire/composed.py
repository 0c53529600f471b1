"""Coefficients modulo the product Q of two data primes as single numbers, rounded: what c0 of a request travels as.

Rounding the two residues of one coefficient apart would spoil it, so they are composed (Garner), rounded to a multiple
of 2^t and packed in bits(Q) - t bits. Error bound: at most 2^(t-1) per coefficient, uniform, 2^t / sqrt(12) rms; c0
is not multiplied by the secret, so that is what the plaintext's coefficients move by.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.params import Preset
from fhe_llm.wire.limbs import Words, out_of_range

_PRIME_BITS: Final = 30


@dataclass(frozen=True, slots=True, eq=False)
class ComposedFormat:
    """How one preset's coefficients are packed. ``numbers``, uint32: p, q, p^-1 mod q and its Shoup companion,
    2^30 mod p and mod q with theirs; ``bits`` a coefficient takes after losing ``drop``; all are below ``bound``."""

    drop: int
    bits: int
    bound: int
    numbers: NDArray[np.uint32]

    def row_bytes(self, ring_degree: int) -> int:
        """Bytes of one polynomial."""
        return self.bits * ring_degree // 8


def composable(preset: Preset) -> bool:
    """Whether a preset's ciphertexts can be composed: two data primes of 30 bits."""
    return [p.bit_length() for p in preset.data_primes] == [_PRIME_BITS] * 2


@lru_cache(maxsize=64)
def composed_format(preset: Preset, drop: int) -> ComposedFormat:
    """The format for ``drop`` bits left out; the preset must be :func:`composable`."""
    p, q = preset.data_primes
    inverse, head = pow(p, -1, q), 1 << _PRIME_BITS
    numbers = [p, q, inverse, (inverse << 32) // q]
    numbers += [number for prime in (p, q) for number in (head % prime, (head % prime << 32) // prime)]
    bound = ((p * q - 1) >> drop) + 1
    return ComposedFormat(drop, (p * q).bit_length() - drop, bound, np.array(numbers, dtype=np.uint32))


def pack_composed(words: Words, form: ComposedFormat) -> NDArray[np.uint8]:
    """Residues uint32 [n, 2, N], coefficient domain, to uint8 [n * row bytes]; 15 µs a polynomial of 4096.

    Raises :class:`FrameError` (``residue_out_of_range``) if a residue is not below its prime.
    """
    n, _, degree = words.shape
    packed = np.empty(n * form.row_bytes(degree) // 8, dtype=np.uint64)
    fixed = np.uint64(form.drop), np.uint64(form.bits), np.uint64(form.bound)
    if not _pack(np.ascontiguousarray(words), form.numbers, *fixed, packed):
        raise out_of_range("encode")
    return packed.view(np.uint8)


def unpack_composed(packed: NDArray[np.uint8], shape: tuple[int, int, int], form: ComposedFormat) -> Words:
    """Bytes [n * row bytes] of any alignment to residues uint32 ``shape`` [n, 2, N] of multiples of 2^drop.

    ``packed.size`` must be what ``shape`` and ``form`` need: callers check lengths first. Raises
    :class:`FrameError` (``residue_out_of_range``) if a coefficient is not below the product of the primes.
    """
    scratch = np.empty(packed.size // 8 + 1, dtype=np.uint64)
    scratch[-1] = 0  # the kernel reads pairs of words, also at the end
    scratch[:-1].view(np.uint8).reshape(packed.shape)[...] = packed
    words = np.empty(shape, dtype=np.uint32)
    fixed = np.uint64(form.drop), np.uint64(form.bits), np.uint64(form.bound)
    if not _unpack(scratch, form.numbers, *fixed, words):
        raise out_of_range("decode")
    return words


@njit(inline="always")
def _times(x: Any, w: Any, w_shoup: Any, q: Any) -> Any:
    """x * w mod q for x < 2^32 and w < q, everything uint32 (Shoup's quotient is off by at most one)."""
    quotient = np.uint32((np.uint64(x) * np.uint64(w_shoup)) >> np.uint64(32))
    r = np.uint32(np.uint32(x * w) - np.uint32(quotient * q))
    return min(r, np.uint32(r - q))


@njit(inline="always")
def _below(x: Any, q: Any) -> Any:
    """x mod q for x < 3 q < 2^32, uint32."""
    x = min(x, np.uint32(x - q))
    return min(x, np.uint32(x - q))


@njit(cache=True, nogil=True)
def _pack(words: Any, numbers: Any, drop: Any, bits: Any, bound: Any, packed: Any) -> bool:
    """Loops apart, so that the arithmetic runs in vectors; only the packing goes word by word."""
    p, q, inverse, inverse_shoup = numbers[0], numbers[1], numbers[2], numbers[3]
    half, full = (np.uint64(1) << drop) >> np.uint64(1), np.uint64(64)
    values = np.empty(words.shape[2], dtype=np.uint64)
    at, good = 0, True
    for row in range(words.shape[0]):
        low, high = words[row, 0], words[row, 1]
        largest_low, largest_high = np.uint32(0), np.uint32(0)
        for i in range(values.shape[0]):
            a, b = low[i], high[i]
            largest_low, largest_high = max(largest_low, a), max(largest_high, b)
            digit = _times(np.uint32(b + np.uint32(2) * q - a), inverse, inverse_shoup, q)
            value = (np.uint64(a) + np.uint64(p) * np.uint64(digit) + half) >> drop
            values[i] = value if value < bound else np.uint64(0)
        good &= (largest_low < p) & (largest_high < q)
        pending, filled = np.uint64(0), np.uint64(0)
        for value in values:
            pending |= value << filled
            filled += bits
            if filled >= full:
                packed[at] = pending
                at += 1
                filled -= full
                pending = value >> (bits - filled)
    return good


@njit(cache=True, nogil=True)
def _unpack(packed: Any, numbers: Any, drop: Any, bits: Any, bound: Any, words: Any) -> bool:
    p, q = numbers[0], numbers[1]
    mask, low = (np.uint64(1) << bits) - np.uint64(1), np.uint32((1 << 30) - 1)
    values = np.empty(words.shape[2], dtype=np.uint64)
    good, position = True, np.uint64(0)
    for row in range(words.shape[0]):
        largest = np.uint64(0)
        for i in range(values.shape[0]):
            at, shift = position >> np.uint64(6), position & np.uint64(63)
            after = packed[at + np.uint64(1)] << np.uint64(1) << (np.uint64(63) - shift)
            value = ((packed[at] >> shift) | after) & mask
            largest = max(largest, value)
            values[i] = value << drop
            position += bits
        good &= largest < bound
        a, b = words[row, 0], words[row, 1]
        for i in range(values.shape[0]):
            value = values[i]
            head, rest = np.uint32(value >> np.uint64(30)), np.uint32(value) & low
            a[i] = _below(np.uint32(_times(head, numbers[4], numbers[5], p) + rest), p)
            b[i] = _below(np.uint32(_times(head, numbers[6], numbers[7], q) + rest), q)
    return good
