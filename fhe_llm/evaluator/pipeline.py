"""One evaluation from first to last word, run by all threads together.

Five phases: decompose the inputs, baby steps, products, giant steps, and the end of each reply. Within a phase threads
take tasks from a counter; between phases they wait for the last task. Nothing returns to the interpreter in between:
waking a thread costs as much as two rotations.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.evaluator import linear
from fhe_llm.evaluator.keyswitch import (
    EngineTables,
    Workspace,
    decompose_digit,
    rotate_hoisted,
    rotate_lazily,
    shift_add,
)
from fhe_llm.evaluator.threads import atomic_add, atomic_read, finish_phase, nanoseconds, take
from fhe_llm.evaluator.views import array_at, view

DECOMPOSE, BABY, PRODUCTS, GIANT, FINISH = range(5)
PHASES: Final = 5
COUNTERS: Final = 16 * PHASES + 1
"""Counters of one evaluation: :func:`threads.take` and :func:`threads.finish_phase`, then the number of threads."""


class Round(NamedTuple):
    """The arrays of one pass: J jobs of O outputs, I inputs in all, S = inputs a job times babies, G groups, W threads.

    Rotation keys are addresses of [L, 2, M, N] arrays like ``key``; ``giant_keys`` is 0 where a group is not rotated.
    """

    inputs: NDArray[np.uint32]  # [I, 2, L, N], SEAL order
    slot_from_seal: NDArray[np.int32]  # [N]
    key: NDArray[np.uint32]  # [L, 2, M, N]
    baby_keys: NDArray[np.int64]  # [I, babies]
    giant_keys: NDArray[np.int64]  # [J, G]
    weights: NDArray[np.uint32]  # [L, blocks, P, BLOCK]
    source: NDArray[np.int32]  # [P]
    groups: NDArray[np.int32]  # [G + 1]
    target: NDArray[np.int32]  # [G]
    giant: NDArray[np.int32]  # [G]
    digits: NDArray[np.uint32]  # [I, L, M, N]
    rotated: NDArray[np.uint32]  # [J, S, 2, L, N]
    side_by_side: NDArray[np.uint64]  # [W, 2 J S BLOCK]: one block of ``rotated`` for each thread
    sums: NDArray[np.uint32]  # [J, G, 2, L, N]
    switched: NDArray[np.uint32]  # [W, J O, 2, M, N]
    direct: NDArray[np.uint32]  # [W, J O, 2, L, N]
    joined: NDArray[np.int64]  # [W]: 1 once a thread's share of the two above counts
    replies: NDArray[np.uint32]  # [J O, 2, reply limbs, N]
    special_mod: NDArray[np.uint32]  # [L, 2]
    counters: NDArray[np.int64]  # [COUNTERS]
    ends: NDArray[np.int64]  # [PHASES + 1]: when each phase ended, in nanoseconds, as thread 0 saw it


@njit(nogil=True, cache=True)
def _decompose(r, task, w, t):  # type: ignore[no-untyped-def]
    """One limb of one input: both parts to slot order, the second part's digit to all primes."""
    _, _, limbs, n = r.inputs.shape
    i, limb = task // limbs, task % limbs
    babies = r.baby_keys.shape[1]
    plain = i * babies * 2 * limbs * n  # baby 0 of input i in ``rotated``, flat
    for c in range(2):
        source = view(r.inputs, ((2 * i + c) * limbs + limb) * n, n)
        target = view(r.rotated, plain + (c * limbs + limb) * n, n)
        for s in range(n):
            target[s] = source[r.slot_from_seal[s]]
    if babies > 1:
        second = view(r.rotated, plain + limbs * n, limbs * n).reshape(limbs, n)
        decompose_digit(second, limb, r.digits[i, limb], w, t)


@njit(nogil=True, cache=True)
def _baby(r, task, w, t):  # type: ignore[no-untyped-def]
    babies = r.baby_keys.shape[1]
    i, k = task // (babies - 1), task % (babies - 1) + 1
    whole = r.rotated.reshape(r.inputs.shape[0], babies, 2, r.inputs.shape[2], r.inputs.shape[3])
    key = array_at(r.baby_keys[i, k], r.key)
    rotate_hoisted(whole[i, 0, 0], r.digits[i], key, k, whole[i, k], w, t)


