"""SEAL's own container: the client's ciphertexts, plaintexts and Galois keys as TenSEAL saves them.

Only the client meets these bytes, and they come from its own TenSEAL; still every length is checked and every
decompression has a cap. Layouts are those of SEAL 4; the proxy never sees a container.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import zstandard

from fhe_llm.errors import FrameError
from fhe_llm.params import Preset
from fhe_llm.wire.header import Reason
from fhe_llm.wire.limbs import Buffer, Words, narrow

_MAGIC: Final = 0xA15E
_VERSION: Final = (4, 3)
_STORED, _ZSTD = 0, 2
_CKKS: Final = 2
_HEADER: Final = struct.Struct("<HBBBBHQ")  # magic, header bytes, major, minor, mode, reserved, total bytes
_ARRAY: Final = struct.Struct("<HBBBBHQQ")  # header of a stored array, then its count of 64-bit words
_CIPHERTEXT: Final = struct.Struct("<32sBQQQdQ")  # parms_id, NTT, size, N, limbs, scale, correction factor
_PLAINTEXT: Final = struct.Struct("<32sQd")  # parms_id, words, scale
_KEYS: Final = struct.Struct("<32sQ")  # parms_id, slots; slot i belongs to Galois element 2i + 1
_SLOT: Final = struct.Struct("<Q")
_KEY_SCALE: Final = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SealCiphertext:
    """``words`` uint32 [2, limbs, N], NTT form in SEAL's order, residues below the first ``limbs`` primes."""

    words: Words
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class SealPlaintext:
    """``words`` uint32 [limbs, N], NTT form in SEAL's order, residues below the first ``limbs`` primes."""

    words: Words
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class SealGaloisKeys:
    """``elements`` ascend; ``words`` uint32 [elements, digits, 2, limbs, N], NTT form, special prime last."""

    elements: tuple[int, ...]
    words: Words


@lru_cache(maxsize=64)
def parms_id(primes: tuple[int, ...], ring_degree: int) -> bytes:
    """SEAL's name for a CKKS level with ``primes``: 32 bytes, BLAKE2b of scheme, N, primes and 0."""
    numbers = (_CKKS, ring_degree, *primes, 0)
    return hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=32).digest()


def build_ciphertext(words: Words, preset: Preset, *, scale: float) -> bytes:
    """A stored (not compressed) container of ``words`` uint32 [size, limbs, N], NTT form, that SEAL loads.

    Cost: one widening copy, 10 µs for one limb at N = 4096. Raises :class:`FrameError` for a wrong shape.
    """
    if words.ndim != 3 or words.shape[0] < 2 or not 1 <= words.shape[1] <= len(preset.data_primes):
        raise _refuse(f"words are {list(words.shape)}, not [size, limbs, N]", "bad_field", verb="build")
    size, limbs, degree = words.shape
    if degree != preset.ring_degree:
        raise _refuse(f"N is {degree}, not {preset.ring_degree}", "bad_field", verb="build")
    name = parms_id(preset.primes[:limbs], degree)
    fields = _CIPHERTEXT.pack(name, 1, size, degree, limbs, scale, 1)
    data = words.astype("<u8").tobytes()
    array = _ARRAY.pack(*_header(_ARRAY.size + len(data)), size * limbs * degree)
    return b"".join(
        (_HEADER.pack(*_header(_HEADER.size + len(fields) + len(array) + len(data))), fields, array, data)
    )


def parse_ciphertext(data: Buffer, preset: Preset) -> SealCiphertext:
    """A ciphertext of two parts that SEAL saved at any data level; else raises :class:`FrameError`."""
    most = _ciphertext_bytes(2, len(preset.data_primes), preset.ring_degree)
    body = _open(data, most)
    limbs = _limbs_of(_peek(_CIPHERTEXT, body, 0)[0], preset)
    if len(body) != _ciphertext_bytes(2, limbs, preset.ring_degree):
        raise _length(len(body), _ciphertext_bytes(2, limbs, preset.ring_degree))
    scale = _check_ciphertext(body, 0, preset.primes[:limbs], preset.ring_degree)
    shape = (2, limbs, preset.ring_degree)
    return SealCiphertext(narrow(body, _CIPHERTEXT.size + _ARRAY.size, shape, preset.primes[:limbs]), scale)


