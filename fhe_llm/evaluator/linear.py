"""The products of baby-step/giant-step: ciphertext rotations times stored weights, and the end of an evaluation.

Stored weights are NTT words in slot order and Montgomery form, laid out [L, N / BLOCK, products, BLOCK] so that one
pass streams them once, in order, for any number of ciphertexts. One block of all rotated inputs stays in the cache.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from fhe_llm.evaluator.keyswitch import drop_step, inverse_limb
from fhe_llm.evaluator.lanes import (
    SUMS,
    WORDS,
    add,
    even,
    folded,
    high_words,
    load,
    load_sums,
    minimum,
    multiply_add,
    multiply_low,
    no_sums,
    odd,
    spread,
    spread_sum,
    store,
    store_sums,
    sub,
    will_read_once,
)
from fhe_llm.evaluator.ntt import add_mod, mul_mod, reduced
from fhe_llm.evaluator.views import view

BLOCK: Final = 32
"""Words of a plaintext that are multiplied together: two vectors, whose eight vectors of sums stay in registers."""
AHEAD: Final = 1024
"""Words between a weight that is multiplied and the one that is asked for."""
FOLD_EVERY: Final = 8
"""Products of residues below 2^30 that may join a sum below 8 q^2 before it must be folded below that again."""


@njit(inline="always")
def _product(w, x, at, e0, o0, e1, o1):  # type: ignore[no-untyped-def]
    """Sixteen weights times sixteen words of both components, added to the sums of even and odd words."""
    we, wo = even(w), odd(w)
    e0, o0 = multiply_add(e0, we, load_sums(x, at)), multiply_add(o0, wo, load_sums(x, at + SUMS))
    e1 = multiply_add(e1, we, load_sums(x, at + 2 * SUMS))
    o1 = multiply_add(o1, wo, load_sums(x, at + 3 * SUMS))
    return e0, o0, e1, o1


@njit(inline="always")
def _residues(evens, odds, inverse, q, q_lanes, limit):  # type: ignore[no-untyped-def]
    """Any sums to (sum / 2^32 mod q), in order; Montgomery's reduction."""
    evens, odds = folded(evens, limit), folded(odds, limit)  # below 8 q^2, so that the high half is below 2 q
    high = reduced(high_words(evens, odds), q)
    e = multiply_add(no_sums(), multiply_low(evens, inverse), q_lanes)
    o = multiply_add(no_sums(), multiply_low(odds, inverse), q_lanes)
    difference = sub(high, high_words(e, o))
    return minimum(difference, add(difference, q))


@njit(inline="always")
def _gather_block(inputs, limb, lo, x):  # type: ignore[no-untyped-def]
    """One block of all rotated inputs side by side, even words before odd ones: ``x`` uint64, flat, BLOCK words of
    each component. In ``inputs`` the rows lie 2^15 bytes apart, where they would evict each other from the cache."""
    jobs, sources, _, limbs, n = inputs.shape
    at = 0
    for i in range(jobs * sources):
        for offset in range(lo, lo + BLOCK, WORDS):
            for c in range(2):
                row = load(inputs, ((2 * i + c) * limbs + limb) * n + offset)
                store_sums(x, at, even(row))
                store_sums(x, at + SUMS, odd(row))
                at += 2 * SUMS


