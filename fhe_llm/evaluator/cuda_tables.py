"""Constants in the form the CUDA kernels take; the layouts are those of ``kernels/tables.cuh`` and ``packed.cu``."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.packed_encoding import packed_tables
from fhe_llm.evaluator.rns import primitive_root, ring_tables
from fhe_llm.params import Preset

MOST_PRIMES: Final = 8
HEAD_WORDS: Final = 256


def kernel_tables(preset: Preset) -> NDArray[np.uint32]:
    """The words every kernel takes; raises :class:`ParameterError` for primes that the kernels' sums cannot take."""
    n, primes = preset.ring_degree, preset.primes
    if max(preset.data_primes) >= 1 << 30 or primes[-1] >= min(1 << 31, 3 * min(primes)):
        raise ParameterError(
            f"cannot evaluate preset {preset.name!r} on CUDA: its data primes must have 30 bits and the special one 31 "
            "at most. Use --device cpu."
        )
    head = np.zeros(HEAD_WORDS, dtype=np.uint32)
    fields = np.split(head, np.cumsum([8, 8, 16, 16, 16, 128]))
    drop, half = fields[5].reshape(8, 8, 2), fields[6].reshape(8, 8)
    special = primes[-1]
    for limb, q in enumerate(primes):
        fields[0][limb] = q
        fields[1][limb] = pow(q, -1, 1 << 32)
        for field, value in ((2, pow(n, -1, q)), (3, special % q), (4, (1 << 32) % q)):
            fields[field].reshape(8, 2)[limb] = _with_companion(value, q)
        for i, dropped in enumerate(primes):
            half[i, limb] = dropped // 2 % q
            if i != limb:
                drop[i, limb] = _with_companion(pow(dropped, -1, q), q)
    order = ring_tables(n, primes).slot_from_seal.astype(np.uint32)
    roots = [_roots(n, q, sign) for sign in (1, -1) for q in primes]
    return np.concatenate([head, order, *roots])


def packed_words(preset: Preset, width: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Constants of packed plans of one width: leaf, pairs of twiddles and of entries; and turns [G, 2] in doubles."""
    t = packed_tables(preset.name, width)
    twiddles = t.twiddle.transpose(0, 2, 1).reshape(-1)  # [L, G] pairs
    words = np.concatenate([t.leaf.view(np.uint32), twiddles, t.enter.reshape(-1)])
    return words.view(np.int32), np.ascontiguousarray(np.stack([t.cosine, t.sine], axis=-1))


def _roots(n: int, q: int, sign: int) -> NDArray[np.uint32]:
    """psi^(sign rev(i)) modulo q with companions, [2 N] flat."""
    root = pow(primitive_root(q, 2 * n), sign, q)
    powers: NDArray[Any] = np.empty(n, dtype=object)
    value = 1
    for i in range(n):
        powers[i] = value
        value = value * root % q
    bits = n.bit_length() - 1
    reversed_index = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)])
    values = powers[reversed_index]
    return np.stack([values, values * (1 << 32) // q], axis=-1).astype(np.uint32).reshape(-1)


def _with_companion(value: int, q: int) -> tuple[int, int]:
    return value, (value << 32) // q