def parse_plaintext(data: Buffer, preset: Preset) -> SealPlaintext:
    """An encoded or decrypted plaintext that SEAL saved; else raises :class:`FrameError`."""
    head, degree = _PLAINTEXT.size + _ARRAY.size, preset.ring_degree
    body = _open(data, head + 8 * len(preset.data_primes) * degree)
    name, count, scale = _peek(_PLAINTEXT, body, 0)
    limbs = _limbs_of(name, preset)
    if count != limbs * degree:
        raise _refuse(f"{count} words are not {limbs} limbs of {degree}", "bad_field")
    if len(body) != head + 8 * count:
        raise _length(len(body), head + 8 * count)
    _check_array(body, _PLAINTEXT.size, count)
    _check_scale(scale)
    return SealPlaintext(narrow(body, head, (limbs, degree), preset.primes[:limbs]), scale)


def parse_galois_keys(data: Buffer, preset: Preset, *, max_elements: int = 256) -> SealGaloisKeys:
    """Galois keys that SEAL saved, without the seeds it may use for itself; raises :class:`FrameError`.

    Cost: 0.6 ms an element at N = 4096, nearly all of it decompression.
    """
    degree, digits = preset.ring_degree, len(preset.data_primes)
    each = _HEADER.size + _ciphertext_bytes(2, len(preset.primes), degree)
    body = _open(data, _KEYS.size + _SLOT.size * degree + max_elements * digits * each)
    name, slots = _peek(_KEYS, body, 0)
    if name != parms_id(preset.primes, degree):
        raise _refuse("the keys are for other parameters", "bad_preset")
    if slots > degree:
        raise _refuse(f"{slots} slots are more than {degree}", "bad_field")
    elements, starts = _find_keys(body, slots, digits, each)
    if not elements:
        raise _refuse("there is no key in it", "bad_field")
    shape = (2, len(preset.primes), degree)
    words = np.empty((len(elements), digits, *shape), dtype=np.uint32)
    for place, start in enumerate(starts):
        for digit in range(digits):
            at = start + digit * each
            _check_header(body, at, each)
            _check_ciphertext(body, at + _HEADER.size, preset.primes, degree, scale=_KEY_SCALE)
            at += _HEADER.size + _CIPHERTEXT.size + _ARRAY.size
            words[place, digit] = narrow(body, at, shape, preset.primes)
    return SealGaloisKeys(elements, words)


