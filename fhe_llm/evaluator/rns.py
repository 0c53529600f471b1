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

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator import ntt

GALOIS_GENERATOR = 3
"""SEAL's generator of the slot rotations: rotating by k is the automorphism X -> X^(3^k mod 2N)."""

Words = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class PrimeTables:
    """Everything one prime needs for transforms; tables of twiddles come with their Shoup companions.

    ``split`` holds the twiddles of the contiguous butterfly stages, ``twist`` the per-column factors that precede
    (follow, for the inverse) the small cyclic transforms, ``cyclic`` the powers of the R-th root of unity.
    """

    prime: int
    split: Words  # [2, C] forward, Shoup
    split_inverse: Words  # [2, C]
    twist: Words  # [2, R, C]
    twist_inverse: Words  # [2, R, C], 1/N folded in
    cyclic: Words  # [2, R]
    cyclic_inverse: Words  # [2, R]


@dataclass(frozen=True, slots=True)
class RingTables:
    """Tables shared by the primes of one ring: index maps and the primes' own tables."""

    ring_degree: int
    rows: int
    gather: NDArray[np.int32]  # [N]: position in split order for each (row, column)
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
    block = _bit_reverse((base % (2 * columns) - 1) // 2, columns)
    step = (pow(GALOIS_GENERATOR, columns // 2, 2 * n) - 1) // (2 * columns)
    inverse_multiplier = np.array([pow(int(e) * step % rows, -1, rows) for e in base])
    output_row = _bit_reverse(np.arange(rows), rows)  # the cyclic transform takes its input bit-reversed
    coefficient = output_row[:, None] * inverse_multiplier[None, :] % rows  # [R, C]
    gather = (block[None, :] * rows + coefficient).reshape(-1)
    seal_index = _bit_reverse((exponents - 1) // 2, n)
    seal_from_slot = np.empty(n, dtype=np.int32)
    seal_from_slot[seal_index] = np.arange(n)
    return RingTables(
        ring_degree=n,
        rows=rows,
        gather=gather.astype(np.int32),
        slot_from_seal=seal_index.astype(np.int32),
        seal_from_slot=seal_from_slot,
        primes=tuple(_prime_tables(n, p, base, coefficient) for p in primes),
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
            flat, limb, tables.gather, table.split, table.twist, table.cyclic, np.uint32(table.prime)
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
            tables.gather,
            table.split_inverse,
            table.twist_inverse,
            table.cyclic_inverse,
            np.uint32(table.prime),
        )
    return out


def _prime_tables(n: int, prime: int, base: NDArray[np.int64], coefficient: NDArray[np.int64]) -> PrimeTables:
    rows, columns = coefficient.shape
    psi = primitive_root(prime, 2 * n)
    powers = np.empty(2 * n, dtype=np.int64)
    value = 1
    for i in range(2 * n):
        powers[i] = value
        value = value * psi % prime
    index = _bit_reverse(np.arange(columns), columns) * rows  # twiddle i of the split stages is psi^rev_n(i)
    twist = coefficient * base[None, :] % (2 * n)
    cyclic = np.arange(rows) * (2 * columns)
    inverse_n = pow(n, -1, prime)

    def table(exponent: NDArray[np.int64], factor: int = 1) -> Words:
        values = powers[exponent % (2 * n)].astype(object) * factor % prime
        return np.stack([values, values * (1 << 32) // prime]).astype(np.uint32)

    return PrimeTables(
        prime=prime,
        split=table(index),
        split_inverse=table(-index),
        twist=table(twist),
        twist_inverse=table(-twist, inverse_n),
        cyclic=table(cyclic),
        cyclic_inverse=table(-cyclic),
    )


def _bit_reverse(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    out = np.zeros_like(values)
    for bit in range(size.bit_length() - 1):
        out |= ((values >> bit) & 1) << (size.bit_length() - 2 - bit)
    return out
