"""Weights to plaintext words for packed plans, made when they are needed: many small polynomials at once.

A real slot vector of period G is a polynomial p in Y = X^{N/2G} with p(Y) = p(1/Y), so it is known by its remainder
modulo Y^G - i: G complex numbers that one inverse transform of length G takes from the slots, c_j - i c_{G-j} for
integers c. The same remainder modulo a prime, with a square root of -1 for i, and a forward transform of length
G give the G words that stand in both halves of the slot order and repeat with period G in each. Lanes are sixteen
consecutive offsets of one diagonal band, so the kernel reads weights and writes words contiguously; two of them
share one complex transform, one in the real parts and one in the imaginary ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.ntt import add_mod, mul_mod, sub_mod
from fhe_llm.evaluator.packed_plan import PackedPlan
from fhe_llm.evaluator.rns import primitive_root, slot_exponents
from fhe_llm.params import Preset, preset

LANES: Final = 16
_HALF: Final = LANES // 2


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
    """Tables for slot vectors of period ``width``, a power of two from 2 to N/2."""
    parameters = preset(preset_name)
    n, primes = parameters.ring_degree, parameters.data_primes
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


def encode_block(
    plan: PackedPlan, weights: NDArray[np.float32], log_scale: int, first_output: int, outputs: int
) -> NDArray[np.int32]:
    """Words of ``outputs`` output blocks, [L, G, outputs * giants, inputs * babies]: Montgomery form, centred."""
    tables = packed_tables(plan.preset_name, plan.width)
    steps, giants = giant_steps(plan), len(plan.giant_rotations)
    rows, inner = outputs * giants, plan.input_ciphertexts * plan.babies
    words = np.empty((rows, len(tables.q) * plan.width * inner), dtype=np.int32)
    encode_rows(weights, 2.0**log_scale, plan.babies, steps, first_output * giants, words, 0, rows, tables)
    return words.reshape(rows, len(tables.q), plan.width, inner).transpose(1, 2, 0, 3)


def giant_steps(plan: PackedPlan) -> NDArray[np.int64]:
    """The plan's giant steps as the kernels take them."""
    return np.array(plan.giant_rotations, dtype=np.int64)


