"""Residues as bits: words below a prime travel in as many bits as the prime has, little-endian bit order.

A *row* is one limb of one polynomial, [N]; N is a power of two and at least 1024, so every row fills whole
32-bit words whatever its width. Rows of an array [..., rows, N] take their width and bound from a
:class:`LimbFormat`, in turn. Hosts are little-endian (x86-64, AArch64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.errors import FrameError

Words = NDArray[np.uint32]
Buffer = bytes | bytearray | memoryview

MAX_DROP: Final = 20
"""Low bits that may stay off the wire."""


@dataclass(frozen=True, slots=True, eq=False)
class LimbFormat:
    """Widths and bounds of consecutive rows; row r uses entry r mod ``len(bits)``.

    ``bits`` uint64 [period], 1..32; ``bounds`` uint64 [period]: every packed word of the row is below it, and it is
    at most 2^bits. Where ``drops`` low bits stay behind, words are below ``limits`` before they are rounded.
    """

    bits: NDArray[np.uint64]
    bounds: NDArray[np.uint64]
    drops: NDArray[np.uint64] | None = None
    limits: NDArray[np.uint64] | None = None
    _width: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_width", int(self.bits.sum()))

    def row_bytes(self, ring_degree: int) -> int:
        """Bytes of one whole period of rows of N words."""
        return self._width * ring_degree // 8


@lru_cache(maxsize=64)
def limb_format(primes: tuple[int, ...], drops: tuple[int, ...] = ()) -> LimbFormat:
    """The format of residues modulo ``primes`` that lose their low ``drops[i]`` bits (default none).

    Residues are rounded to multiples of 2^drop; one that would round to the prime or past it becomes 0, the same value
    modulo the prime to within the bound. For the coefficient domain. Error bound: c0 losing t0 bits adds a uniform
    error of at most 2^(t0-1) to each coefficient; c1 losing t1 bits adds such an error times the ternary s, at
    most N·2^(t1-1) per coefficient and 2^t1·sqrt(N/18) rms.
    """
    drops = drops or (0,) * len(primes)
    bits = [prime.bit_length() - drop for prime, drop in zip(primes, drops, strict=True)]
    bounds = [((prime - 1) >> drop) + 1 for prime, drop in zip(primes, drops, strict=True)]
    columns = (bits, bounds, drops, primes)
    return LimbFormat(*(np.array(column, dtype=np.uint64) for column in columns))


def pack(words: Words, form: LimbFormat) -> NDArray[np.uint8]:
    """Pack ``words`` uint32 [..., rows, N] to uint8 [bytes], rounded as the format says; 9 µs per 8192 words
    of 30 bits.

    Raises :class:`FrameError` (``residue_out_of_range``) if a word is not below its bound.
    """
    rows = np.ascontiguousarray(words, dtype=np.uint32).reshape(-1, words.shape[-1])
    periods = rows.shape[0] // len(form.bits)
    packed = np.empty(periods * form.row_bytes(rows.shape[1]) // 8, dtype=np.uint64)
    drops = np.zeros_like(form.bits) if form.drops is None else form.drops
    limits = form.bounds if form.limits is None else form.limits
    if not _pack(rows, form.bits, form.bounds, drops, limits, packed):
        raise out_of_range("encode")
    return packed.view(np.uint8)


def unpack(packed: NDArray[np.uint8], shape: Sequence[int], form: LimbFormat) -> Words:
    """Unpack uint8 bytes of any alignment to uint32 ``shape`` [..., rows, N], dropped bits as zeros; 8 µs per 8192
    words.

    ``packed.size`` must be what ``shape`` and ``form`` need: callers check lengths first. Raises
    :class:`FrameError` (``residue_out_of_range``) if a word is not below its bound.
    """
    scratch = np.empty(packed.size // 4 + 1, dtype=np.uint32)
    scratch[-1] = 0  # the kernel reads pairs of words, also at the end
    scratch[:-1].view(np.uint8).reshape(packed.shape)[...] = packed
    words = np.empty(tuple(shape), dtype=np.uint32)
    drops = np.zeros_like(form.bits) if form.drops is None else form.drops
    if not _unpack(scratch, form.bits, form.bounds, drops, words.reshape(-1, words.shape[-1])):
        raise out_of_range("decode")
    return words


def narrow(data: Buffer, offset: int, shape: Sequence[int], primes: tuple[int, ...]) -> Words:
    """Little-endian uint64 residues at ``data[offset:]`` as uint32 ``shape`` [..., len(primes), N].

    The bytes must be there: callers check lengths first. Raises :class:`FrameError`
    (``residue_out_of_range``).
    """
    words = np.empty(tuple(shape), dtype=np.uint32)
    wide = np.empty(words.shape, dtype=np.uint64)
    wide.reshape(-1).view(np.uint8)[...] = np.frombuffer(data, np.uint8, wide.nbytes, offset)
    n = words.shape[-1]
    if not _narrow(wide.reshape(-1, n), np.array(primes, dtype=np.uint64), words.reshape(-1, n)):
        raise out_of_range("decode")
    return words


def any_transparent(words: Words) -> bool:
    """Whether a ciphertext of uint32 [..., 2, limbs, N] has c1 = 0: it would decrypt without a key."""
    return bool(_any_transparent(words.reshape(-1, 2, math.prod(words.shape[-2:]))))


def out_of_range(verb: str) -> FrameError:
    """The error for a residue that is not below its prime; the caller raises it."""
    return FrameError(
        f"cannot {verb} residues: a word is not below its prime. Use the primes of the named preset.",
        reason="residue_out_of_range",
    )


@njit(cache=True, nogil=True)
def _pack(words: Any, bits: Any, bounds: Any, drops: Any, limits: Any, packed: Any) -> bool:
    """uint32 [rows, N] to uint64 words of packed bits, rounded; false if a word reaches its limit."""
    rows, n = words.shape
    period = bits.shape[0]
    at, good = 0, True
    for row in range(rows):
        width, bound, drop = bits[row % period], bounds[row % period], drops[row % period]
        half = (np.uint64(1) << drop) >> np.uint64(1)
        pending, filled, largest = np.uint64(0), np.uint64(0), np.uint64(0)
        for i in range(n):
            word = np.uint64(words[row, i])
            largest = max(largest, word)
            word = (word + half) >> drop
            word = word if word < bound else np.uint64(0)
            pending |= word << filled
            filled += width
            if filled >= np.uint64(64):
                packed[at] = pending
                at += 1
                filled -= np.uint64(64)
                pending = word >> (width - filled)
        good &= largest < limits[row % period]
    return good


@njit(cache=True, nogil=True)
def _unpack(packed: Any, bits: Any, bounds: Any, drops: Any, words: Any) -> bool:
    """uint32 packed bits, one word longer than needed, to [rows, N]; false if a word reaches its bound."""
    rows, n = words.shape
    period = bits.shape[0]
    start, good = np.uint64(0), True
    for row in range(rows):
        width, bound, drop = bits[row % period], bounds[row % period], drops[row % period]
        mask = (np.uint64(1) << width) - np.uint64(1)
        largest = np.uint64(0)
        for i in range(n):
            position = start + np.uint64(i) * width
            at = position >> np.uint64(5)
            pair = np.uint64(packed[at]) | np.uint64(packed[at + np.uint64(1)]) << np.uint64(32)
            word = (pair >> (position & np.uint64(31))) & mask
            words[row, i] = np.uint32(word << drop)
            largest = max(largest, word)
        good &= largest < bound
        start += np.uint64(n) * width
    return good


@njit(cache=True, nogil=True)
def _narrow(wide: Any, bounds: Any, words: Any) -> bool:
    """uint64 [rows, N] to uint32; false if a word reaches its bound."""
    rows, n = wide.shape
    period = bounds.shape[0]
    good = True
    for row in range(rows):
        largest = np.uint64(0)
        for i in range(n):
            largest = max(largest, wide[row, i])
            words[row, i] = np.uint32(wide[row, i])
        good &= largest < bounds[row % period]
    return good


@njit(cache=True, nogil=True)
def _any_transparent(words: Any) -> bool:
    """Whether words[block, 1] is all zero for some block of [blocks, 2, n]; stops at other words."""
    blocks, _, n = words.shape
    for block in range(blocks):
        i = 0
        while i < n and words[block, 1, i] == 0:
            i += 1
        if i == n:
            return True
    return False
