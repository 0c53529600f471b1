"""Number-theoretic transform kernels: butterflies on contiguous words, a transposition, butterflies on columns.

A transform of N = R * C words runs log2(C) stages whose partners lie at least R words apart. What remains is, for each
of the C blocks, a polynomial of degree below R modulo X^R - psi^(R e). The blocks become the columns of an [R, C]
matrix and go through the remaining log2(R) stages together, so that every loop runs over contiguous words. Each column
has its own twiddles, chosen so that row rev(r) of all columns holds row r of the slot order (see ``rns``).

Two stages at a time stay in registers. Multiplications by constants are Shoup's (quotient precomputed) and residues
are lazy: below 4 q on the way forward, below 2 q on the way back (Harvey, "Faster arithmetic for number-theoretic
transforms", 2014, sections 3 and 4). A prime of 31 bits leaves no room for that, and its residues stay below q.

Cost: N/2 log2(N) butterflies of 12 vector instructions (14 for 31 bits), one transposition. Words in and out are
below the prime.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from fhe_llm.evaluator.lanes import (
    WORDS,
    add,
    high_product,
    load,
    low_product,
    minimum,
    spread,
    store,
    sub,
)
from fhe_llm.evaluator.tiles import TILE, gather_tile, scatter_tile

ROWS: Final = 64
LAZY_BELOW: Final = 1 << 30
"""Primes for which 4 q fits a word."""


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


@njit(inline="always")
def reduced(x, q):  # type: ignore[no-untyped-def]
    """A vector below 2 q to one below q."""
    return minimum(x, sub(x, q))


@njit(inline="always")
def product_lazy(x, w, w_shoup, q):  # type: ignore[no-untyped-def]
    """x * w modulo q, below 2 q, for any vector of words x."""
    return sub(low_product(x, w), low_product(high_product(x, w_shoup), q))


@njit(inline="always")
def _forward_pair(u, v, w, w_shoup, q, q2, lazy):  # type: ignore[no-untyped-def]
    """u + w v and u - w v; below 4 q in and out where ``lazy``, below q otherwise."""
    if lazy:
        u = reduced(u, q2)
        t = product_lazy(v, w, w_shoup, q)
        return add(u, t), sub(add(u, q2), t)
    t = reduced(product_lazy(v, w, w_shoup, q), q)
    low, high = add(u, t), sub(u, t)
    return reduced(low, q), minimum(high, add(high, q))


@njit(inline="always")
def _inverse_pair(u, v, w, w_shoup, q, q2, lazy):  # type: ignore[no-untyped-def]
    """u + v and w (u - v); below 2 q in and out where ``lazy``, below q otherwise."""
    if lazy:
        return reduced(add(u, v), q2), product_lazy(sub(add(u, q2), v), w, w_shoup, q)
    difference = sub(u, v)
    difference = minimum(difference, add(difference, q))
    return reduced(add(u, v), q), reduced(product_lazy(difference, w, w_shoup, q), q)


@njit(inline="always")
def split_stages(x, split, q_word, lazy):  # type: ignore[no-untyped-def]
    """Stages with 1, 2, ... C/2 nodes on contiguous words, in place."""
    n, columns = x.shape[0], split.shape[1]
    q, q2 = spread(q_word), spread(np.uint32(2) * q_word)
    m, t = 1, n // 4
    while 2 * m < columns:
        for node in range(m):
            w, s = spread(split[0, m + node]), spread(split[1, m + node])
            w0, s0 = spread(split[0, 2 * m + 2 * node]), spread(split[1, 2 * m + 2 * node])
            w1, s1 = spread(split[0, 2 * m + 2 * node + 1]), spread(split[1, 2 * m + 2 * node + 1])
            for i in range(4 * node * t, 4 * node * t + t, WORDS):
                a, b, c, d = load(x, i), load(x, i + t), load(x, i + 2 * t), load(x, i + 3 * t)
                a, c = _forward_pair(a, c, w, s, q, q2, lazy)
                b, d = _forward_pair(b, d, w, s, q, q2, lazy)
                a, b = _forward_pair(a, b, w0, s0, q, q2, lazy)
                c, d = _forward_pair(c, d, w1, s1, q, q2, lazy)
                store(x, i, a)
                store(x, i + t, b)
                store(x, i + 2 * t, c)
                store(x, i + 3 * t, d)
        m, t = 4 * m, t // 4
    if m < columns:
        t = n // (2 * m)
        for node in range(m):
            w, s = spread(split[0, m + node]), spread(split[1, m + node])
            for i in range(2 * node * t, 2 * node * t + t, WORDS):
                a, b = _forward_pair(load(x, i), load(x, i + t), w, s, q, q2, lazy)
                store(x, i, a)
                store(x, i + t, b)


@njit(inline="always")
def _merge_stages(x, split, q_word, lazy):  # type: ignore[no-untyped-def]
    """Inverse of :func:`split_stages` up to a factor C, in place; words below q out."""
    n, columns = x.shape[0], split.shape[1]
    q, q2 = spread(q_word), spread(np.uint32(2) * q_word)
    m, t = columns // 4, n // columns
    while m >= 1:
        for node in range(m):
            w, s = spread(split[0, m + node]), spread(split[1, m + node])
            w0, s0 = spread(split[0, 2 * m + 2 * node]), spread(split[1, 2 * m + 2 * node])
            w1, s1 = spread(split[0, 2 * m + 2 * node + 1]), spread(split[1, 2 * m + 2 * node + 1])
            for i in range(4 * node * t, 4 * node * t + t, WORDS):
                a, b, c, d = load(x, i), load(x, i + t), load(x, i + 2 * t), load(x, i + 3 * t)
                a, b = _inverse_pair(a, b, w0, s0, q, q2, lazy)
                c, d = _inverse_pair(c, d, w1, s1, q, q2, lazy)
                a, c = _inverse_pair(a, c, w, s, q, q2, lazy)
                b, d = _inverse_pair(b, d, w, s, q, q2, lazy)
                store(x, i, a)
                store(x, i + t, b)
                store(x, i + 2 * t, c)
                store(x, i + 3 * t, d)
        m, t = m // 4, 4 * t
    if t < n:  # an odd number of stages leaves one
        w, s = spread(split[0, 1]), spread(split[1, 1])
        for i in range(0, t, WORDS):
            a, b = _inverse_pair(load(x, i), load(x, i + t), w, s, q, q2, lazy)
            store(x, i, a)
            store(x, i + t, b)
    if lazy:
        for i in range(0, n, WORDS):
            store(x, i, reduced(load(x, i), q))


@njit(inline="always")
def _split_columns(x, out, order, column, q_word, lazy):  # type: ignore[no-untyped-def]
    """Stages with 1, 2, ... R/2 nodes on all columns of ``x`` [R C]; the last two write ``out`` in slot order."""
    rows, columns = order.shape[0], x.shape[0] // order.shape[0]
    half, second = columns // 2, rows * columns
    q, q2 = spread(q_word), spread(np.uint32(2) * q_word)
    m, t = 1, rows // 4
    while m < rows:
        for node in range(m):
            for c0 in range(0, columns, WORDS):
                i = (m + node) * columns + c0
                w, s = load(column, i), load(column, second + i)
                i = 2 * (m + node) * columns + c0
                w0, s0 = load(column, i), load(column, second + i)
                w1, s1 = load(column, i + columns), load(column, second + i + columns)
                for row in range(4 * node * t, 4 * node * t + t):
                    i, step = row * columns + c0, t * columns
                    a, b = load(x, i), load(x, i + step)
                    c, d = load(x, i + 2 * step), load(x, i + 3 * step)
                    a, c = _forward_pair(a, c, w, s, q, q2, lazy)
                    b, d = _forward_pair(b, d, w, s, q, q2, lazy)
                    a, b = _forward_pair(a, b, w0, s0, q, q2, lazy)
                    c, d = _forward_pair(c, d, w1, s1, q, q2, lazy)
                    if t > 1:
                        store(x, i, a)
                        store(x, i + step, b)
                        store(x, i + 2 * step, c)
                        store(x, i + 3 * step, d)
                        continue
                    if lazy:
                        a, b = reduced(reduced(a, q2), q), reduced(reduced(b, q2), q)
                        c, d = reduced(reduced(c, q2), q), reduced(reduced(d, q2), q)
                    base = c0 // half * rows * half + c0 % half  # slot order is [sign, row, column mod C/2]
                    store(out, base + order[row] * half, a)
                    store(out, base + order[row + 1] * half, b)
                    store(out, base + order[row + 2] * half, c)
                    store(out, base + order[row + 3] * half, d)
        m, t = 4 * m, t // 4


@njit(inline="always")
def _merge_columns(source, x, order, column, q_word, lazy):  # type: ignore[no-untyped-def]
    """Inverse of :func:`_split_columns` times C/N: slot-order ``source`` to ``x`` [R C]."""
    rows, columns = order.shape[0], x.shape[0] // order.shape[0]
    half, second = columns // 2, rows * columns
    q, q2 = spread(q_word), spread(np.uint32(2) * q_word)
    m, t = rows // 4, 1
    while m >= 1:
        for node in range(m):
            for c0 in range(0, columns, WORDS):
                i = (m + node) * columns + c0
                w, s = load(column, i), load(column, second + i)
                i = 2 * (m + node) * columns + c0
                w0, s0 = load(column, i), load(column, second + i)
                w1, s1 = load(column, i + columns), load(column, second + i + columns)
                for row in range(4 * node * t, 4 * node * t + t):
                    i, step = row * columns + c0, t * columns
                    if t > 1:
                        a, b = load(x, i), load(x, i + step)
                        c, d = load(x, i + 2 * step), load(x, i + 3 * step)
                    else:
                        base = c0 // half * rows * half + c0 % half
                        a, b = (
                            load(source, base + order[row] * half),
                            load(source, base + order[row + 1] * half),
                        )
                        c = load(source, base + order[row + 2] * half)
                        d = load(source, base + order[row + 3] * half)
                    a, b = _inverse_pair(a, b, w0, s0, q, q2, lazy)
                    c, d = _inverse_pair(c, d, w1, s1, q, q2, lazy)
                    a, c = _inverse_pair(a, c, w, s, q, q2, lazy)
                    b, d = _inverse_pair(b, d, w, s, q, q2, lazy)
                    if m == 1:
                        f, f_shoup = load(column, c0), load(column, second + c0)
                        a, b = product_lazy(a, f, f_shoup, q), product_lazy(b, f, f_shoup, q)
                        if not lazy:
                            a, b = reduced(a, q), reduced(b, q)
                    store(x, i, a)
                    store(x, i + step, b)
                    store(x, i + 2 * step, c)
                    store(x, i + 3 * step, d)
        m, t = m // 4, 4 * t


@njit(inline="always")
def _forward(x, scratch, out, starts, order, split, column, q, lazy):  # type: ignore[no-untyped-def]
    split_stages(x, split, q, lazy)
    columns, rows = starts.shape[0], order.shape[0]
    for n in range(0, rows, TILE):
        for c in range(0, columns, TILE):
            gather_tile(x, starts, n, c, scratch, n * columns + c, columns)
    _split_columns(scratch, out, order, column, q, lazy)


@njit(inline="always")
def _inverse(x, scratch, out, starts, order, split, column, q, lazy):  # type: ignore[no-untyped-def]
    columns, rows = starts.shape[0], order.shape[0]
    _merge_columns(x, scratch, order, column, q, lazy)
    for n in range(0, rows, TILE):
        for c in range(0, columns, TILE):
            scatter_tile(scratch, n * columns + c, columns, out, starts, n, c)
    _merge_stages(out, split, q, lazy)


@njit(nogil=True, cache=True)
def _forward_lazy(x, scratch, out, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    _forward(x, scratch, out, starts, order, split, column, q, True)


@njit(nogil=True, cache=True)
def _forward_strict(x, scratch, out, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    _forward(x, scratch, out, starts, order, split, column, q, False)


@njit(nogil=True, cache=True)
def _inverse_lazy(x, scratch, out, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    _inverse(x, scratch, out, starts, order, split, column, q, True)


@njit(nogil=True, cache=True)
def _inverse_strict(x, scratch, out, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    _inverse(x, scratch, out, starts, order, split, column, q, False)


@njit(nogil=True, cache=True)
def forward(x, scratch, out, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    """Coefficients ``x`` [N] to slot-order NTT ``out`` [N]; ``x`` is overwritten, ``scratch`` [N] too."""
    if q < LAZY_BELOW:
        _forward_lazy(x, scratch, out, starts, order, split, column, q)
    else:
        _forward_strict(x, scratch, out, starts, order, split, column, q)


@njit(nogil=True, cache=True)
def inverse(x, scratch, out, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    """Slot-order NTT ``x`` [N] to coefficients ``out`` [N]; ``scratch`` [N] is overwritten, ``x`` is kept."""
    if q < LAZY_BELOW:
        _inverse_lazy(x, scratch, out, starts, order, split, column, q)
    else:
        _inverse_strict(x, scratch, out, starts, order, split, column, q)


@njit(nogil=True, cache=True)
def forward_many(words, limb, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    """Transform limb ``limb`` of every polynomial of ``words`` [count, limbs, N] in place."""
    x = np.empty(words.shape[2], dtype=np.uint32)
    scratch = np.empty(words.shape[2], dtype=np.uint32)
    for i in range(words.shape[0]):
        row = words[i, limb]
        for j in range(x.shape[0]):
            x[j] = row[j]
        forward(x, scratch, row, starts, order, split, column, q)


@njit(nogil=True, cache=True)
def inverse_many(words, limb, starts, order, split, column, q):  # type: ignore[no-untyped-def]
    """Inverse of :func:`forward_many`."""
    x = np.empty(words.shape[2], dtype=np.uint32)
    scratch = np.empty(words.shape[2], dtype=np.uint32)
    for i in range(words.shape[0]):
        row = words[i, limb]
        for j in range(x.shape[0]):
            x[j] = row[j]
        inverse(x, scratch, row, starts, order, split, column, q)
