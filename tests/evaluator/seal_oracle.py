"""SEAL, through TenSEAL, as the oracle: keys, ciphertext words and the operations we must equal bit for bit."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from fhe_llm.evaluator.contract import EvaluationKeys
from fhe_llm.params import Preset

HEADER = struct.Struct("<HBBBBHQ")


def saved_body(obj: Any) -> bytes:
    """What SEAL writes for ``obj``, decompressed, without the outer header."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        obj.save(str(path))
        data = path.read_bytes()
    mode, size = HEADER.unpack(data[:16])[4], HEADER.unpack(data[:16])[6]
    body = data[16:size]
    return zstandard.ZstdDecompressor().decompressobj().decompress(body) if mode == 2 else body


class SealOracle:
    """One fresh SEAL key with the rotations ``steps``."""

    def __init__(self, preset: Preset, steps: tuple[int, ...]) -> None:
        self.preset = preset
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(preset.ring_degree)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(preset.ring_degree, list(preset.prime_bits)))
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        generator = seal.KeyGenerator(self.context)
        secret = generator.secret_key()
        self.encryptor = seal.Encryptor(self.context, secret)
        self.decryptor = seal.Decryptor(self.context, secret)
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        self.elements = tuple(sorted(pow(3, k, 2 * preset.ring_degree) for k in steps))
        self.galois_keys = seal.GaloisKeys()
        if steps:
            generator.create_galois_keys(list(self.elements), self.galois_keys)

    def words(self, ciphertext: Any) -> NDArray[np.uint32]:
        """[size, limbs, N] in SEAL's NTT order."""
        body = saved_body(ciphertext)
        size, degree, limbs = struct.unpack("<QQQ", body[33:57])
        flat = np.frombuffer(body, dtype="<u8", count=size * limbs * degree, offset=97)
        return flat.reshape(size, limbs, degree).astype(np.uint32)

    def evaluation_keys(self) -> EvaluationKeys:
        limbs, degree = len(self.preset.primes), self.preset.ring_degree
        words = np.empty((len(self.elements), limbs - 1, 2, limbs, degree), dtype=np.uint32)
        for i, element in enumerate(self.elements):
            for digit, key in enumerate(self.galois_keys.key(element)):
                words[i, digit] = self.words(key.data())
        return EvaluationKeys(self.preset, self.elements, words)

    def encode(self, slots: NDArray[np.complex128], scale: float) -> Any:
        plaintext = seal.Plaintext()
        self.encoder.encode([complex(z) for z in slots], scale, plaintext)
        return plaintext

    def plaintext_words(self, plaintext: Any) -> NDArray[np.uint32]:
        """[data limbs, N] of an encoded plaintext."""
        body = saved_body(plaintext)
        count = len(self.preset.data_primes) * self.preset.ring_degree
        return (
            np.frombuffer(body[-8 * count :], dtype="<u8")
            .astype(np.uint32)
            .reshape(-1, self.preset.ring_degree)
        )

    def encrypt(self, slots: NDArray[np.complex128], scale: float) -> Any:
        ciphertext = seal.Ciphertext(self.context)
        self.encryptor.encrypt_symmetric(self.encode(slots, scale), ciphertext)
        return ciphertext

    def load(self, words: NDArray[np.uint32], scale: float) -> Any:
        """A SEAL ciphertext from NTT words [2, limbs, N] at the level with that many limbs."""
        level = self.context.first_context_data()
        while len(level.parms().coeff_modulus()) != words.shape[1]:
            level = level.next_context_data()
        size, limbs, degree = words.shape
        data = words.astype("<u8").tobytes()
        body = (
            struct.pack("<4Q", *level.parms_id())
            + b"\x01"
            + struct.pack("<QQQdQ", size, degree, limbs, scale, 1)
        )
        body += HEADER.pack(0xA15E, 16, 4, 3, 0, 0, 24 + len(data)) + struct.pack("<Q", words.size) + data
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ciphertext"
            path.write_bytes(HEADER.pack(0xA15E, 16, 4, 3, 0, 0, 16 + len(body)) + body)
            ciphertext = seal.Ciphertext(self.context)
            ciphertext.load(self.context, str(path))
        return ciphertext

    def decrypt(self, ciphertext: Any) -> NDArray[np.complex128]:
        plaintext = seal.Plaintext()
        self.decryptor.decrypt(ciphertext, plaintext)
        return np.array(self.encoder.decode_complex(plaintext))