def _find_keys(body: memoryview, slots: int, digits: int, each: int) -> tuple[tuple[int, ...], list[int]]:
    """Galois elements and where their first digits start; every slot holds no digit or all of them."""
    elements: list[int] = []
    starts: list[int] = []
    slot, at = 0, _KEYS.size
    while slot < slots:
        counts = np.frombuffer(body, "<u8", min(slots - slot, (len(body) - at) // _SLOT.size), at)
        used = np.flatnonzero(counts)
        empty = int(used[0]) if used.size else slots - slot
        slot, at = slot + empty, at + empty * _SLOT.size
        if slot == slots:
            break
        (held,) = _peek(_SLOT, body, at)
        if held != digits:
            raise _refuse(f"a key has {held} digits, not {digits}", "bad_field")
        elements.append(2 * slot + 1)
        starts.append(at + _SLOT.size)
        slot, at = slot + 1, at + _SLOT.size + digits * each
        if at > len(body):
            raise _length(len(body), at)
    if at != len(body):
        raise _length(len(body), at)
    return tuple(elements), starts


def _open(data: Buffer, most: int) -> memoryview:
    """The body of a container, decompressed if need be, of at most ``most`` bytes."""
    view = memoryview(data).cast("B")
    mode = _check_header(view, 0, len(view), modes=(_STORED, _ZSTD))
    body = view[_HEADER.size :]
    if mode == _STORED:
        if len(body) > most:
            raise _refuse(f"{len(body)} bytes are more than {most}", "oversized")
        return body
    try:
        size = zstandard.frame_content_size(body)
        if size > most:
            raise _refuse(f"it decompresses to {size} bytes, more than {most}", "oversized")
        if size < 0:
            raise _refuse("its compressed part does not tell its length", "bad_field")
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _refuse(f"its compressed part is damaged ({error})", "bad_field") from error
    return memoryview(plain)


def _header(total: int, mode: int = _STORED) -> tuple[int, int, int, int, int, int, int]:
    return _MAGIC, _HEADER.size, *_VERSION, mode, 0, total


def _check_header(body: memoryview, at: int, total: int, modes: tuple[int, ...] = (_STORED,)) -> int:
    """Check a 16-byte header that must span ``total`` bytes; its compression mode."""
    magic, size, major, minor, mode, reserved, claimed = _peek(_HEADER, body, at)
    if magic != _MAGIC or size != _HEADER.size:
        raise _refuse("it does not begin like a SEAL object", "bad_magic")
    if major != _VERSION[0]:
        raise _refuse(f"SEAL {major}.{minor} saved it, not {_VERSION[0]}", "bad_version")
    if mode not in modes or reserved != 0:
        raise _refuse(f"compression mode {mode} is not expected here", "bad_field")
    if claimed != total:
        raise _length(total, claimed)
    return int(mode)


def _check_array(body: memoryview, at: int, count: int) -> None:
    """Check the header of a stored array of ``count`` 64-bit words; seeded arrays are shorter and refused."""
    _check_header(body, at, _ARRAY.size + 8 * count)
    if _peek(_ARRAY, body, at)[-1] != count:
        raise _refuse("an array has not the length its owner needs", "bad_field")


def _check_ciphertext(
    body: memoryview, at: int, primes: tuple[int, ...], degree: int, *, scale: float | None = None
) -> float:
    """Check the fields of a ciphertext of two parts over ``primes`` at ``body[at:]``; its scale."""
    name, ntt, size, n, limbs, found, correction = _peek(_CIPHERTEXT, body, at)
    if name != parms_id(primes, degree):
        raise _refuse("a ciphertext is for other parameters", "bad_preset")
    if (ntt, size, n, limbs, correction) != (1, 2, degree, len(primes), 1):
        raise _refuse("a ciphertext is not two parts in NTT form at its own level", "bad_field")
    _check_scale(found)
    if scale is not None and found != scale:
        raise _refuse(f"scale {found} is not {scale}", "bad_field")
    _check_array(body, at + _CIPHERTEXT.size, 2 * len(primes) * degree)
    return float(found)


def _check_scale(scale: float) -> None:
    if not 0 < scale < float("inf"):
        raise _refuse(f"scale {scale} is not positive and finite", "bad_field")


def _limbs_of(name: bytes, preset: Preset) -> int:
    """The number of data limbs of the level with that parms_id."""
    for limbs in range(1, len(preset.data_primes) + 1):
        if name == parms_id(preset.primes[:limbs], preset.ring_degree):
            return limbs
    raise _refuse("it is for other parameters", "bad_preset")


def _ciphertext_bytes(size: int, limbs: int, degree: int) -> int:
    return _CIPHERTEXT.size + _ARRAY.size + 8 * size * limbs * degree


def _peek(form: struct.Struct, body: memoryview, at: int) -> tuple[Any, ...]:
    if at + form.size > len(body):
        raise _refuse("a field ends after the container", "truncated")
    return form.unpack_from(body, at)


def _length(found: int, needed: int) -> FrameError:
    reason: Reason = "truncated" if found < needed else "oversized"
    return _refuse(f"it has {found} bytes and should have {needed}", reason)


def _refuse(cause: str, reason: Reason, *, verb: str = "parse") -> FrameError:
    advice = "Save it with the TenSEAL release this library asks for." if verb == "parse" else "Correct it."
    return FrameError(f"cannot {verb} SEAL object: {cause}. {advice}", reason=reason)
