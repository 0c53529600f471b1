"""The public half of a seeded ciphertext: 32 bytes expand to a uniform polynomial that both sides can make.

ChaCha20 (RFC 8439) keystream, key = seed, block counter 0, nonce 0, read as little-endian 32-bit words; each
is masked to the bit length of the limb's prime and skipped unless it is below the prime. One stream fills
limb after limb.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numba import njit
from numpy.typing import NDArray

from fhe_llm.errors import FrameError
from fhe_llm.params import Preset

SEED_BYTES: Final = 32
_BLOCK_BYTES: Final = 64
_STRETCH: Final = 512


def expand(seed: bytes, preset: Preset) -> NDArray[np.uint32]:
    """c1 of a seeded ciphertext: uint32 [data limbs, N], NTT form, uniform below each prime.

    A seed is public and MUST be fresh for each ciphertext: two under one key and one seed give away the
    difference of their plaintexts. Raises :class:`FrameError` unless the seed has 32 bytes.
    """
    if len(seed) != SEED_BYTES:
        raise FrameError(
            f"cannot expand seed: it has {len(seed)} bytes. Use {SEED_BYTES} fresh random bytes."
        )
    primes, masks, zeros = _tables(preset)
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    words = np.empty((len(primes), preset.ring_degree), dtype=np.uint32)
    filled = 0
    while filled < words.size:
        missing = 4 * (words.size - filled)
        keystream = stream.update(zeros[: missing + missing // 4096 * 4 + _BLOCK_BYTES])
        filled = _take(np.frombuffer(keystream, "<u4"), primes, masks, words, filled)
    return words


@lru_cache(maxsize=8)
def _tables(preset: Preset) -> tuple[NDArray[np.uint32], NDArray[np.uint32], memoryview]:
    """Primes, the masks of their bit lengths, and zeros to turn into keystream."""
    primes = np.array(preset.data_primes, dtype=np.uint32)
    masks = np.array([(1 << prime.bit_length()) - 1 for prime in preset.data_primes], dtype=np.uint32)
    zeros = bytes(5 * len(primes) * preset.ring_degree + _BLOCK_BYTES)
    return primes, masks, memoryview(zeros)


@njit(cache=True, nogil=True)
def _take(keystream: Any, primes: Any, masks: Any, words: Any, filled: int) -> int:
    """Fill uint32 [limbs, N] from flat position ``filled`` on with the words that pass; the next position.

    Primes lie close under a power of two, so nearly every stretch of words passes as a whole and is copied without a
    branch a word; one that does not is gone through word by word.
    """
    limbs, n = words.shape
    flat = words.reshape(-1)
    at = 0
    while filled < limbs * n and at < keystream.shape[0]:
        limb = filled // n
        prime, mask = primes[limb], masks[limb]
        stretch = min(_STRETCH, (limb + 1) * n - filled, keystream.shape[0] - at)
        largest = np.uint32(0)
        for i in range(stretch):
            word = keystream[at + i] & mask
            largest = max(largest, word)
            flat[filled + i] = word
        if largest < prime:
            at, filled = at + stretch, filled + stretch
            continue
        for i in range(stretch):
            word = keystream[at + i] & mask
            if word < prime:
                flat[filled] = word
                filled += 1
        at += stretch
    return filled
