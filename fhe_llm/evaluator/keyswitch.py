"""Key switching in slot order: decompose, multiply with a Galois key, divide by the special prime.

Digits are one per data prime, as SEAL's (hybrid key switching with one special prime; Kim, Polyakov, Zucca, "Revisiting
homomorphic encryption schemes for finite fields", 2021, appendix B). Keys are stored in Montgomery form (times
2^32), so the sum of two products is brought back to a residue by one Montgomery reduction.

Shapes: L data limbs, M = L + 1 limbs with the special one last, digits [L, M, N], one key [L, 2, M, N]. Residues
are below their primes in and out; everything is in slot order unless said otherwise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.evaluator import ntt
from fhe_llm.evaluator.ntt import add_mod, mul_mod, sub_mod
from fhe_llm.evaluator.rns import ring_tables


class EngineTables(NamedTuple):
    """Constants of all M primes in the form the kernels take; index 0 of a pair is the value, 1 its Shoup companion."""

    q: NDArray[np.uint32]  # [M]
    q_inverse: NDArray[np.uint32]  # [M]: 1/q mod 2^32
    gather: NDArray[np.int32]
    split: NDArray[np.uint32]
    split_inverse: NDArray[np.uint32]
    twist: NDArray[np.uint32]
    twist_inverse: NDArray[np.uint32]
    cyclic: NDArray[np.uint32]
    cyclic_inverse: NDArray[np.uint32]
    drop_inverse: NDArray[np.uint32]  # [M, M, 2]: 1/q_i mod q_l
    drop_half: NDArray[np.uint32]  # [M, M]: floor(q_i / 2) mod q_l


class Workspace(NamedTuple):
    """Scratch of one thread."""

    x: NDArray[np.uint32]  # [N]
    y: NDArray[np.uint32]  # [N]
    z: NDArray[np.uint32]  # [N]
    rotated: NDArray[np.uint32]  # [L, N]
    digits: NDArray[np.uint32]  # [L, M, N]
    switched: NDArray[np.uint32]  # [2, M, N]


@lru_cache(maxsize=8)
def engine_tables(ring_degree: int, primes: tuple[int, ...]) -> EngineTables:
    """Tables for primes below 2^31, the data primes all within a factor of two of one another."""
    ring = ring_tables(ring_degree, primes)

    def stack(name: str) -> NDArray[np.uint32]:
        return np.stack([getattr(t, name) for t in ring.primes])

    count = len(primes)
    inverse = np.zeros((count, count, 2), dtype=np.uint32)
    half = np.zeros((count, count), dtype=np.uint32)
    for i, dropped in enumerate(primes):
        for limb, q in enumerate(primes):
            half[i, limb] = (dropped // 2) % q
            if i != limb:
                value = pow(dropped, -1, q)
                inverse[i, limb] = value, (value << 32) // q
    return EngineTables(
        q=ring.prime_words(),
        q_inverse=np.array([pow(q, -1, 1 << 32) for q in primes], dtype=np.uint32),
        gather=ring.gather,
        split=stack("split"),
        split_inverse=stack("split_inverse"),
        twist=stack("twist"),
        twist_inverse=stack("twist_inverse"),
        cyclic=stack("cyclic"),
        cyclic_inverse=stack("cyclic_inverse"),
        drop_inverse=inverse,
        drop_half=half,
    )


def workspace(ring_degree: int, data_limbs: int) -> Workspace:
    """Fresh scratch for one thread."""

    def words(*shape: int) -> NDArray[np.uint32]:
        return np.empty((*shape, ring_degree), dtype=np.uint32)

    limbs = data_limbs + 1
    return Workspace(words(), words(), words(), words(data_limbs), words(data_limbs, limbs), words(2, limbs))


def to_montgomery(words: NDArray[np.uint32], primes: tuple[int, ...]) -> NDArray[np.uint32]:
    """words [..., limbs, N] times 2^32, in place of a copy."""
    out = np.empty_like(words)
    for limb, q in enumerate(primes):
        out[..., limb, :] = ((words[..., limb, :].astype(np.uint64) << np.uint64(32)) % np.uint64(q)).astype(
            np.uint32
        )
    return out


@njit(inline="always")
def montgomery(t, q, q_inverse):  # type: ignore[no-untyped-def]
    """t / 2^32 mod q for t < q 2^32."""
    m = np.uint32(np.uint32(t) * q_inverse)
    high = np.uint32(t >> np.uint64(32))
    r = np.uint32(high - np.uint32((np.uint64(m) * np.uint64(q)) >> np.uint64(32)))
    return min(r, np.uint32(r + q))


@njit(nogil=True, cache=True)
def inverse_limb(source, limb, target, w, t):  # type: ignore[no-untyped-def]
    """Slot-order NTT ``source`` [N] of limb ``limb`` to coefficients ``target`` [N]."""
    ntt.inverse(
        source,
        w.x,
        target,
        t.gather,
        t.split_inverse[limb],
        t.twist_inverse[limb],
        t.cyclic_inverse[limb],
        t.q[limb],
    )


@njit(nogil=True, cache=True)
def forward_limb(source, limb, target, w, t):  # type: ignore[no-untyped-def]
    """Coefficients ``source`` [N] (overwritten) of limb ``limb`` to slot-order NTT ``target`` [N]."""
    ntt.forward(source, w.x, target, t.gather, t.split[limb], t.twist[limb], t.cyclic[limb], t.q[limb])


@njit(nogil=True, cache=True)
def shift_copy(source, target, k):  # type: ignore[no-untyped-def]
    """target = source [N] rotated by k slots, 0 <= k < N/2."""
    half = source.shape[0] // 2
    for base in range(0, 2 * half, half):
        target[base : base + half - k] = source[base + k : base + half]
        target[base + half - k : base + half] = source[base : base + k]


@njit(nogil=True, cache=True)
def shift_add(source, target, k, q):  # type: ignore[no-untyped-def]
    """target += source [N] rotated by k slots, modulo q."""
    half = source.shape[0] // 2
    for base in range(0, 2 * half, half):
        low, high = target[base : base + half - k], target[base + half - k : base + half]
        from_k, wrapped = source[base + k : base + half], source[base : base + k]
        for i in range(half - k):
            low[i] = add_mod(low[i], from_k[i], q)
        for i in range(k):
            high[i] = add_mod(high[i], wrapped[i], q)


@njit(nogil=True, cache=True)
def decompose_digit(c1, digit, out, w, t):  # type: ignore[no-untyped-def]
    """Extend limb ``digit`` of ``c1`` [L, N] to all M primes: ``out`` [M, N]. 1 inverse and L forward NTTs."""
    inverse_limb(c1[digit], digit, w.y, w, t)
    for limb in range(t.q.shape[0]):
        if limb == digit:
            out[limb, :] = c1[digit]
        else:
            q = t.q[limb]
            for i in range(w.y.shape[0]):
                v = w.y[i]
                w.z[i] = min(v, np.uint32(v - q))
            forward_limb(w.z, limb, out[limb], w, t)


@njit(nogil=True, cache=True)
def _multiply_pair(d0, k0, d1, k1, out, start, q, q_inverse):  # type: ignore[no-untyped-def]
    """out += (d0 k0 + d1 k1) / 2^32 over contiguous ranges; replaces ``out`` instead where ``start``."""
    n = out.shape[0]
    if start:
        for i in range(n):
            t = np.uint64(d0[i]) * np.uint64(k0[i]) + np.uint64(d1[i]) * np.uint64(k1[i])
            out[i] = montgomery(t, q, q_inverse)
    else:
        for i in range(n):
            t = np.uint64(d0[i]) * np.uint64(k0[i]) + np.uint64(d1[i]) * np.uint64(k1[i])
            out[i] = add_mod(out[i], montgomery(t, q, q_inverse), q)


@njit(nogil=True, cache=True)
def _multiply_single(d0, k0, out, q, q_inverse):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        t = np.uint64(d0[i]) * np.uint64(k0[i])
        out[i] = add_mod(out[i], montgomery(t, q, q_inverse), q)


@njit(nogil=True, cache=True)
def key_multiply(digits, key, k, out, start, t):  # type: ignore[no-untyped-def]
    """out [2, M, N] (+)= sum over digits of (digit rotated by k) * key; 2 L M N word products."""
    half = digits.shape[2] // 2
    for limb in range(t.q.shape[0]):
        q, q_inverse = t.q[limb], t.q_inverse[limb]
        for component in range(2):
            for part in range(4):
                base = (part // 2) * half
                first, last = (0, half - k) if part % 2 == 0 else (half - k, half)
                if first == last:
                    continue
                lo, hi = base + first, base + last
                shift = k if part % 2 == 0 else k - half
                target = out[component, limb, lo:hi]
                for d in range(0, digits.shape[0] - 1, 2):
                    _multiply_pair(
                        digits[d, limb, lo + shift : hi + shift],
                        key[d, component, limb, lo:hi],
                        digits[d + 1, limb, lo + shift : hi + shift],
                        key[d + 1, component, limb, lo:hi],
                        target,
                        start and d == 0,
                        q,
                        q_inverse,
                    )
                if digits.shape[0] % 2 == 1:
                    d = digits.shape[0] - 1
                    _multiply_single(
                        digits[d, limb, lo + shift : hi + shift],
                        key[d, component, limb, lo:hi],
                        target,
                        q,
                        q_inverse,
                    )


@njit(inline="always")
def drop_step(x, dropped, limb, value, t):  # type: ignore[no-untyped-def]
    """(value - round-correction) / q_dropped mod q_limb; ``x`` is the dropped residue plus floor(q_dropped / 2)."""
    q = t.q[limb]
    r = min(x, np.uint32(x - q))
    r = min(r, np.uint32(r - q))
    u = sub_mod(r, t.drop_half[dropped, limb], q)
    w, w_shoup = t.drop_inverse[dropped, limb, 0], t.drop_inverse[dropped, limb, 1]
    return mul_mod(sub_mod(value, u, q), w, w_shoup, q)


@njit(nogil=True, cache=True)
def mod_down(acc, out, w, t):  # type: ignore[no-untyped-def]
    """Divide ``acc`` [M, N] by the special prime with rounding: ``out`` [L, N]. 1 inverse and L forward NTTs."""
    special = t.q.shape[0] - 1
    p = t.q[special]
    inverse_limb(acc[special], special, w.y, w, t)
    for i in range(w.y.shape[0]):
        w.y[i] = add_mod(w.y[i], t.drop_half[special, special], p)
    for limb in range(special):
        q, half = t.q[limb], t.drop_half[special, limb]
        for i in range(w.y.shape[0]):
            v = w.y[i]
            r = min(v, np.uint32(v - q))
            r = min(r, np.uint32(r - q))
            w.z[i] = sub_mod(r, half, q)
        target = out[limb]
        forward_limb(w.z, limb, target, w, t)
        f, f_shoup = t.drop_inverse[special, limb, 0], t.drop_inverse[special, limb, 1]
        source = acc[limb]
        for i in range(target.shape[0]):
            target[i] = mul_mod(sub_mod(source[i], target[i], q), f, f_shoup, q)


@njit(nogil=True, cache=True)
def rotate_hoisted(c0, digits, key, k, out, w, t):  # type: ignore[no-untyped-def]
    """Rotate (c0 [L, N], decomposed c1) by k: ``out`` [2, L, N]. 2 inverse and 2 L forward NTTs, 2 L M N products."""
    key_multiply(digits, key, k, w.switched, True, t)
    mod_down(w.switched[0], out[0], w, t)
    mod_down(w.switched[1], out[1], w, t)
    for limb in range(c0.shape[0]):
        shift_add(c0[limb], out[0, limb], k, t.q[limb])


@njit(nogil=True, cache=True)
def rotate_lazily(ciphertext, key, k, switched, direct, w, t):  # type: ignore[no-untyped-def]
    """Add the rotation by k of ``ciphertext`` [2, L, N] to sums kept times the special prime.

    ``switched`` [2, M, N] collects the key products before division, ``direct`` [L, N] the rotated c0. Rotating before
    decomposing makes a single rotation equal SEAL's bit for bit. L inverse and L^2 forward NTTs, 2 L M N products.
    """
    for limb in range(direct.shape[0]):
        shift_copy(ciphertext[1, limb], w.rotated[limb], k)
        shift_add(ciphertext[0, limb], direct[limb], k, t.q[limb])
    for digit in range(direct.shape[0]):
        decompose_digit(w.rotated, digit, w.digits[digit], w, t)
    key_multiply(w.digits, key, 0, switched, False, t)


def rotate(
    ciphertext: NDArray[np.uint32], key: NDArray[np.uint32], k: int, tables: Any
) -> NDArray[np.uint32]:
    """Plain rotation of one ciphertext [2, L, N] by k slots, equal to SEAL's ``apply_galois`` bit for bit."""
    limbs, n = ciphertext.shape[1:]
    w = workspace(n, limbs)
    switched = np.zeros((2, limbs + 1, n), dtype=np.uint32)
    out = np.zeros((2, limbs, n), dtype=np.uint32)
    direct = np.zeros((limbs, n), dtype=np.uint32)
    rotate_lazily(ciphertext, key, k, switched, direct, w, tables)
    mod_down(switched[0], out[0], w, tables)
    mod_down(switched[1], out[1], w, tables)
    for limb in range(limbs):
        shift_add(direct[limb], out[0, limb], 0, tables.q[limb])
    return out
