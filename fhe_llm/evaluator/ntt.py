"""Number-theoretic transform kernels: Cooley-Tukey halves, then small cyclic transforms along contiguous columns.

A transform of N = R * C words runs log2(C) butterfly stages whose partners lie at least R words apart. What remains is,
for each of the C blocks, a polynomial of degree below R modulo X^R - psi^(R e). Its values at the R points of the block
are a cyclic transform of length R after a twist by psi^(n e); gathering the blocks as columns of an [R, C] matrix lets
every inner loop run over contiguous words, and choosing the columns' order and each column's input order makes
the result come out in slot order (see ``rns``). Multiplications by constants are Shoup's (quotient precomputed, Harvey,
"Faster arithmetic for number-theoretic transforms", 2014, section 3), residues stay below the prime throughout.

Cost: N/2 log2(C) + N + about N/2 (log2(R) - 2) + ... word products per transform.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

ROWS: Final = 64


@njit(inline="always")
def mul_mod(x, w, w_shoup, q):  # type: ignore[no-untyped-def]
    """x * w mod q, for x < 2^32 and w < q; the quotient estimate is off by at most one."""
    quotient = np.uint32((np.uint64(x) * np.uint64(w_shoup)) >> np.uint64(32))
    r = np.uint32(np.uint32(x * w) - np.uint32(quotient * q))
    return min(r, np.uint32(r - q))


@njit(inline="always")
def add_mod(x, y, q):  # type: ignore[no-untyped-def]
    r = np.uint32(x + y)
    return min(r, np.uint32(r - q))


@njit(inline="always")
def sub_mod(x, y, q):  # type: ignore[no-untyped-def]
    r = np.uint32(x - y)
    return min(r, np.uint32(r + q))


@njit(nogil=True, cache=True)
def _split(x, split, q):  # type: ignore[no-untyped-def]
    n = x.shape[0]
    columns = split.shape[1]
    m, t = 1, n // 2
    while m < columns:
        for i in range(m):
            w, w_shoup = split[0, m + i], split[1, m + i]
            low = x[2 * i * t : 2 * i * t + t]
            high = x[2 * i * t + t : 2 * i * t + 2 * t]
            for j in range(t):
                u = low[j]
                v = mul_mod(high[j], w, w_shoup, q)
                low[j] = add_mod(u, v, q)
                high[j] = sub_mod(u, v, q)
        m, t = 2 * m, t // 2


@njit(nogil=True, cache=True)
def _merge(x, split, q):  # type: ignore[no-untyped-def]
    n = x.shape[0]
    columns = split.shape[1]
    m, t = columns // 2, n // columns
    while m >= 1:
        for i in range(m):
            w, w_shoup = split[0, m + i], split[1, m + i]
            low = x[2 * i * t : 2 * i * t + t]
            high = x[2 * i * t + t : 2 * i * t + 2 * t]
            for j in range(t):
                u, v = low[j], high[j]
                low[j] = add_mod(u, v, q)
                high[j] = mul_mod(sub_mod(u, v, q), w, w_shoup, q)
        m, t = m // 2, 2 * t


@njit(nogil=True, cache=True)
def _cyclic_forward(a, cyclic, q):  # type: ignore[no-untyped-def]
    """Bit-reversed rows in, natural rows out; ``a`` is [R, C]."""
    rows, columns = a.shape
    for i in range(0, rows, 2):
        x, y = a[i], a[i + 1]
        for c in range(columns):
            u, v = x[c], y[c]
            x[c] = add_mod(u, v, q)
            y[c] = sub_mod(u, v, q)
    half = 2
    while half < rows:
        stride = rows // (2 * half)
        for k in range(half):
            w, w_shoup = cyclic[0, k * stride], cyclic[1, k * stride]
            for i in range(k, rows, 2 * half):
                x, y = a[i], a[i + half]
                if k == 0:
                    for c in range(columns):
                        u, v = x[c], y[c]
                        x[c] = add_mod(u, v, q)
                        y[c] = sub_mod(u, v, q)
                else:
                    for c in range(columns):
                        u = x[c]
                        v = mul_mod(y[c], w, w_shoup, q)
                        x[c] = add_mod(u, v, q)
                        y[c] = sub_mod(u, v, q)
        half *= 2


@njit(nogil=True, cache=True)
def _cyclic_inverse(a, cyclic, q):  # type: ignore[no-untyped-def]
    """Natural rows in, bit-reversed rows out; ``a`` is [R, C]."""
    rows, columns = a.shape
    half = rows // 2
    while half >= 1:
        stride = rows // (2 * half)
        for k in range(half):
            w, w_shoup = cyclic[0, k * stride], cyclic[1, k * stride]
            for i in range(k, rows, 2 * half):
                x, y = a[i], a[i + half]
                if k == 0:
                    for c in range(columns):
                        u, v = x[c], y[c]
                        x[c] = add_mod(u, v, q)
                        y[c] = sub_mod(u, v, q)
                else:
                    for c in range(columns):
                        u, v = x[c], y[c]
                        x[c] = add_mod(u, v, q)
                        y[c] = mul_mod(sub_mod(u, v, q), w, w_shoup, q)
        half //= 2


@njit(nogil=True, cache=True)
def forward(x, scratch, out, gather, split, twist, cyclic, q):  # type: ignore[no-untyped-def]
    """Coefficients ``x`` [N] to slot-order NTT ``out`` [N]; ``x`` is overwritten, ``scratch`` [N] too."""
    _split(x, split, q)
    n = x.shape[0]
    columns = split.shape[1]
    rows = n // columns
    for i in range(n):
        scratch[i] = x[gather[i]]
    matrix = scratch.reshape(rows, columns)
    for r in range(1, rows):
        row, w, w_shoup = matrix[r], twist[0, r], twist[1, r]
        for c in range(columns):
            row[c] = mul_mod(row[c], w[c], w_shoup[c], q)
    _cyclic_forward(matrix, cyclic, q)
    # slot order is [sign, row, column mod C/2]
    half = columns // 2
    for sign in range(2):
        for r in range(rows):
            src = matrix[r, sign * half : (sign + 1) * half]
            base = sign * rows * half + r * half
            dst = out[base : base + half]
            for c in range(half):
                dst[c] = src[c]


@njit(nogil=True, cache=True)
def inverse(x, scratch, out, gather, split, twist, cyclic, q):  # type: ignore[no-untyped-def]
    """Slot-order NTT ``x`` [N] to coefficients ``out`` [N]; ``scratch`` [N] is overwritten, ``x`` is kept."""
    n = x.shape[0]
    columns = split.shape[1]
    rows = n // columns
    half = columns // 2
    matrix = scratch.reshape(rows, columns)
    for sign in range(2):
        for r in range(rows):
            dst = matrix[r, sign * half : (sign + 1) * half]
            base = sign * rows * half + r * half
            src = x[base : base + half]
            for c in range(half):
                dst[c] = src[c]
    _cyclic_inverse(matrix, cyclic, q)
    for r in range(rows):
        row, w, w_shoup = matrix[r], twist[0, r], twist[1, r]
        for c in range(columns):
            row[c] = mul_mod(row[c], w[c], w_shoup[c], q)
    for i in range(n):
        out[gather[i]] = scratch[i]
    _merge(out, split, q)


@njit(nogil=True, cache=True)
def forward_many(words, limb, gather, split, twist, cyclic, q):  # type: ignore[no-untyped-def]
    """Transform limb ``limb`` of every polynomial of ``words`` [count, limbs, N] in place."""
    x = np.empty(words.shape[2], dtype=np.uint32)
    scratch = np.empty(words.shape[2], dtype=np.uint32)
    for i in range(words.shape[0]):
        x[:] = words[i, limb]
        forward(x, scratch, words[i, limb], gather, split, twist, cyclic, q)


@njit(nogil=True, cache=True)
def inverse_many(words, limb, gather, split, twist, cyclic, q):  # type: ignore[no-untyped-def]
    """Inverse of :func:`forward_many`."""
    x = np.empty(words.shape[2], dtype=np.uint32)
    scratch = np.empty(words.shape[2], dtype=np.uint32)
    for i in range(words.shape[0]):
        x[:] = words[i, limb]
        inverse(x, scratch, words[i, limb], gather, split, twist, cyclic, q)
