"""Evaluation keys: the Galois keys of one client, which rotate ciphertexts and decrypt nothing."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from fhe_llm.params import Preset
from fhe_llm.wire.header import Kind, Reader, check_words, refuse, seal_frame
from fhe_llm.wire.limbs import Buffer, Words, any_transparent, limb_format, pack, unpack

_COUNT: Final = struct.Struct("<H")
MAX_ELEMENTS: Final = (1 << 16) - 1


@dataclass(frozen=True, slots=True, eq=False)
class KeyFrame:
    """Galois keys: ``elements`` odd, ascending, in 3..2N-1; ``words`` uint32 [elements, digits, 2, limbs, N].

    NTT form in SEAL's order, residues below their primes; digits counts the data primes, limbs the special
    one too.
    """

    preset: Preset
    elements: tuple[int, ...]
    words: Words


def key_id(data: Buffer) -> bytes:
    """The name of a set of evaluation keys: SHA-256 of the whole key frame."""
    return hashlib.sha256(data).digest()


def encode_keys(frame: KeyFrame) -> bytes:
    """The frame's bytes; raises :class:`FrameError` for a field that the format cannot carry."""
    preset, elements = frame.preset, frame.elements
    _check_elements(preset, elements, verb="encode")
    check_words(frame.words, _shape(preset, len(elements)), "[elements, digits, 2, limbs, N]")
    if any_transparent(np.ascontiguousarray(frame.words)):
        raise refuse("a key has a second part of zero", "transparent", verb="encode")
    listed = np.array(elements, dtype="<u4").tobytes()
    payload = pack(frame.words, limb_format(preset.primes))
    return seal_frame(Kind.EVALUATION_KEYS, preset, _COUNT.pack(len(elements)), listed, payload)


def decode_keys(reader: Reader, preset: Preset) -> KeyFrame:
    """Read the body of a key frame; raises :class:`FrameError` before any large allocation."""
    (count,) = reader.fields(_COUNT)
    elements = tuple(np.frombuffer(reader.take(4 * count), dtype="<u4").tolist())
    _check_elements(preset, elements)
    form, shape = limb_format(preset.primes), _shape(preset, count)
    payload = reader.rest(count * shape[1] * 2 * form.row_bytes(preset.ring_degree))
    words = unpack(payload, shape, form)
    if any_transparent(words):
        raise refuse("a key has a second part of zero", "transparent")
    return KeyFrame(preset, elements, words)


def _shape(preset: Preset, count: int) -> tuple[int, int, int, int, int]:
    return count, len(preset.data_primes), 2, len(preset.primes), preset.ring_degree


def _check_elements(preset: Preset, elements: tuple[int, ...], *, verb: str = "decode") -> None:
    """Raise :class:`FrameError` (``bad_field``) unless the elements are odd, ascending and in 3..2N-1."""
    if not 1 <= len(elements) <= MAX_ELEMENTS:
        raise refuse(f"{len(elements)} Galois elements are not 1 to {MAX_ELEMENTS}", "bad_field", verb=verb)
    order = 2 * preset.ring_degree
    if not all(element % 2 and 3 <= element < order for element in elements):
        raise refuse(f"a Galois element is not odd and in 3..{order - 1}", "bad_field", verb=verb)
    if any(left >= right for left, right in pairwise(elements)):
        raise refuse("the Galois elements do not ascend", "bad_field", verb=verb)