@njit(nogil=True, cache=True)
def encode_rows(weights, scale, babies, steps, base, words, first, last, t):  # type: ignore[no-untyped-def]
    """Encode rows ``first`` ... ``last`` - 1 of ``words``, each [L, G, inputs * babies] flat and maybe longer (int32).

    Row r stands for (output, giant) number ``base`` + r, its rotation is in ``steps``; ``weights`` is [out_features,
    in_features]. For each sixteen plaintexts: one complex transform of 8 and L of 16 lanes of G points.
    """
    width = t.leaf.shape[0]
    groups = -(-babies // LANES)
    giants, inner = steps.shape[0], -(-weights.shape[1] // width) * babies
    real = np.empty(width * _HALF, dtype=np.float64)
    imag = np.empty(width * _HALF, dtype=np.float64)
    whole = np.empty((width, LANES), dtype=np.float64)
    flipped = np.empty((width, LANES), dtype=np.float64)
    z = np.empty((width, LANES), dtype=np.uint32)
    for row in range(first, last):
        out, giant = (base + row) // giants, steps[(base + row) % giants]
        for task in range(inner // babies * groups):
            source, baby = task // groups, task % groups * LANES
            column, used, offset = source * babies + baby, min(LANES, babies - baby), giant + baby - width
            _gather(weights, out, source, offset, giant, real, imag, t.leaf)
            _inverse(real, imag, t.cosine, t.sine)
            _coefficients(real, imag, scale / width, whole, flipped)
            for limb in range(t.q.shape[0]):
                q = t.q[limb]
                flat = z.reshape(-1)
                _enter(whole.reshape(-1), flipped.reshape(-1), flat, t.enter[limb], q, t.q_inverse[limb])
                _forward(flat, t.twiddle[limb], q)
                _leave(z, t.leaf, words[row], limb * width * inner + column, inner, used, q)


@njit(nogil=True, cache=True)
def _gather(weights, out, source, offset, giant, real, imag, leaf):  # type: ignore[no-untyped-def]
    """The band's diagonals ``offset`` + lane as slots, rotated by -giant: lanes 0-7 real parts, 8-15 imaginary ones."""
    width = leaf.shape[0]
    first_row, first_column = out * width, source * width
    columns = min(width, weights.shape[1] - first_column)
    for g in range(width):
        at = leaf[(g + giant) % width] * _HALF
        a, b = real[at : at + _HALF], imag[at : at + _HALF]
        j = g + offset
        if first_row + g >= weights.shape[0] or j <= -LANES or j >= columns:
            a[:] = 0.0
            b[:] = 0.0
            continue
        if j >= 0 and j + LANES <= columns:
            row = weights[first_row + g, first_column + j : first_column + j + LANES]
            for lane in range(_HALF):
                a[lane] = np.float64(row[lane])
                b[lane] = np.float64(row[_HALF + lane])
        else:
            row = weights[first_row + g, first_column : first_column + columns]
            for lane in range(_HALF):
                k = j + lane
                a[lane] = np.float64(row[k]) if 0 <= k < columns else 0.0
                k += _HALF
                b[lane] = np.float64(row[k]) if 0 <= k < columns else 0.0


@njit(nogil=True, cache=True)
def _inverse(real, imag, cosine, sine):  # type: ignore[no-untyped-def]
    """Values at the leaves to G times the remainder modulo Y^G - i, in place; [G, lanes] flat."""
    nodes, length = cosine.shape[0] // 2, 2 * _HALF
    while nodes >= 1:
        half = length // 2
        for i in range(nodes):
            c, s = cosine[nodes + i], sine[nodes + i]
            at = i * length
            a, b = real[at : at + half], imag[at : at + half]
            u, v = real[at + half : at + length], imag[at + half : at + length]
            for k in range(half):
                x, y = a[k] - u[k], b[k] - v[k]
                a[k] += u[k]
                b[k] += v[k]
                u[k] = x * c + y * s
                v[k] = y * c - x * s
        nodes, length = nodes // 2, 2 * length


@njit(nogil=True, cache=True)
def _coefficients(real, imag, factor, whole, flipped):  # type: ignore[no-untyped-def]
    """Part the two vectors that share a remainder and round: ``whole`` [G, LANES], whole numbers below 2^51.

    Row j of ``flipped`` is row G - j of ``whole``, row 0 zero.
    """
    width = whole.shape[0]
    for lane in range(_HALF):
        whole[0, lane] = np.rint(real[lane] * factor)
        whole[0, _HALF + lane] = np.rint(imag[lane] * factor)
    flipped[0] = 0.0
    half = 0.5 * factor
    for j in range(1, width):
        at, other = j * _HALF, (width - j) * _HALF
        a, b = real[at : at + _HALF], imag[at : at + _HALF]
        u, v = real[other : other + _HALF], imag[other : other + _HALF]
        out, mirror = whole[j], flipped[width - j]
        for lane in range(_HALF):
            low, high = np.rint((a[lane] - v[lane]) * half), np.rint((b[lane] + u[lane]) * half)
            out[lane], mirror[lane] = low, low
            out[_HALF + lane], mirror[_HALF + lane] = high, high


@njit(inline="always")
def _montgomery(t, q, q_inverse):  # type: ignore[no-untyped-def]
    """t / 2^32 mod q for t < q 2^32."""
    m = np.uint32(np.uint32(t) * q_inverse)
    high = np.uint32(t >> np.uint64(32))
    r = np.uint32(high - np.uint32((np.uint64(m) * np.uint64(q)) >> np.uint64(32)))
    return min(r, np.uint32(r + q))


@njit(inline="always")
def _residue(c, q, modulus, reciprocal):  # type: ignore[no-untyped-def]
    """A whole number below 2^51 in magnitude modulo q; the quotient is rounded to nearest."""
    r = np.int32(c - np.rint(c * reciprocal) * modulus)
    return np.uint32(np.uint32(r) + (q & np.uint32(r >> np.int32(31))))


@njit(nogil=True, cache=True)
def _enter(whole, flipped, z, enter, q, q_inverse):  # type: ignore[no-untyped-def]
    """(c_j - i c_{G-j}) 2^32 modulo q: the remainder modulo Y^G - i in Montgomery form; everything flat."""
    modulus, reciprocal = np.float64(q), 1.0 / np.float64(q)
    unit, minus_i = np.uint64(enter[0]), np.uint64(enter[1])
    for k in range(z.shape[0]):
        x = _residue(whole[k], q, modulus, reciprocal)
        y = _residue(flipped[k], q, modulus, reciprocal)
        z[k] = _montgomery(np.uint64(x) * unit + np.uint64(y) * minus_i, q, q_inverse)


@njit(nogil=True, cache=True)
def _forward(z, twiddle, q):  # type: ignore[no-untyped-def]
    """The remainder modulo Y^G - i to its values at the leaves, in place; [G, LANES] flat."""
    nodes, length = 1, z.shape[0]
    while length > LANES:
        half = length // 2
        for i in range(nodes):
            w, w_shoup = twiddle[0, nodes + i], twiddle[1, nodes + i]
            low, high = z[i * length : i * length + half], z[i * length + half : (i + 1) * length]
            for k in range(half):
                x, y = low[k], mul_mod(high[k], w, w_shoup, q)
                low[k] = add_mod(x, y, q)
                high[k] = sub_mod(x, y, q)
        nodes, length = 2 * nodes, half


@njit(nogil=True, cache=True)
def _leave(z, leaf, words, first, inner, used, q):  # type: ignore[no-untyped-def]
    """Words in slot order, centred: ``used`` lanes of slot g from ``first`` + g * ``inner`` on."""
    half = np.uint32(q // 2)
    for g in range(leaf.shape[0]):
        source, target = z[leaf[g]], words[first + g * inner : first + g * inner + used]
        for lane in range(used):
            value = source[lane]
            target[lane] = np.int32(value) - (np.int32(q) if value > half else np.int32(0))


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
