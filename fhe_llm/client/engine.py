"""The one object that holds the secret key: SEAL's generator, encryptor and decryptor, reached through TenSEAL.

Nothing here computes with the secret key in Python. Between SEAL and us pass ciphertext words, plaintext words,
and the key's own serialised form for the key file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
from tenseal import sealapi

from fhe_llm.client.scratch import ScratchFile
from fhe_llm.client.seal_words import SealWords
from fhe_llm.errors import KeyRingError, ParameterError
from fhe_llm.evaluator import rns
from fhe_llm.params import Preset
from fhe_llm.progress import Progress, silent
from fhe_llm.wire import seed as seed_expansion

Words = rns.Words

_ELEMENTS_AT_ONCE: Final = 8


class SeededZero(NamedTuple):
    """An encryption of zero whose second half anyone can expand from a public seed."""

    seed: bytes  # 32 bytes; a = expand(seed) [data limbs, N]
    c0: Words  # [data limbs, N], coefficient domain: -a s + e


class SecretEngine:
    """SEAL under one preset and one secret key (ternary, as SEAL draws it). Thread-safe; usable after a fork.

    SEAL draws fresh operating-system randomness for every encryption, so forked processes do not share noise. Copying
    and pickling are refused.
    """

    def __init__(self, preset: Preset, secret: bytearray | None = None) -> None:
        """Draw a secret key, or load one that SEAL saved. Raises :class:`ParameterError` where SEAL refuses the
        parameters and :class:`KeyRingError` where it refuses the key."""
        self.preset = preset
        self._context = _context(preset)
        self._lock, self._process = threading.RLock(), os.getpid()
        if secret is None:
            self._generator = sealapi.KeyGenerator(self._context)
            self._secret = self._generator.secret_key()
        else:
            self._secret = _load_secret(self._context, secret)
            self._generator = sealapi.KeyGenerator(self._context, self._secret)
        self._encryptor = sealapi.Encryptor(self._context, self._secret)
        self._decryptor = sealapi.Decryptor(self._context, self._secret)
        self._evaluator = sealapi.Evaluator(self._context)
        self._first = self._context.first_parms_id()
        self._words = SealWords(self._context, preset)

    def zero(self) -> Words:
        """A fresh symmetric encryption of zero, [2, data limbs, N] in NTT form. Cost: one SEAL encryption."""
        with self._exclusive():
            ciphertext = sealapi.Ciphertext()
            self._encryptor.encrypt_zero_symmetric(self._first, ciphertext)
            return self._words.of_ciphertext(ciphertext)

    def seeded_zero(self) -> SeededZero:
        """A fresh encryption of zero under a = expand(seed), a in NTT form.

        SEAL encrypts zero to (c0', a'), subtracts (0, a) and decrypts the difference: c0' + (a' - a) s = -a s + e',
        with c0' = -a' s + e'. Nothing but this sum leaves SEAL, and it is a fresh encryption of zero under a. Cost:
        one encryption, one load, one decryption, one ChaCha20 expansion, the inverse NTTs.
        """
        preset, seed = self.preset, os.urandom(seed_expansion.SEED_BYTES)
        public = np.zeros((2, len(preset.data_primes), preset.ring_degree), dtype=np.uint32)
        public[1] = seed_expansion.expand(seed, preset)
        with self._exclusive():
            ciphertext = sealapi.Ciphertext()
            self._encryptor.encrypt_zero_symmetric(self._first, ciphertext)
            self._evaluator.sub_inplace(ciphertext, self._words.to_ciphertext(public))
            c0 = self._decrypted(ciphertext, len(preset.data_primes))
        return SeededZero(seed, rns.ntt_inverse(c0, preset.ring_degree, preset.data_primes))

    def decrypt(self, words: Words) -> Words:
        """SEAL's decryption of [2, limbs, N] in NTT form: plaintext words [limbs, N], NTT form.

        Raises :class:`KeyRingError` where SEAL refuses the ciphertext.
        """
        return self._decrypt_words(words)

    def galois_words(self, elements: tuple[int, ...], progress: Progress = silent) -> Words:
        """Fresh Galois keys [elements, digits, 2, limbs, N], NTT form, special prime last. About 5 ms an element."""
        n, limbs = self.preset.ring_degree, len(self.preset.primes)
        out = np.empty((len(elements), limbs - 1, 2, limbs, n), dtype=np.uint32)
        with self._exclusive():
            for first in range(0, len(elements), _ELEMENTS_AT_ONCE):
                some = elements[first : first + _ELEMENTS_AT_ONCE]
                keys = sealapi.GaloisKeys()
                self._generator.create_galois_keys(list(some), keys)
                saved = self._words.of_galois_keys(keys)
                order = [saved.elements.index(element) for element in some]
                out[first : first + len(some)] = saved.words[order]
                progress("Making evaluation keys", first + len(some), len(elements))
        return out

    def save_secret(self) -> bytearray:
        """The secret key as SEAL saves it, in a buffer that the caller overwrites after use.

        Raises :class:`KeyRingError` where there is no room to hand it over."""
        with self._exclusive(), ScratchFile() as scratch:
            try:
                self._secret.save(scratch.path)
            except RuntimeError as error:  # the scratch file is on a disk where there is no memory file
                raise KeyRingError(
                    f"cannot save the secret key: SEAL says {error}. Free some memory or disk space."
                ) from None
            return scratch.read()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot copy or pickle a secret key. Use KeyRing.save and KeyRing.load.")

    def _decrypt_words(self, words: Words) -> Words:
        with self._exclusive():
            try:
                return self._decrypted(self._words.to_ciphertext(words), words.shape[1])
            except (RuntimeError, ValueError) as error:
                raise KeyRingError(
                    f"cannot decrypt a reply: SEAL says {error}. Start a new session."
                ) from None

    def _decrypted(self, ciphertext: Any, limbs: int) -> Words:
        plaintext = sealapi.Plaintext()
        try:
            self._decryptor.decrypt(ciphertext, plaintext)
            return self._words.of_plaintext(plaintext, limbs)
        finally:
            plaintext.set_zero()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One caller at a time. In a forked child: a lock nobody holds, and scratch files the parent does not share."""
        if self._process != os.getpid():
            # new containers before the process is known: the parent's are shared memory
            self._words = SealWords(self._context, self.preset)
            self._lock = threading.RLock()
            self._process = os.getpid()
        with self._lock:
            yield


def _context(preset: Preset) -> Any:
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(preset.ring_degree)
    parameters.set_coeff_modulus([sealapi.Modulus(p) for p in preset.primes])
    context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ParameterError(
            f"cannot use preset {preset.name}: SEAL says {context.parameters_error_message()}. Use another preset."
        )
    return context


def _load_secret(context: Any, secret: bytearray) -> Any:
    key = sealapi.SecretKey()
    with ScratchFile() as scratch:
        scratch.write([secret])
        try:
            key.load(context, scratch.path)
        except (RuntimeError, ValueError) as error:
            raise KeyRingError(
                f"cannot load the secret key: SEAL says {error}. Restore it from a copy."
            ) from None
    return key
