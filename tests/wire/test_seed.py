"""Seed expansion against ChaCha20 written out from RFC 8439."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from fhe_llm.errors import FrameError
from fhe_llm.params import PRESETS, Preset
from fhe_llm.wire.seed import expand

SEED = bytes(range(32))


def chacha20_words(key: bytes) -> Iterator[int]:
    """Keystream words, block counter from 0, nonce 0 (RFC 8439, section 2.3)."""
    counter = 0
    while True:
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter, 0, 0, 0]
        state = list(start)
        for turn in range(20):
            shift = turn % 2
            for i in range(4):
                columns = (i, 4 + (i + shift) % 4, 8 + (i + 2 * shift) % 4, 12 + (i + 3 * shift) % 4)
                quarter_round(state, *columns)
        yield from ((x + y) & 0xFFFFFFFF for x, y in zip(state, start, strict=True))
        counter += 1


def quarter_round(s: list[int], a: int, b: int, c: int, d: int) -> None:
    """RFC 8439, section 2.1."""
    for left, right, target, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[left] = (s[left] + s[right]) & 0xFFFFFFFF
        mixed = s[target] ^ s[left]
        s[target] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF


def expand_slowly(seed: bytes, preset: Preset) -> np.ndarray:
    """The definition in docs/wire-format.md, word by word."""
    stream = chacha20_words(seed)
    limbs = []
    for prime in preset.data_primes:
        limb: list[int] = []
        while len(limb) < preset.ring_degree:
            word = next(stream) & ((1 << prime.bit_length()) - 1)
            if word < prime:
                limb.append(word)
        limbs.append(limb)
    return np.array(limbs, np.uint32)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_expansion_is_as_defined(preset: Preset) -> None:
    assert np.array_equal(expand(SEED, preset), expand_slowly(SEED, preset))


def test_many_rejections_neither_skip_nor_repeat_keystream() -> None:
    half = replace(PRESETS["default"], primes=(536870923, 536870939, 2147352577))  # just above 2^29
    assert np.array_equal(expand(SEED, half), expand_slowly(SEED, half))


def test_expansion_does_not_change_between_releases() -> None:
    words = expand(SEED, PRESETS["default"])
    assert words[0, :4].tolist() == FIRST_WORDS
    assert hashlib.sha256(words.tobytes()).hexdigest() == DIGEST


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(FrameError, match="cannot expand seed"):
        expand(bytes(length), PRESETS["default"])


FIRST_WORDS = [1026293049, 706332121, 922992013, 155901112]
DIGEST = "a9e7142477e7e24e653999d9fd491640d2d5a15b8df3d3fd43c058d2e90ba99e"
