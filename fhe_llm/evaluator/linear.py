"""The products of baby-step/giant-step: ciphertext rotations times stored weights, and the end of an evaluation.

Stored weights are NTT words in slot order and Montgomery form, laid out [L, N / BLOCK, products, BLOCK] so that one
pass streams them once, in order, for any number of ciphertexts. One block of all rotated inputs stays in the cache.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from fhe_llm.evaluator.keyswitch import drop_step, inverse_limb
from fhe_llm.evaluator.ntt import add_mod, mul_mod

BLOCK: Final = 256
LAZY_PRODUCTS: Final = 16
"""Products of two residues below 2^30 that a 64-bit sum holds."""


@njit(inline="always")
def _reduce(t, q, q_inverse):  # type: ignore[no-untyped-def]
    """t / 2^32 mod q for t < 16 q^2 < 2^64, q < 2^30."""
    m = np.uint32(np.uint32(t) * q_inverse)
    high = np.uint32(t >> np.uint64(32))
    high = min(high, np.uint32(high - np.uint32(2) * q))
    high = min(high, np.uint32(high - q))
    r = np.uint32(high - np.uint32((np.uint64(m) * np.uint64(q)) >> np.uint64(32)))
    return min(r, np.uint32(r + q))


@njit(nogil=True, cache=True)
def _accumulate(weights, inputs, source, limb, lo, first, last, a0, a1):  # type: ignore[no-untyped-def]
    """a0, a1 [BLOCK] += sum of weights[p] * inputs[source[p], 0 or 1, limb, block] for p in first ... last - 1."""
    p = first
    while p + 4 <= last:
        w0, w1, w2, w3 = weights[p], weights[p + 1], weights[p + 2], weights[p + 3]
        s0, s1, s2, s3 = source[p], source[p + 1], source[p + 2], source[p + 3]
        for c in range(2):
            a = a0 if c == 0 else a1
            x0 = inputs[s0, c, limb, lo : lo + BLOCK]
            x1 = inputs[s1, c, limb, lo : lo + BLOCK]
            x2 = inputs[s2, c, limb, lo : lo + BLOCK]
            x3 = inputs[s3, c, limb, lo : lo + BLOCK]
            for i in range(BLOCK):
                t = np.uint64(w0[i]) * np.uint64(x0[i]) + np.uint64(w1[i]) * np.uint64(x1[i])
                a[i] += t + np.uint64(w2[i]) * np.uint64(x2[i]) + np.uint64(w3[i]) * np.uint64(x3[i])
        p += 4
    while p < last:
        w0, s0 = weights[p], source[p]
        for c in range(2):
            a = a0 if c == 0 else a1
            x0 = inputs[s0, c, limb, lo : lo + BLOCK]
            for i in range(BLOCK):
                a[i] += np.uint64(w0[i]) * np.uint64(x0[i])
        p += 1


@njit(nogil=True, cache=True)
def products(weights, source, groups, inputs, out, first_unit, last_unit, t):  # type: ignore[no-untyped-def]
    """For each job j and group g: out[j, g] = sum over products p of the group of weights[p] * inputs[j, source[p]].

    ``weights`` [L, blocks, P, BLOCK], ``source`` [P], ``groups`` [G + 1] offsets into P, ``inputs`` [J, S, 2, L, N],
    ``out`` [J, G, 2, L, N]; units are (limb, block) pairs, numbered limb * blocks + block.
    """
    blocks = weights.shape[1]
    a0 = np.empty(BLOCK, dtype=np.uint64)
    a1 = np.empty(BLOCK, dtype=np.uint64)
    for unit in range(first_unit, last_unit):
        limb, block = unit // blocks, unit % blocks
        q, q_inverse = t.q[limb], t.q_inverse[limb]
        lo = block * BLOCK
        stored = weights[limb, block]
        for g in range(groups.shape[0] - 1):
            for j in range(inputs.shape[0]):
                out0, out1 = out[j, g, 0, limb, lo : lo + BLOCK], out[j, g, 1, limb, lo : lo + BLOCK]
                for first in range(groups[g], groups[g + 1], LAZY_PRODUCTS):
                    last = min(first + LAZY_PRODUCTS, groups[g + 1])
                    a0[:] = 0
                    a1[:] = 0
                    _accumulate(stored, inputs[j], source, limb, lo, first, last, a0, a1)
                    if first == groups[g]:
                        for i in range(BLOCK):
                            out0[i] = _reduce(a0[i], q, q_inverse)
                            out1[i] = _reduce(a1[i], q, q_inverse)
                    else:
                        for i in range(BLOCK):
                            out0[i] = add_mod(out0[i], _reduce(a0[i], q, q_inverse), q)
                            out1[i] = add_mod(out1[i], _reduce(a1[i], q, q_inverse), q)


@njit(nogil=True, cache=True)
def finish(switched, direct, reply, special_mod, w, t):  # type: ignore[no-untyped-def]
    """Divide a sum by the special prime, rescale, leave the NTT domain: one component.

    ``switched`` [M, N] holds key products (overwritten), ``direct`` [L, N] what needs no division, ``special_mod``
    [L, 2] the special prime modulo each data prime with its Shoup companion, ``reply`` [reply limbs, N] receives
    coefficients. M inverse NTTs.
    Equals mod-down, ``rescale_to_next`` and the inverse transform of SEAL bit for bit.
    """
    special = t.q.shape[0] - 1
    for limb in range(special):
        q, f, f_shoup = t.q[limb], special_mod[limb, 0], special_mod[limb, 1]
        row, extra = switched[limb], direct[limb]
        for i in range(row.shape[0]):
            row[i] = add_mod(row[i], mul_mod(extra[i], f, f_shoup, q), q)
    for limb in range(special + 1):
        inverse_limb(switched[limb], limb, w.y, w, t)
        switched[limb, :] = w.y
    for dropped in range(special, reply.shape[0] - 1, -1):
        last, half = switched[dropped], t.drop_half[dropped, dropped]
        for i in range(last.shape[0]):
            last[i] = add_mod(last[i], half, t.q[dropped])
        for limb in range(dropped):
            row = switched[limb]
            for i in range(row.shape[0]):
                row[i] = drop_step(last[i], dropped, limb, row[i], t)
    for limb in range(reply.shape[0]):
        reply[limb, :] = switched[limb]
