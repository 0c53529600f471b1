"""Hostile bytes from good ones: what the fuzzing tests draw from, seeded so that a failure can be replayed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from hypothesis import given, note, settings
from hypothesis import strategies as st

from fhe_llm.errors import FrameError
from fhe_llm.wire.frame import REASONS

EXAMPLES, CASES_PER_EXAMPLE = 200, 101
CASES = 20_000
HEAD = 180
"""Bytes from the front that hold nearly all fields of every format; half of the mutations aim there."""
TOTAL_LENGTH = slice(8, 16)
"""Where both our header and SEAL's keep the total length."""


def mutate(rng: random.Random, base: bytes) -> bytes:
    """One hostile variant of ``base``; half of them claim their true length, so that later checks are reached too."""
    data = bytearray(base)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(MUTATIONS)(rng, data)
    if len(data) >= 16 and rng.random() < 0.5:
        data[TOTAL_LENGTH] = len(data).to_bytes(8, "little")
    return bytes(data)


def place(rng: random.Random, data: bytearray) -> int:
    """An index into ``data``, most often near the front."""
    return rng.randrange(max(1, min(len(data), HEAD) if rng.random() < 0.7 else len(data)))


def truncate(rng: random.Random, data: bytearray) -> None:
    """Cut the end off."""
    del data[place(rng, data) :]


def extend(rng: random.Random, data: bytearray) -> None:
    """Add bytes at the end."""
    data += rng.randbytes(rng.choice((1, 4, 8, 32, 4096)))


def flip_bits(rng: random.Random, data: bytearray) -> None:
    """Flip one to eight bits."""
    for _ in range(rng.randint(1, 8) if data else 0):
        data[place(rng, data)] ^= 1 << rng.randrange(8)


def set_number(rng: random.Random, data: bytearray) -> None:
    """Write an extreme number over 1, 2, 4 or 8 bytes."""
    size = rng.choice((1, 2, 4, 8))
    largest = (1 << 8 * size) - 1
    number = rng.choice((0, 1, 2, largest, largest - 1, largest >> 1, rng.randint(0, largest)))
    at = place(rng, data)
    data[at : at + size] = number.to_bytes(size, "little")[: max(0, len(data) - at)]


def fill(rng: random.Random, data: bytearray) -> None:
    """Overwrite a stretch with one byte."""
    at, size = place(rng, data), rng.choice((4, 32, 512, len(data)))
    size = min(size, len(data) - at)
    data[at : at + size] = bytes([rng.choice((0, 0x7F, 0xFF))]) * max(0, size)


def cut(rng: random.Random, data: bytearray) -> None:
    """Remove a stretch, so that what follows slides forward."""
    at = place(rng, data)
    del data[at : at + rng.choice((1, 3, 8, 32))]


def insert(rng: random.Random, data: bytearray) -> None:
    """Slip in a few bytes, so that what follows slides back."""
    at = place(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 3, 8, 32)))


def randomise(rng: random.Random, data: bytearray) -> None:
    """Nothing but random bytes, sometimes behind a good first half of the header."""
    keep = rng.choice((0, 0, 8))
    data[keep:] = rng.randbytes(rng.randint(0, 400))


MUTATIONS = (truncate, extend, flip_bits, flip_bits, set_number, set_number, fill, cut, insert, randomise)


def attack(
    decoder: Callable[[bytes], object], bases: Sequence[bytes], accepted: Callable[[object, bytes], None]
) -> Counter[str]:
    """Feed at least 20,000 hostile variants of ``bases`` to ``decoder``; outcomes counted by reason.

    Each must raise :class:`FrameError` with a documented reason, or decode to something ``accepted`` agrees with.
    """
    outcomes: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(seed=st.integers(0, 2**64 - 1))
    def run(seed: int) -> None:
        rng = random.Random(seed)
        for case in range(CASES_PER_EXAMPLE):
            data = mutate(rng, rng.choice(bases))
            try:
                result = decoder(data)
            except FrameError as refused:
                outcomes[refused.reason if str(refused).startswith("cannot ") else "bad message"] += 1
            except BaseException:
                note(f"case {case} of seed {seed}")
                raise
            else:
                accepted(result, data)
                outcomes["accepted"] += 1

    run()
    assert set(outcomes) <= {"accepted", *REASONS}
    return outcomes
