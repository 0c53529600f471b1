"""Residue number system and number-theoretic transforms, bit for bit SEAL's.

A *word* is a uint32 residue below its prime. Two orders of the NTT domain exist:

* **SEAL order**: index i holds the value at psi^(2 rev(i) + 1), psi the smallest primitive 2N-th root of the prime.
  Ciphertexts and keys travel in this order.
* **slot order**: index s < N/2 holds the value at psi^(3^s), index N/2 + s the one at psi^(-3^s). Rotating the slots
  by k is then a cyclic shift of each half by k, so the engine reads rotated operands contiguously.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator import ntt

GALOIS_GENERATOR = 3
"""SEAL's generator of the slot rotations: rotating by k is the automorphism X -> X^(3^k mod 2N)."""

Words = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class PrimeTables:
    """Everything one prime needs for transforms; tables of twiddles come with their Shoup companions.

    ``split`` holds the twiddles of the stages on contiguous words, ``column`` those of the stages on columns: node p of
    the stage with m nodes is at index m + p, a value per column. Index 0 of ``column_inverse`` is 1/N.
    """

    prime: int
    split: Words  # [2, C] forward, Shoup
    split_inverse: Words  # [2, C]
    column: Words  # [2, R, C]
    column_inverse: Words  # [2, R, C], 1/N folded into the last stage


@dataclass(frozen=True, slots=True)
class RingTables:
    """Tables shared by the primes of one ring: index maps and the primes' own tables."""

    ring_degree: int
    starts: NDArray[np.int32]  # [C]: where the block that becomes a column begins
    order: NDArray[np.int32]  # [R]: bit reversal of the rows
    slot_from_seal: NDArray[np.int32]  # [N]: slot-order word s is SEAL-order word slot_from_seal[s]
    seal_from_slot: NDArray[np.int32]
    primes: tuple[PrimeTables, ...]

    def prime_words(self) -> Words:
        """The primes as an array of words."""
        return np.array([t.prime for t in self.primes], dtype=np.uint32)


