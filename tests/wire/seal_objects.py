"""The SEAL side of the container tests, through ``tenseal.sealapi``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tenseal.sealapi as seal
import zstandard

from fhe_llm.params import Preset


class SealParty:
    """Owns a SEAL secret key and encodes, encrypts, decrypts, saves and loads with it."""

    def __init__(self, preset: Preset, path: Path) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(preset.ring_degree)
        parameters.set_coeff_modulus([seal.Modulus(prime) for prime in preset.primes])
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        self.evaluator = seal.Evaluator(self.context)
        self._path = str(path)
        self._generator = seal.KeyGenerator(self.context)
        self._secret = self._generator.secret_key()
        self._encoder = seal.CKKSEncoder(self.context)
        self._encryptor = seal.Encryptor(self.context, self._secret)
        self._decryptor = seal.Decryptor(self.context, self._secret)

    def encode(self, values: list[complex], scale: float = 2.0**30) -> Any:
        plaintext = seal.Plaintext()
        self._encoder.encode([complex(value) for value in values], scale, plaintext)
        return plaintext

    def encrypt(self, values: list[complex], scale: float = 2.0**30) -> Any:
        ciphertext = seal.Ciphertext()
        self._encryptor.encrypt_symmetric(self.encode(values, scale), ciphertext)
        return ciphertext

    def decrypt(self, ciphertext: Any) -> list[complex]:
        plaintext = seal.Plaintext()
        self._decryptor.decrypt(ciphertext, plaintext)
        return list(self._encoder.decode_complex(plaintext))

    def galois_keys(self, elements: list[int]) -> Any:
        keys = seal.GaloisKeys()
        self._generator.create_galois_keys(elements, keys)
        return keys

    def save(self, thing: Any) -> bytes:
        thing.save(self._path)
        return Path(self._path).read_bytes()

    def load_ciphertext(self, data: bytes) -> Any:
        Path(self._path).write_bytes(data)
        ciphertext = seal.Ciphertext()
        ciphertext.load(self.context, self._path)
        return ciphertext


def stored(container: bytes, body: bytes | None = None) -> bytes:
    """The container with compression mode 0, around its own body or another."""
    if body is None:
        body = zstandard.ZstdDecompressor().decompress(container[16:])
    return container[:5] + b"\0" + container[6:8] + (16 + len(body)).to_bytes(8, "little") + body