@njit(nogil=True, cache=True)
def _giant(r, task, thread, w, t):  # type: ignore[no-untyped-def]
    """Turn one group's sum into place and add it to this thread's share of its reply."""
    limbs, group_count = r.inputs.shape[2], r.giant.shape[0]
    j, g = task // group_count, task % group_count
    reply = j * (r.replies.shape[0] // r.sums.shape[0]) + r.target[g]
    total, direct = r.sums[j, g], r.direct[thread, reply]
    k = r.giant[g]
    if k != 0:
        key = array_at(r.giant_keys[j, g], r.key)
        rotate_lazily(total, key, k, r.switched[thread, reply], direct[0], w, t)
        return
    for c in range(2):
        for limb in range(limbs):
            shift_add(total[c, limb], direct[c, limb], 0, t.q[limb])


@njit(nogil=True, cache=True)
def _finish(r, task, w, t):  # type: ignore[no-untyped-def]
    """Add the threads' shares of one component of one reply, divide by the special prime, rescale."""
    reply, c = task // 2, task % 2
    first = 0
    while atomic_read(r.joined, first) == 0:
        first += 1
    switched, direct = r.switched[first, reply, c], r.direct[first, reply, c]
    for other in range(first + 1, r.switched.shape[0]):
        if atomic_read(r.joined, other) == 0:
            continue
        for limb in range(switched.shape[0]):
            shift_add(r.switched[other, reply, c, limb], switched[limb], 0, t.q[limb])
        for limb in range(direct.shape[0]):
            shift_add(r.direct[other, reply, c, limb], direct[limb], 0, t.q[limb])
    linear.finish(switched, direct, r.replies[reply, c], r.special_mod, w, t)


@njit(nogil=True, cache=True)
def _join(r, thread):  # type: ignore[no-untyped-def]
    """Clear this thread's sums before its first giant step."""
    for array in (r.switched, r.direct):
        size = array.size // array.shape[0]
        mine = view(array, thread * size, size)
        for i in range(size):
            mine[i] = 0
    atomic_add(r.joined, thread, 1)


@njit(nogil=True, cache=True)
def _phase(r, phase, total, thread, w, t):  # type: ignore[no-untyped-def]
    done = 0
    task = take(r.counters, phase)
    while task < total:
        if phase == DECOMPOSE:
            _decompose(r, task, w, t)
        elif phase == BABY:
            _baby(r, task, w, t)
        elif phase == PRODUCTS:
            linear.products(r.weights, r.source, r.groups, r.rotated, r.sums, task, r.side_by_side[thread], t)
        elif phase == GIANT:
            if done == 0:
                _join(r, thread)
            _giant(r, task, thread, w, t)
        else:
            _finish(r, task, w, t)
        done += 1
        task = take(r.counters, phase)
    finish_phase(r.counters, phase, done, total)


@njit(nogil=True, cache=True)
def run(r: Round, w: Workspace, t: EngineTables) -> None:
    """One thread's part in the pass ``r``, of at most W; returns when the replies are complete.

    A thread that comes after the work is done returns at once. Nothing in here allocates or raises: the other threads
    would wait for ever for the task of one that left.
    """
    thread = atomic_add(r.counters, COUNTERS - 1, 1)
    jobs, inputs, limbs = r.sums.shape[0], r.inputs.shape[0], r.inputs.shape[2]
    if thread == 0:
        r.ends[0] = nanoseconds()
    for phase in range(PHASES):
        if phase == DECOMPOSE:
            total = inputs * limbs
        elif phase == BABY:
            total = inputs * (r.baby_keys.shape[1] - 1)
        elif phase == PRODUCTS:
            total = r.weights.shape[0] * r.weights.shape[1]
        elif phase == GIANT:
            total = jobs * r.giant.shape[0]
        else:
            total = 2 * r.replies.shape[0]
        _phase(r, phase, total, thread, w, t)
        if thread == 0:
            r.ends[phase + 1] = nanoseconds()