@lru_cache(maxsize=16)
def ring_tables(ring_degree: int, primes: tuple[int, ...]) -> RingTables:
    """Tables for one ring and its primes (each below 2^31, congruent to 1 modulo 2N); built once per process."""
    n, rows = ring_degree, ntt.ROWS
    columns = n // rows
    exponents = slot_exponents(n)
    base = exponents.reshape(2, rows, columns // 2)[:, 0, :].reshape(
        -1
    )  # [C] exponent of row 0 of each column
    starts = _bit_reverse((base % (2 * columns) - 1) // 2, columns) * rows
    seal_index = _bit_reverse((exponents - 1) // 2, n)
    seal_from_slot = np.empty(n, dtype=np.int32)
    seal_from_slot[seal_index] = np.arange(n)
    return RingTables(
        ring_degree=n,
        starts=starts.astype(np.int32),
        order=_bit_reverse(np.arange(rows), rows).astype(np.int32),
        slot_from_seal=seal_index.astype(np.int32),
        seal_from_slot=seal_from_slot,
        primes=tuple(_prime_tables(n, p, base) for p in primes),
    )


def slot_exponents(ring_degree: int) -> NDArray[np.int64]:
    """Exponents of psi in slot order: 3^s for s < N/2, then -3^s, all modulo 2N; shape [N]."""
    powers = np.empty(ring_degree // 2, dtype=np.int64)
    value = 1
    for s in range(ring_degree // 2):
        powers[s] = value
        value = value * GALOIS_GENERATOR % (2 * ring_degree)
    return np.concatenate([powers, 2 * ring_degree - powers])


def primitive_root(prime: int, order: int) -> int:
    """The smallest primitive root of unity of the given order (a power of two), as SEAL chooses it."""
    for candidate in range(2, prime):
        root = pow(candidate, (prime - 1) // order, prime)
        if pow(root, order // 2, prime) == prime - 1:
            break
    square, best, power = root * root % prime, root, root
    for _ in range(order // 2):
        best = min(best, power)
        power = power * square % prime
    return best


def ntt_forward(words: Words, ring_degree: int, primes: tuple[int, ...]) -> Words:
    """Coefficients to SEAL-order NTT; ``words`` is [..., limbs, N], limb l modulo ``primes[l]``; a new array."""
    tables = ring_tables(ring_degree, primes)
    # take: six times as fast as an index
    return np.take(to_slot_order_ntt(words, tables), tables.seal_from_slot, axis=-1)


def ntt_inverse(words: Words, ring_degree: int, primes: tuple[int, ...]) -> Words:
    """SEAL-order NTT to coefficients; inverse of :func:`ntt_forward`. Returns a new array."""
    tables = ring_tables(ring_degree, primes)
    return from_slot_order_ntt(np.take(words, tables.slot_from_seal, axis=-1), tables)


def to_slot_order_ntt(words: Words, tables: RingTables) -> Words:
    """Coefficients [..., limbs, N] to slot-order NTT; residues below their primes in and out."""
    out = np.array(words, dtype=np.uint32, order="C")
    flat = out.reshape(-1, len(tables.primes), tables.ring_degree)
    for limb, table in enumerate(tables.primes):
        ntt.forward_many(
            flat, limb, tables.starts, tables.order, table.split, table.column, np.uint32(table.prime)
        )
    return out


def from_slot_order_ntt(words: Words, tables: RingTables) -> Words:
    """Slot-order NTT [..., limbs, N] to coefficients; inverse of :func:`to_slot_order_ntt`."""
    out = np.array(words, dtype=np.uint32, order="C")
    flat = out.reshape(-1, len(tables.primes), tables.ring_degree)
    for limb, table in enumerate(tables.primes):
        ntt.inverse_many(
            flat,
            limb,
            tables.starts,
            tables.order,
            table.split_inverse,
            table.column_inverse,
            np.uint32(table.prime),
        )
    return out


def _prime_tables(n: int, prime: int, base: NDArray[np.int64]) -> PrimeTables:
    columns, rows = len(base), n // len(base)
    psi = primitive_root(prime, 2 * n)
    powers = np.empty(2 * n, dtype=np.int64)
    value = 1
    for i in range(2 * n):
        powers[i] = value
        value = value * psi % prime
    index = _bit_reverse(np.arange(columns), columns) * rows  # twiddle i of the split stages is psi^rev_n(i)
    exponent = _column_exponents(n, base)
    inverse_n = pow(n, -1, prime)

    def table(exponent: NDArray[np.int64]) -> Words:
        return _with_companions(powers[exponent % (2 * n)].astype(object), prime)

    column_inverse = powers[-exponent % (2 * n)].astype(object)
    column_inverse[0] = 1
    column_inverse[:2] = column_inverse[:2] * inverse_n % prime  # both outputs of the last stage
    return PrimeTables(
        prime=prime,
        split=table(index),
        split_inverse=table(-index),
        column=table(exponent),
        column_inverse=_with_companions(column_inverse, prime),
    )


def _column_exponents(n: int, base: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exponents of psi of the column stages, [R, C]: node p of the stage with m nodes at index m + p.

    Node p stands for the slot rows r = rev(p) modulo m; it splits X^2t - psi^(2t e) at +-psi^(t e), t = R / 2m, where
    e = base * 3^(r C/2) is the exponent of row r. Index 0 is unused.
    """
    columns, rows = len(base), n // len(base)
    generator = pow(GALOIS_GENERATOR, columns // 2, 2 * n)
    out = np.zeros((rows, columns), dtype=np.int64)
    m = 1
    while m < rows:
        for p, r in enumerate(_bit_reverse(np.arange(m), m)):
            out[m + p] = rows // (2 * m) * (base * pow(generator, int(r), 2 * n) % (2 * n)) % (2 * n)
        m *= 2
    return out


def _with_companions(values: NDArray[Any], prime: int) -> Words:
    """Residues (Python integers) and their Shoup companions floor(2^32 w / prime), stacked."""
    return np.stack([values, values * (1 << 32) // prime]).astype(np.uint32)


def _bit_reverse(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    out = np.zeros_like(values)
    for bit in range(size.bit_length() - 1):
        out |= ((values >> bit) & 1) << (size.bit_length() - 2 - bit)
    return out
