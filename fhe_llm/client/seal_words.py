"""Words into and out of SEAL's objects."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import numpy as np
from numba import njit
from tenseal import sealapi

from fhe_llm.client import seal_memory
from fhe_llm.client.scratch import ScratchFile
from fhe_llm.evaluator.rns import Words
from fhe_llm.params import Preset
from fhe_llm.wire import seal
from fhe_llm.wire.limbs import narrow

_SCALE: Final = 1.0
"""SEAL carries a scale with every object; ours travels beside the words, so SEAL's stays 1."""


class SealWords:
    """Moves words of one context; not thread-safe. What goes in passes SEAL's own load, which checks it.

    What comes out is read from memory where :mod:`seal_memory` proves itself on this system, else through SEAL's save.
    """

    def __init__(self, context: Any, preset: Preset) -> None:
        self._context = context
        self._preset = preset
        self._scratch = ScratchFile()
        self._buffers: dict[tuple[int, int], seal_memory.Wide] = {}
        self._containers: dict[tuple[int, ...], _Container] = {}
        self.reads_memory = seal_memory.supported() and self._memory_agrees()

    def to_ciphertext(self, words: Words) -> Any:
        """A SEAL ciphertext holding ``words`` [2, limbs, N], NTT form, at the level with that many limbs."""
        container = self._containers.get(words.shape)
        if container is None:
            container = self._containers[words.shape] = _Container(words, self._preset)
        return container.load(words, self._context)

    def of_ciphertext(self, ciphertext: Any) -> Words:
        """The words of a ciphertext of two parts at a data level, [2, limbs, N]."""
        shape = (2, ciphertext.coeff_modulus_size(), self._preset.ring_degree)
        if self.reads_memory:
            with contextlib.suppress(seal_memory.LayoutError):
                wide = seal_memory.read_ciphertext(ciphertext, shape)
                return narrow(wide.data, 0, shape, self._preset.primes[: shape[1]])
        return self._saved_ciphertext(ciphertext)

    def of_plaintext(self, plaintext: Any, limbs: int) -> Words:
        """The words of a decrypted plaintext, [limbs, N], NTT form."""
        shape = (limbs, self._preset.ring_degree)
        if self.reads_memory:
            with contextlib.suppress(seal_memory.LayoutError):
                wide = self._buffers.setdefault(shape, np.empty(shape, dtype=np.uint64))
                seal_memory.read_plaintext(plaintext, shape, wide)
                return _narrowed(wide, self._preset.data_primes[:limbs])
        return self._saved_plaintext(plaintext)

    def of_galois_keys(self, keys: Any) -> seal.SealGaloisKeys:
        """All keys of a set, through SEAL's save."""
        return seal.parse_galois_keys(self._saved(keys), self._preset)

    def clear(self) -> None:
        """Overwrite what the scratch file still holds."""
        self._scratch.clear()

    def _saved_ciphertext(self, ciphertext: Any) -> Words:
        return seal.parse_ciphertext(self._saved(ciphertext), self._preset).words

    def _saved_plaintext(self, plaintext: Any) -> Words:
        return seal.parse_plaintext(self._saved(plaintext), self._preset).words

    def _saved(self, thing: Any) -> bytearray:
        self._scratch.clear()
        thing.save(self._scratch.path)
        return self._scratch.read()

    def _memory_agrees(self) -> bool:
        """Whether memory and SEAL's save tell the same about objects without secrets, at every data level."""
        generator = np.random.default_rng()
        for limbs in range(1, len(self._preset.data_primes) + 1):
            primes = np.array(self._preset.data_primes[:limbs])[:, None]
            words = generator.integers(0, primes, (2, limbs, self._preset.ring_degree)).astype(np.uint32)
            ciphertext = self.to_ciphertext(words)
            plaintext = sealapi.Plaintext()
            sealapi.CKKSEncoder(self._context).encode(0.5, ciphertext.parms_id(), 2.0**20, plaintext)
            try:
                wide = seal_memory.read_ciphertext(ciphertext, words.shape)
                plain = seal_memory.read_plaintext(plaintext, words.shape[1:])
            except seal_memory.LayoutError:
                return False
            if not np.array_equal(wide, words) or not np.array_equal(plain, self._saved_plaintext(plaintext)):
                return False
        return True


class _Container:
    """SEAL's container of a ciphertext, kept in a file: the fields are written once, the words in place."""

    def __init__(self, words: Words, preset: Preset) -> None:
        """For ciphertexts of the shape of ``words``; raises :class:`FrameError` where SEAL has no such."""
        self._file = ScratchFile()
        data = seal.build_ciphertext(words, preset, scale=_SCALE)
        self._file.write([data])
        count = words.size
        self._words = np.frombuffer(self._file.pages(), "<u8", count, len(data) - 8 * count)

    def load(self, words: Words, context: Any) -> Any:
        """A SEAL ciphertext holding ``words``, which SEAL checks."""
        _widen(np.ascontiguousarray(words).reshape(-1), self._words)
        ciphertext = sealapi.Ciphertext()
        ciphertext.load(context, self._file.path)
        return ciphertext


def _narrowed(wide: seal_memory.Wide, primes: tuple[int, ...]) -> Words:
    """Words [limbs, N] below their primes out of ``wide``, which is overwritten: it held secrets."""
    words = np.empty(wide.shape, dtype=np.uint32)
    if not _narrow(wide, np.array(primes, dtype=np.uint64), words):
        raise seal_memory.LayoutError("residues")
    return words


@njit(nogil=True, cache=True)
def _narrow(wide, primes, words):  # type: ignore[no-untyped-def]
    good = True
    for limb in range(wide.shape[0]):
        largest = np.uint64(0)
        for i in range(wide.shape[1]):
            word = wide[limb, i]
            wide[limb, i] = 0
            largest = max(largest, word)
            words[limb, i] = np.uint32(word)
        good &= largest < primes[limb]
    return good


@njit(nogil=True, cache=True)
def _widen(words, out):  # type: ignore[no-untyped-def]
    for i in range(words.shape[0]):
        out[i] = words[i]
