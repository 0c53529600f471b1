"""Complex slots to ciphertext words and back. Every secret operation is SEAL's; see ``engine``.

An encryption is a prepared SEAL encryption of zero plus our own encoding of the slots: an encoding involves no secret,
and the sum is what SEAL's encryptor would have made of the same plaintext with the same randomness. Seeded zeros wait
in the coefficient domain, so that one FFT and one addition are all that a vector waits for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fhe_llm.client import encoding
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.trimming import input_drop
from fhe_llm.client.zero_pool import ZeroPool
from fhe_llm.errors import ParameterError, ReplyError
from fhe_llm.evaluator import rns
from fhe_llm.params import Preset
from fhe_llm.wire.seed import SEED_BYTES

Slots = encoding.Slots
Words = rns.Words


class Seeded(NamedTuple):
    """Ciphertexts whose second halves are expanded from seeds, as requests carry them."""

    seeds: NDArray[np.uint8]  # [n, 32]
    c0: Words  # [n, data limbs, N], coefficient domain; ``Cipher.drop0`` low bits need not travel


class Cipher:
    """Encrypts and decrypts under one key ring. Thread-safe. Usable after a fork, with an empty pool.

    Every call raises :class:`RetiredKeyError` or :class:`KeyRingError` once the ring is retired or wiped.
    """

    def __init__(self, ring: KeyRing) -> None:
        self.preset = ring.preset
        self.ring = ring
        self.drop0 = input_drop(ring.preset)
        self._zeros = ZeroPool(lambda: ring.engine().zero())
        self._seeded = ZeroPool(lambda: ring.engine().seeded_zero())

    def encrypt(self, slots: Slots) -> Words:
        """Slots [n, N/2] at scale 2^log_input_scale to [n, 2, data limbs, N] in NTT form.

        Raises :class:`ParameterError` for a wrong shape or slots too large to encode.
        """
        plain = self._encode(slots)
        out = np.empty((len(slots), 2, *plain.shape[1:]), dtype=np.uint32)
        for i in range(len(slots)):
            zero = self._zeros.take()
            self._add(zero[0], plain[i], out[i, 0])
            out[i, 1] = zero[1]
        return out

    def encrypt_seeded(self, slots: Slots) -> Seeded:
        """:meth:`encrypt`, with c1 = expand(seed) left out and c0 in the coefficient domain."""
        self._check(slots)
        zeros = [self._seeded.take() for _ in range(len(slots))]
        seeds = np.frombuffer(b"".join(zero.seed for zero in zeros), dtype=np.uint8).reshape(-1, SEED_BYTES)
        c0 = zeros[0].c0[None] if len(zeros) == 1 else np.stack([zero.c0 for zero in zeros])
        encoding.add_coefficients(self.preset, slots, self.preset.log_input_scale, c0)
        return Seeded(seeds, c0)

    def decrypt(self, words: Words, log_scale: float) -> Slots:
        """Words [n, 2, reply limbs, N] in the coefficient domain to slots [n, N/2]; ``log_scale`` is the plaintext's.

        Raises :class:`ReplyError` for words that are not ciphertexts at this level.
        """
        engine, preset = self.ring.engine(), self.preset
        primes = preset.data_primes[: words.shape[2]] if words.ndim == 4 else ()
        if words.shape[1:] != (2, len(primes), preset.ring_degree) or not primes:
            raise ReplyError(
                f"cannot decrypt words of shape {words.shape}: not ciphertexts. Start a new session."
            )
        transformed = rns.ntt_forward(words, preset.ring_degree, primes)
        plain = np.empty((len(words), *words.shape[2:]), dtype=np.uint32)
        for i, ciphertext in enumerate(transformed):
            plain[i] = engine.decrypt(ciphertext)
        return encoding.decode(preset, plain, log_scale)

    def prepare(self, count: int, *, seeded: bool) -> None:
        """Make encryptions of zero ahead, so that ``count`` are ready."""
        (self._seeded if seeded else self._zeros).prepare(count)

    def ready(self, *, seeded: bool) -> int:
        """Encryptions of zero that wait for a vector."""
        return len(self._seeded if seeded else self._zeros)

    def retire(self, reason: str) -> None:
        """Retire the key ring and forget the encryptions made ahead."""
        self.ring.retire(reason)
        self._zeros.drop()
        self._seeded.drop()

    def _encode(self, slots: Slots) -> Words:
        """Slot-order plaintext words; scrambled into SEAL's order by :meth:`_add`."""
        self._check(slots)
        return encoding.encode_slot_order(self.preset, slots, self.preset.log_input_scale)

    def _check(self, slots: Slots) -> None:
        self.ring.engine()
        if slots.ndim != 2 or slots.shape[1] != self.preset.slots:
            raise ParameterError(
                f"cannot encrypt slots of shape {slots.shape}: not [n, {self.preset.slots}]. Pack first."
            )

    def _add(self, zero: Words, plain: Words, out: Words) -> None:
        gather, primes = _order(self.preset)
        _add_gathered(zero, plain, gather, primes, out)


@lru_cache(maxsize=8)
def _order(preset: Preset) -> tuple[NDArray[np.int32], Words]:
    tables = rns.ring_tables(preset.ring_degree, preset.data_primes)
    return tables.seal_from_slot, tables.prime_words()


@njit(nogil=True, cache=True)
def _add_gathered(zero, plain, gather, primes, out):  # type: ignore[no-untyped-def]
    """out = zero + plain modulo the primes, [limbs, N]; ``plain`` arrives in slot order and may be ``out``."""
    row = np.empty(zero.shape[1], dtype=np.uint32)
    for limb in range(zero.shape[0]):
        p = primes[limb]
        for i in range(row.shape[0]):
            total = np.uint32(zero[limb, i] + plain[limb, gather[i]])
            row[i] = min(total, np.uint32(total - p))
        for i in range(row.shape[0]):
            out[limb, i] = row[i]
