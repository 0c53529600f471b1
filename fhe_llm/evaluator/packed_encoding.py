"""Weights to plaintext words for packed plans, made when they are needed: many small polynomials at once.

A real slot vector of period G is a polynomial p in Y = X^{N/2G} with p(Y) = p(1/Y), so it is known by its remainder
modulo Y^G - i: G complex numbers that one inverse transform of length G takes from the slots, c_j - i c_{G-j} for
integers c. The same remainder modulo a prime, with a square root of -1 for i, and a forward transform of length
G give the G words that stand in both halves of the slot order and repeat with period G in each. Lanes are twice eight
consecutive offsets of a diagonal band, so the kernel reads weights and writes words contiguously; each two lanes
share one complex transform, one in the real parts and one in the imaginary ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.float_lanes import (
    FLOATS,
    load_floats,
    load_singles,
    minus,
    nearest,
    plus,
    spread_float,
    store_floats,
    times,
    to_residues,
)
from fhe_llm.evaluator.lanes import (
    SUMS,
    WORDS,
    add,
    load,
    multiply_add,
    multiply_low,
    no_sums,
    spread,
    spread_sum,
    store,
    store_first,
    store_high,
    sub,
)
from fhe_llm.evaluator.ntt import reduced, split_stages
from fhe_llm.evaluator.packed_plan import PackedPlan
from fhe_llm.evaluator.rns import primitive_root, slot_exponents
from fhe_llm.evaluator.views import view
from fhe_llm.params import Preset, preset


class PackedTables(NamedTuple):
    """Constants of one width G: L primes, G leaves; twiddle i of stage m stands at 2^m + i."""

    leaf: NDArray[np.int32]  # [G]: where the tree of remainders leaves slot g
    cosine: NDArray[np.float64]  # [G]
    sine: NDArray[np.float64]  # [G]
    twiddle: NDArray[np.uint32]  # [L, 2, G]: value and Shoup companion
    enter: NDArray[np.uint32]  # [L, 2]: 2^64 and -i 2^64 modulo each prime
    q: NDArray[np.uint32]  # [L]
    q_inverse: NDArray[np.uint32]  # [L]: 1/q mod 2^32
    fold: NDArray[np.int32]  # [L]: 2^32 mod q, centred


@lru_cache(maxsize=16)
def packed_tables(preset_name: str, width: int) -> PackedTables:
    """Tables for slot vectors of period ``width``, a power of two from 2 to N/16: a thread's scratch holds no more."""
    parameters = preset(preset_name)
    n, primes = parameters.ring_degree, parameters.data_primes
    if WORDS * width > n:
        raise ParameterError(
            f"cannot encode weights for {width} features a ciphertext: scratch is for {n // WORDS}. Use larger groups."
        )
    order = 4 * width  # Y is a primitive root of this order at every slot
    exponents = _tree(width)  # [G] twiddle exponents, the leaves' exponents in [1]
    leaves, twiddles = exponents
    where = {int(e): i for i, e in enumerate(leaves)}
    slots = slot_exponents(n)[:width] % order
    leaf = [where[int(e) if e % 4 == 1 else order - int(e)] for e in slots]
    angle = 2 * np.pi * twiddles / order
    twiddle = np.empty((len(primes), 2, width), dtype=np.uint32)
    enter = np.empty((len(primes), 2), dtype=np.uint32)
    for limb, q in enumerate(primes):
        root = pow(primitive_root(q, 2 * n), n // (2 * width), q)
        values = [pow(root, int(e), q) for e in twiddles]
        twiddle[limb] = values, [(value << 32) // q for value in values]
        enter[limb] = pow(2, 64, q), (q - pow(root, width, q)) * pow(2, 64, q) % q
    return PackedTables(
        leaf=np.array(leaf, dtype=np.int32),
        cosine=np.cos(angle),
        sine=np.sin(angle),
        twiddle=twiddle,
        enter=enter,
        q=np.array(primes, dtype=np.uint32),
        q_inverse=np.array([pow(q, -1, 1 << 32) for q in primes], dtype=np.uint32),
        fold=np.array([_centred(pow(2, 32, q), q) for q in primes], dtype=np.int32),
    )


def check_scale(parameters: Preset, name: str, log_scale: int, weights: NDArray[np.float32]) -> None:
    """Raise :class:`ParameterError` where a coefficient, at most the largest weight times the scale, is not exact."""
    if float(np.abs(weights).max(initial=0.0)) * 2.0**log_scale >= 2.0**51:
        raise ParameterError(
            f"cannot encode {name}: weights times 2^{log_scale} leave 51 bits. Use a preset with fewer bits "
            f"than {parameters.name!r}."
        )


def giant_steps(plan: PackedPlan) -> NDArray[np.int64]:
    """The plan's giant steps as the kernels take them."""
    return np.array(plan.giant_rotations, dtype=np.int64)


@njit(nogil=True, cache=True)
def encode_rows(weights, scale, babies, steps, base, words, first, last, reals, lanes, t):  # type: ignore[no-untyped-def]
    """Encode rows ``first`` ... ``last`` - 1 of ``words``, each [L, G, inputs * babies] flat and maybe longer (int32).

    Row r stands for (output, giant) number ``base`` + r, its rotation is in ``steps``; ``weights`` is [out_features,
    in_features], ``babies`` a multiple of eight. ``reals`` [16 G] and ``lanes`` [16 L G] are overwritten. For each
    sixteen plaintexts: one complex transform of 8 and L of 16 lanes of G points. About 3 ns a point of a plaintext.
    """
    width, limbs = t.leaf.shape[0], t.q.shape[0]
    giants, inner = steps.shape[0], -(-weights.shape[1] // width) * babies
    real, imag = view(reals, 0, width * FLOATS), view(reals, width * FLOATS, width * FLOATS)
    z = view(lanes, 0, limbs * width * WORDS)
    for row in range(first, last):
        out, giant = (base + row) // giants, steps[(base + row) % giants]
        for column in range(0, inner, 2 * FLOATS):
            source, baby = column // babies, column % babies
            _gather(weights, out, source, giant + baby - width, giant, real, t.leaf)
            if column + FLOATS < inner:
                source, baby = (column + FLOATS) // babies, (column + FLOATS) % babies
                _gather(weights, out, source, giant + baby - width, giant, imag, t.leaf)
            else:  # what the last columns left would decide how these are rounded
                for i in range(0, width * FLOATS, FLOATS):
                    store_floats(imag, i, spread_float(0.0))
            _inverse(real, imag, t.cosine, t.sine)
            _enter(real, imag, scale / width, z, t)
            for limb in range(limbs):
                part = view(z, limb * width * WORDS, width * WORDS)
                split_stages(part, t.twiddle[limb], t.q[limb], True)
                to = row * words.shape[1] + limb * width * inner + column
                _leave(part, t.leaf, words, to, inner, column + FLOATS < inner, t.q[limb])


@njit(nogil=True, cache=True)
def _gather(weights, out, source, offset, giant, target, leaf):  # type: ignore[no-untyped-def]
    """The band's diagonals ``offset`` ... ``offset`` + 7 as slots, rotated by -giant: ``target`` [G, 8] flat."""
    width, stride = leaf.shape[0], weights.shape[1]
    first_row, first_column = out * width, source * width
    columns = min(width, stride - first_column)
    for g in range(width):
        at, j = leaf[(g + giant) % width] * FLOATS, g + offset
        start = (first_row + g) * stride + first_column + j
        if first_row + g >= weights.shape[0] or j <= -FLOATS or j >= columns:
            store_floats(target, at, spread_float(0.0))
        elif j >= 0 and j + FLOATS <= columns:
            store_floats(target, at, load_singles(weights, start))
        else:
            for lane in range(FLOATS):
                inside = 0 <= j + lane < columns
                target[at + lane] = weights[first_row + g, first_column + j + lane] if inside else 0.0


@njit(inline="always")
def _turned(x, y, u, v, c, s):  # type: ignore[no-untyped-def]
    """(x + i y) + (u + i v) and their difference times c - i s."""
    p, q = minus(x, u), minus(y, v)
    return plus(x, u), plus(y, v), plus(times(p, c), times(q, s)), minus(times(q, c), times(p, s))


@njit(nogil=True, cache=True)
def _inverse(real, imag, cosine, sine):  # type: ignore[no-untyped-def]
    """Values at the leaves to G times the remainder modulo Y^G - i, in place; [G, 8] flat, two stages at a time."""
    nodes, half = cosine.shape[0] // 2, FLOATS
    while nodes >= 2:
        parents = nodes // 2
        for i in range(parents):
            c, s = spread_float(cosine[parents + i]), spread_float(sine[parents + i])
            c0, s0 = spread_float(cosine[nodes + 2 * i]), spread_float(sine[nodes + 2 * i])
            c1, s1 = spread_float(cosine[nodes + 2 * i + 1]), spread_float(sine[nodes + 2 * i + 1])
            for k in range(4 * i * half, (4 * i + 1) * half, FLOATS):
                x0, y0 = load_floats(real, k), load_floats(imag, k)
                x1, y1 = load_floats(real, k + half), load_floats(imag, k + half)
                x2, y2 = load_floats(real, k + 2 * half), load_floats(imag, k + 2 * half)
                x3, y3 = load_floats(real, k + 3 * half), load_floats(imag, k + 3 * half)
                x0, y0, x1, y1 = _turned(x0, y0, x1, y1, c0, s0)
                x2, y2, x3, y3 = _turned(x2, y2, x3, y3, c1, s1)
                x0, y0, x2, y2 = _turned(x0, y0, x2, y2, c, s)
                x1, y1, x3, y3 = _turned(x1, y1, x3, y3, c, s)
                store_floats(real, k, x0)
                store_floats(imag, k, y0)
                store_floats(real, k + half, x1)
                store_floats(imag, k + half, y1)
                store_floats(real, k + 2 * half, x2)
                store_floats(imag, k + 2 * half, y2)
                store_floats(real, k + 3 * half, x3)
                store_floats(imag, k + 3 * half, y3)
        nodes, half = nodes // 4, 4 * half
    if nodes == 1:  # an odd number of stages leaves one
        c, s = spread_float(cosine[1]), spread_float(sine[1])
        for k in range(0, half, FLOATS):
            x0, y0 = load_floats(real, k), load_floats(imag, k)
            x1, y1 = load_floats(real, k + half), load_floats(imag, k + half)
            x0, y0, x1, y1 = _turned(x0, y0, x1, y1, c, s)
            store_floats(real, k, x0)
            store_floats(imag, k, y0)
            store_floats(real, k + half, x1)
            store_floats(imag, k + half, y1)


@njit(inline="always")
def _residue(c, reciprocal, modulus, q):  # type: ignore[no-untyped-def]
    """Whole numbers below 2^51 in magnitude modulo q; the quotient is rounded to nearest."""
    return to_residues(minus(c, times(nearest(times(c, reciprocal)), modulus)), q)


@njit(inline="always")
def _entered(x, y, unit, minus_i, negated, q):  # type: ignore[no-untyped-def]
    """(x - i y) 2^32 modulo q in the high halves, below 2 q."""
    total = multiply_add(multiply_add(no_sums(), x, unit), y, minus_i)
    return multiply_add(total, multiply_low(total, negated), q)


@njit(nogil=True, cache=True)
def _enter(real, imag, factor, z, t):  # type: ignore[no-untyped-def]
    """Part the two vectors that share a remainder, round to c_j, and write (c_j - i c_{G-j}) 2^32 modulo each prime.

    With a + i b the remainder's entry j and u + i v its entry G - j, c_j is (a - v) / 2 for the vectors in the real
    parts and (b + u) / 2 for the others. ``z`` [L, G, 16] flat, below 2 q.
    """
    width = t.leaf.shape[0]
    half, double = spread_float(0.5 * factor), spread_float(2.0)
    for j in range(width // 2 + 1):
        m = width - j if j else 0
        a, b = load_floats(real, j * FLOATS), load_floats(imag, j * FLOATS)
        u, v = load_floats(real, m * FLOATS), load_floats(imag, m * FLOATS)
        if j:
            x0, x1 = nearest(times(minus(a, v), half)), nearest(times(plus(b, u), half))
            y0, y1 = nearest(times(minus(u, b), half)), nearest(times(plus(v, a), half))
        else:  # nothing to part, and c_G is no coefficient
            x0, x1 = nearest(times(times(a, double), half)), nearest(times(times(b, double), half))
            y0, y1 = minus(a, a), minus(b, b)
        for limb in range(t.q.shape[0]):
            word = np.float64(t.q[limb])
            modulus, reciprocal = spread_float(word), spread_float(1.0 / word)
            q = spread_sum(np.uint64(t.q[limb]))
            negated = spread_sum(np.uint64(np.uint32(-np.int64(t.q_inverse[limb]))))
            unit, minus_i = spread_sum(np.uint64(t.enter[limb, 0])), spread_sum(np.uint64(t.enter[limb, 1]))
            p0, p1 = _residue(x0, reciprocal, modulus, q), _residue(x1, reciprocal, modulus, q)
            r0, r1 = _residue(y0, reciprocal, modulus, q), _residue(y1, reciprocal, modulus, q)
            at, other = (limb * width + j) * WORDS, (limb * width + m) * WORDS
            store_high(z, other, _entered(r0, p0, unit, minus_i, negated, q))
            store_high(z, other + SUMS, _entered(r1, p1, unit, minus_i, negated, q))
            store_high(z, at, _entered(p0, r0, unit, minus_i, negated, q))
            store_high(z, at + SUMS, _entered(p1, r1, unit, minus_i, negated, q))


@njit(nogil=True, cache=True)
def _leave(z, leaf, words, first, inner, both, q_word):  # type: ignore[no-untyped-def]
    """Words in slot order, centred: sixteen (or eight) of slot g from flat position ``first`` + g * ``inner`` on."""
    q, q2 = spread(q_word), spread(np.uint32(2) * q_word)
    lift = spread(np.uint32(q_word - q_word // np.uint32(2) - np.uint32(1)))
    for g in range(leaf.shape[0]):
        value = reduced(reduced(load(z, leaf[g] * WORDS), q2), q)
        value = sub(reduced(add(value, lift), q), lift)  # above q // 2 it passes q
        if both:
            store(words, first + g * inner, value)
        else:
            store_first(words, first + g * inner, value)


def _tree(width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Exponents of Y's root at the leaves, and of the twiddles: node i of stage m at 2^m + i.

    A node (Y^L - w^a) parts into (Y^{L/2} - w^{a/2}) and (Y^{L/2} + w^{a/2}), w of order 4 G and w^{2G} = -1.
    """
    nodes = np.array([width], dtype=np.int64)
    twiddles = np.zeros(width, dtype=np.int64)
    while len(nodes) < width:
        twiddles[len(nodes) : 2 * len(nodes)] = nodes // 2
        nodes = np.stack([nodes // 2, nodes // 2 + 2 * width], axis=-1).reshape(-1)
    return nodes, twiddles


def _centred(value: int, q: int) -> int:
    return value - q if value > q // 2 else value