@njit(inline="always")
def _group(w, base, x, x_base, source, first, last, out, to, step, q_word, q_inverse):  # type: ignore[no-untyped-def]
    """One block of one group: both components of the sum of products first ... last - 1 go to out[to], out[to + step].

    ``w`` from ``base`` on holds the block of each product; all arrays flat.
    """
    q, inverse = spread(q_word), even(spread(q_inverse))
    q_lanes, limit = even(q), spread_sum(np.uint64(8) * np.uint64(q_word) * np.uint64(q_word))
    a0, a1, a2, a3 = no_sums(), no_sums(), no_sums(), no_sums()
    b0, b1, b2, b3 = no_sums(), no_sums(), no_sums(), no_sums()
    for p0 in range(first, last, FOLD_EVERY):
        a0, a1, a2, a3 = folded(a0, limit), folded(a1, limit), folded(a2, limit), folded(a3, limit)
        b0, b1, b2, b3 = folded(b0, limit), folded(b1, limit), folded(b2, limit), folded(b3, limit)
        for p in range(p0, min(p0 + FOLD_EVERY, last)):
            i, at = base + p * BLOCK, x_base + np.int64(source[p]) * (2 * BLOCK)
            will_read_once(w, i + AHEAD)
            will_read_once(w, i + AHEAD + WORDS)
            a0, a1, a2, a3 = _product(load(w, i), x, at, a0, a1, a2, a3)
            b0, b1, b2, b3 = _product(load(w, i + WORDS), x, at + 4 * SUMS, b0, b1, b2, b3)
    store(out, to, _residues(a0, a1, inverse, q, q_lanes, limit))
    store(out, to + step, _residues(a2, a3, inverse, q, q_lanes, limit))
    store(out, to + WORDS, _residues(b0, b1, inverse, q, q_lanes, limit))
    store(out, to + step + WORDS, _residues(b2, b3, inverse, q, q_lanes, limit))


@njit(nogil=True, cache=True)
def products(weights, source, groups, inputs, out, unit, x, t):  # type: ignore[no-untyped-def]
    """For each job j and group g: out[j, g] = sum over products p of the group of weights[p] * inputs[j, source[p]].

    ``weights`` [L, blocks, P, BLOCK], ``source`` [P], ``groups`` [G + 1] offsets into P, ``inputs`` [J, S, 2, L, N],
    ``out`` [J, G, 2, L, N]. One block of one limb: ``unit`` = limb * blocks + block; ``x`` [2 J S BLOCK], uint64, is
    overwritten.
    """
    limbs, blocks, count, _ = weights.shape
    jobs, sources, _, _, n = inputs.shape
    group_count = groups.shape[0] - 1
    limb, block = unit // blocks, unit % blocks
    _gather_block(inputs, limb, block * BLOCK, x)
    q, q_inverse = t.q[limb], t.q_inverse[limb]
    for g in range(group_count):
        for j in range(jobs):
            _group(
                weights,
                unit * count * BLOCK,
                x,
                j * sources * 2 * BLOCK,
                source,
                groups[g],
                groups[g + 1],
                out,
                ((j * group_count + g) * 2 * limbs + limb) * n + block * BLOCK,
                limbs * n,
                q,
                q_inverse,
            )


@njit(nogil=True, cache=True)
def finish(switched, direct, reply, special_mod, w, t):  # type: ignore[no-untyped-def]
    """Divide a sum by the special prime, rescale, leave the NTT domain: one component.

    ``switched`` [M, N] holds key products (overwritten), ``direct`` [L, N] what needs no division, ``special_mod``
    [L, 2] the special prime modulo each data prime with its Shoup companion, ``reply`` [reply limbs, N] receives
    coefficients. M inverse NTTs.
    Equals mod-down, ``rescale_to_next`` and the inverse transform of SEAL bit for bit.
    """
    special = t.q.shape[0] - 1
    n = switched.shape[1]
    for limb in range(special):
        q, f, f_shoup = t.q[limb], special_mod[limb, 0], special_mod[limb, 1]
        row, extra = view(switched, limb * n, n), view(direct, limb * n, n)
        for i in range(n):
            row[i] = add_mod(row[i], mul_mod(extra[i], f, f_shoup, q), q)
    for limb in range(special + 1):
        row = view(switched, limb * n, n)
        inverse_limb(row, limb, w.y, w, t)
        for i in range(0, n, WORDS):
            store(row, i, load(w.y, i))
    for dropped in range(special, reply.shape[0] - 1, -1):
        last, half = view(switched, dropped * n, n), t.drop_half[dropped, dropped]
        for i in range(n):
            last[i] = add_mod(last[i], half, t.q[dropped])
        for limb in range(dropped):
            row = view(switched, limb * n, n)
            for i in range(n):
                row[i] = drop_step(last[i], dropped, limb, row[i], t)
    for limb in range(reply.shape[0]):
        for i in range(0, n, WORDS):
            store(reply, limb * n + i, load(switched, limb * n + i))
