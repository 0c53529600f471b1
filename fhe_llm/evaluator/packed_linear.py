"""Products of packed plans: a small modular matrix product for each distinct weight word.

Words of a plaintext repeat with period G in each half of the slot order, so for every (limb, g) the products of a
layer are OUT[row, column] = sum of V[row, inner] X[inner, column]: rows are (output, giant), inner runs over
(input, baby), columns over (job, component, half, row of tokens). Ciphertext words are transposed into that form
once a rotation and back once a giant step. Weights and inputs are centred, so that 24 products fit a signed sum of
64 bits.

Layouts, with *units* limb * G + g: V [rows, units * inner and a little], X [units, columns / 16, inner, 16],
OUT [rows, units * columns and a little]. The little keeps rows from falling on the same lines of the cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fhe_llm.evaluator.keyswitch import rotate_hoisted, rotate_lazily
from fhe_llm.evaluator.lanes import add, load, store, sub
from fhe_llm.evaluator.lanes import spread as word
from fhe_llm.evaluator.ntt import reduced
from fhe_llm.evaluator.packed_tile import TILE_COLUMNS, TILE_ROWS, multiply_tile
from fhe_llm.evaluator.tiles import TILE, gather_tile


@njit(nogil=True, cache=True)
def spread(ciphertext, starts, x, inner, first_column, tile, q):  # type: ignore[no-untyped-def]
    """Write ``ciphertext`` [2, L, N] (slot order) to ``x`` at one inner index; centred. 2 L N words moved.

    Both halves of a polynomial are one matrix [N / G, G] of rows of tokens, which begin at ``starts`` (int32). Its
    tiles are transposed in ``tile``, of TILE^2 words or more.
    """
    limbs, n, rows = ciphertext.shape[1], ciphertext.shape[2], starts.shape[0]
    width, tiles, depth = x.shape[0] // limbs, x.shape[1], x.shape[2]
    for limb in range(limbs):
        lift, modulus = word(np.uint32(q[limb] - q[limb] // 2 - 1)), word(q[limb])
        for component in range(2):
            base = (component * limbs + limb) * n
            for row in range(0, rows, TILE):
                column = (first_column + component * rows + row) // TILE_COLUMNS
                for g in range(0, width, TILE):
                    gather_tile(ciphertext, starts, base + g, row, tile, 0, TILE)
                    at = (((limb * width + g) * tiles + column) * depth + inner) * TILE_COLUMNS
                    for k in range(TILE):
                        value = reduced(add(load(tile, k * TILE), lift), modulus)  # above q // 2 it passes q
                        store(x, at + k * tiles * depth * TILE_COLUMNS, sub(value, lift))


@njit(nogil=True, cache=True)
def collect(products, first_column, columns, starts, ciphertext):  # type: ignore[no-untyped-def]
    """One row of OUT back to a ciphertext [2, L, N] in slot order. ``starts`` [G] (int32): multiples of ``columns``."""
    limbs, n, width = ciphertext.shape[1], ciphertext.shape[2], starts.shape[0]
    rows = n // width
    for limb in range(limbs):
        for component in range(2):
            first = limb * width * columns + first_column + component * rows
            base = (component * limbs + limb) * n
            for row in range(0, rows, TILE):
                for g in range(0, width, TILE):
                    gather_tile(products, starts, first + row, g, ciphertext, base + row * width + g, width)


@njit(nogil=True, cache=True)
def multiply(v, x, products, base, first, last, t):  # type: ignore[no-untyped-def]
    """Rows ``base`` ... of ``products`` = V X / 2^32 for the units ``first`` ... ``last`` - 1; whole tiles of rows."""
    width = x.shape[0] // t.q.shape[0]
    rows, tiles, depth, stride = v.shape[0], x.shape[1], x.shape[2], products.shape[1]
    flat_v, flat_x, flat_out = v.reshape(-1), x.reshape(-1), products.reshape(-1)
    for unit in range(first, last):
        limb = unit // width
        for tile in range(tiles):
            for row in range(0, rows, TILE_ROWS):
                multiply_tile(
                    flat_v,
                    row * v.shape[1] + unit * depth,
                    v.shape[1],
                    flat_x,
                    (unit * tiles + tile) * depth * TILE_COLUMNS,
                    depth,
                    flat_out,
                    (base + row) * stride + (unit * tiles + tile) * TILE_COLUMNS,
                    stride,
                    t.q[limb],
                    t.q_inverse[limb],
                    t.fold[limb],
                )


@njit(nogil=True, cache=True)
def baby_steps(inputs, digits, keys, key_rows, starts, x, first_column, first, last, turned, w, t):  # type: ignore[no-untyped-def]
    """Rotate inputs and spread them: tasks ``first`` ... ``last`` - 1 number (baby, input) pairs.

    ``inputs`` [n, 2, L, N] and their ``digits`` [n, L, M, N], ``keys`` [elements, L, 2, M, N] with the one of baby k at
    ``key_rows[k]``: it stays in the cache for all inputs. ``starts`` as for :func:`spread`; ``turned`` [2, L, N] is
    overwritten.
    """
    babies, count = key_rows.shape[0], inputs.shape[0]
    for task in range(first, last):
        k, i = task // count, task % count
        if k == 0:
            spread(inputs[i], starts, x, i * babies, first_column, w.x, t.q)
        else:
            rotate_hoisted(inputs[i, 0], digits[i], keys[key_rows[k]], k, turned, w, t)
            spread(turned, starts, x, i * babies + k, first_column, w.x, t.q)


@njit(nogil=True, cache=True)
def giant_steps(products, first_column, columns, starts, keys, key_rows, steps, collected, direct, w, t):  # type: ignore[no-untyped-def]
    """Collect the giants of one output, rotate them into place, add: ``w.switched`` and ``direct``, for ``finish``.

    ``products`` are the output's rows of OUT, with ``columns`` columns a unit; ``starts`` as for :func:`collect`. Giant
    step i, a rotation by ``steps[i]``, has its key at ``key_rows[i]``; only the first may be zero. ``collected`` and
    ``direct`` [2, L, N] are overwritten.
    """
    w.switched[:] = 0
    first = 1 if steps[0] == 0 else 0
    if first == 1:
        collect(products[0], first_column, columns, starts, direct)
    else:
        direct[:] = 0
    for i in range(first, steps.shape[0]):
        collect(products[i], first_column, columns, starts, collected)
        rotate_lazily(collected, keys[key_rows[i]], steps[i], w.switched, direct[0], w, t)
