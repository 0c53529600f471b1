"""Key switching in slot order: decompose, multiply with a Galois key, divide by the special prime.

Digits are one per data prime, as SEAL's (hybrid key switching with one special prime; Kim, Polyakov, Zucca, "Revisiting
homomorphic encryption schemes for finite fields", 2021, appendix B). Keys are stored in Montgomery form (times
2^32), so the sum of two products is brought back to a residue by one Montgomery reduction.

Shapes: L data limbs, M = L + 1 limbs with the special one last, digits [L, M, N], one key [L, 2, M, N]. Residues
are below their primes in and out; everything is in slot order unless said otherwise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.evaluator import ntt
from fhe_llm.evaluator.arena import aligned
from fhe_llm.evaluator.lanes import (
    WORDS,
    add,
    even,
    high_words,
    load,
    multiply_add,
    multiply_low,
    no_sums,
    odd,
    spread,
    store,
    sub,
)
from fhe_llm.evaluator.ntt import add_mod, mul_mod, product_lazy, reduced, sub_mod
from fhe_llm.evaluator.rns import ring_tables
from fhe_llm.evaluator.views import view


class EngineTables(NamedTuple):
    """Constants of all M primes in the form the kernels take; index 0 of a pair is the value, 1 its Shoup companion."""

    q: NDArray[np.uint32]  # [M]
    q_inverse: NDArray[np.uint32]  # [M]: 1/q mod 2^32
    starts: NDArray[np.int32]
    order: NDArray[np.int32]
    split: NDArray[np.uint32]
    split_inverse: NDArray[np.uint32]
    column: NDArray[np.uint32]
    column_inverse: NDArray[np.uint32]
    drop_inverse: NDArray[np.uint32]  # [M, M, 2]: 1/q_i mod q_l
    drop_half: NDArray[np.uint32]  # [M, M]: floor(q_i / 2) mod q_l


class Workspace(NamedTuple):
    """Scratch of one thread. Kernels allocate nothing themselves: a thread that failed in the midst of a pass would
    leave the others waiting for it. They hand it on by value, so it holds no more than a rotation needs."""

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
        rows = [getattr(t, name) for t in ring.primes]
        return np.stack(rows, out=aligned(np.uint32, len(rows), *rows[0].shape))

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
        starts=ring.starts,
        order=ring.order,
        split=stack("split"),
        split_inverse=stack("split_inverse"),
        column=stack("column"),
        column_inverse=stack("column_inverse"),
        drop_inverse=inverse,
        drop_half=half,
    )


def workspace(ring_degree: int, data_limbs: int) -> Workspace:
    """Fresh scratch for one thread."""

    def words(*shape: int) -> NDArray[np.uint32]:
        return aligned(np.uint32, *shape, ring_degree)

    limbs = data_limbs + 1
    return Workspace(
        x=words(),
        y=words(),
        z=words(),
        rotated=words(data_limbs),
        digits=words(data_limbs, limbs),
        switched=words(2, limbs),
    )


def to_montgomery(words: NDArray[np.uint32], primes: tuple[int, ...]) -> NDArray[np.uint32]:
    """words [..., limbs, N] times 2^32: a new C-contiguous array (an indexed one may be strided)."""
    out: NDArray[np.uint32] = aligned(np.uint32, *words.shape)
    for limb, q in enumerate(primes):
        out[..., limb, :] = ((words[..., limb, :].astype(np.uint64) << np.uint64(32)) % np.uint64(q)).astype(
            np.uint32
        )
    return out


@njit(nogil=True, cache=True)
def inverse_limb(source, limb, target, w, t):  # type: ignore[no-untyped-def]
    """Slot-order NTT ``source`` [N] of limb ``limb`` to coefficients ``target`` [N]."""
    ntt.inverse(
        source,
        w.x,
        target,
        t.starts,
        t.order,
        t.split_inverse[limb],
        t.column_inverse[limb],
        t.q[limb],
    )


@njit(nogil=True, cache=True)
def forward_limb(source, limb, target, w, t):  # type: ignore[no-untyped-def]
    """Coefficients ``source`` [N] (overwritten) of limb ``limb`` to slot-order NTT ``target`` [N]."""
    ntt.forward(source, w.x, target, t.starts, t.order, t.split[limb], t.column[limb], t.q[limb])


@njit(nogil=True, cache=True)
def shift_copy(source, target, k):  # type: ignore[no-untyped-def]
    """target = source [N] rotated by k slots, 0 <= k < N/2."""
    half = source.shape[0] // 2
    for base in range(0, 2 * half, half):
        low, high = view(target, base, half - k), view(target, base + half - k, k)
        from_k, wrapped = view(source, base + k, half - k), view(source, base, k)
        for i in range(half - k):
            low[i] = from_k[i]
        for i in range(k):
            high[i] = wrapped[i]


@njit(nogil=True, cache=True)
def shift_add(source, target, k, q):  # type: ignore[no-untyped-def]
    """target += source [N] rotated by k slots, modulo q."""
    half = source.shape[0] // 2
    for base in range(0, 2 * half, half):
        low, high = view(target, base, half - k), view(target, base + half - k, k)
        from_k, wrapped = view(source, base + k, half - k), view(source, base, k)
        for i in range(half - k):
            low[i] = add_mod(low[i], from_k[i], q)
        for i in range(k):
            high[i] = add_mod(high[i], wrapped[i], q)


@njit(inline="always")
def _extend_digit(c1, digit, out, centred, w, t):  # type: ignore[no-untyped-def]
    n = w.y.shape[0]
    inverse_limb(view(c1, digit * n, n), digit, w.y, w, t)
    for limb in range(t.q.shape[0]):
        row = view(out, limb * n, n)
        if limb == digit:
            own = view(c1, digit * n, n)
            for i in range(n):
                row[i] = own[i]
        else:
            # below every other prime, or below four times it, which the transform takes
            wrap, half = np.uint32(t.q[limb] - t.q[digit]), t.q[digit] // np.uint32(2)
            if not centred:
                wrap = np.uint32(0)
            y, z = view(w.y, 0, n), view(w.z, 0, n)
            for i in range(n):
                z[i] = np.uint32(y[i] + wrap) if y[i] > half else y[i]
            forward_limb(w.z, limb, row, w, t)


@njit(nogil=True, cache=True)
def decompose_digit(c1, digit, out, w, t):  # type: ignore[no-untyped-def]
    """Extend limb ``digit`` of ``c1`` [L, N] to all M primes: ``out`` [M, N]. 1 inverse and L forward NTTs.

    Residues are centred first. SEAL's are not; their mean of q/2 multiplies the key's noise into a few slots (those
    whose root is near 1), which costs a hoisted rotation four bits there.
    """
    _extend_digit(c1, digit, out, True, w, t)


@njit(inline="always")
def _sum_of_pair(x0, k0, x1, k1, q_negated, q):  # type: ignore[no-untyped-def]
    """(x0 k0 + x1 k1) / 2^32 mod q in 64-bit lanes, in their high halves and below 2 q; takes low halves."""
    total = multiply_add(multiply_add(no_sums(), x0, k0), x1, k1)
    return multiply_add(total, multiply_low(total, q_negated), q)


@njit(inline="always")
def _multiply_block(digits, at0, at1, key, key0, key1, out, to, step, start, q, negated, q_lanes):  # type: ignore[no-untyped-def]
    """Sixteen words of both components, ``step`` words apart: out[to] (+)= digits[at0] * key[key0] + digits[at1] *
    key[key1], Montgomery; all arrays flat."""
    x0, x1 = load(digits, at0), load(digits, at1)
    even0, odd0, even1, odd1 = even(x0), odd(x0), even(x1), odd(x1)
    for c in range(2):
        k0, k1 = load(key, key0 + c * step), load(key, key1 + c * step)
        evens = _sum_of_pair(even0, even(k0), even1, even(k1), negated, q_lanes)
        odds = _sum_of_pair(odd0, odd(k0), odd1, odd(k1), negated, q_lanes)
        value = reduced(high_words(evens, odds), q)
        if not start:
            value = reduced(add(value, load(out, to + c * step)), q)
        store(out, to + c * step, value)


@njit(nogil=True, cache=True)
def key_multiply(digits, key, k, out, start, edge, t):  # type: ignore[no-untyped-def]
    """out [2, M, N] (+)= sum over digits of (digit rotated by k) * key; 2 L M N word products.

    Montgomery: keys come times 2^32. The sum of two products is below 2^63 and leaves room for the multiple of q that
    clears its low half. ``edge``, 2 WORDS at least, is overwritten.
    """
    count, limbs, n = digits.shape
    half, step = n // 2, limbs * n
    x, y, z = view(digits, 0, digits.size), view(key, 0, key.size), view(out, 0, out.size)
    for limb in range(limbs):
        q = spread(t.q[limb])
        q_lanes, negated = even(q), even(spread(np.uint32(np.uint32(0) - t.q_inverse[limb])))
        for d in range(0, count, 2):
            paired, fresh = d + 1 < count, start and d == 0
            for base in range(limb * n, limb * n + n, half):
                for i in range(0, half, WORDS):
                    to, key0 = base + i, 2 * d * step + base + i
                    at0 = d * step + base + (i + k if i + k < half else i + k - half)
                    key1, at1 = (key0 + 2 * step, at0 + step) if paired else (key0, at0)
                    if paired and not half - WORDS < i + k < half:
                        _multiply_block(x, at0, at1, y, key0, key1, z, to, step, fresh, q, negated, q_lanes)
                        continue
                    for j in range(WORDS):  # across the end of the half, or without a second digit
                        back = half if half - WORDS < i + k < half and i + j + k >= half else 0
                        edge[j] = x[at0 + j - back]
                        edge[WORDS + j] = x[at1 + j - back] if paired else 0
                    _multiply_block(edge, 0, WORDS, y, key0, key1, z, to, step, fresh, q, negated, q_lanes)


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
    special, n = t.q.shape[0] - 1, w.y.shape[0]
    inverse_limb(view(acc, special * n, n), special, w.y, w, t)
    p, half = spread(t.q[special]), spread(t.drop_half[special, special])
    for i in range(0, n, WORDS):
        store(w.y, i, reduced(add(load(w.y, i), half), p))
    for limb in range(special):
        shift = spread(np.uint32(t.q[limb] - t.drop_half[special, limb]))
        for i in range(0, n, WORDS):  # below 2^31 + q, which is below the 4 q that the transform takes
            store(w.z, i, add(load(w.y, i), shift))
        target = view(out, limb * n, n)
        forward_limb(w.z, limb, target, w, t)
        q = spread(t.q[limb])
        f, f_shoup = spread(t.drop_inverse[special, limb, 0]), spread(t.drop_inverse[special, limb, 1])
        for i in range(0, n, WORDS):
            difference = sub(add(load(acc, limb * n + i), q), load(target, i))
            store(target, i, reduced(product_lazy(difference, f, f_shoup, q), q))


@njit(nogil=True, cache=True)
def rotate_hoisted(c0, digits, key, k, out, w, t):  # type: ignore[no-untyped-def]
    """Rotate (c0 [L, N], decomposed c1) by k: ``out`` [2, L, N]. 2 inverse and 2 L forward NTTs, 2 L M N products."""
    key_multiply(digits, key, k, w.switched, True, w.x, t)
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
    limbs, n = direct.shape
    for limb in range(limbs):
        shift_copy(view(ciphertext, (limbs + limb) * n, n), view(w.rotated, limb * n, n), k)
        shift_add(view(ciphertext, limb * n, n), view(direct, limb * n, n), k, t.q[limb])
    for digit in range(limbs):
        _extend_digit(w.rotated, digit, view(w.digits, digit * (limbs + 1) * n, (limbs + 1) * n), False, w, t)
    key_multiply(w.digits, key, 0, switched, False, w.x, t)
