"""Bit packing against Python's own big integers, and the error bound of dropped bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhe_llm.errors import FrameError
from fhe_llm.params import PRESETS
from fhe_llm.wire.limbs import (
    LimbFormat,
    any_transparent,
    limb_format,
    narrow,
    pack,
    unpack,
)

N = 1024


def row_format(*bits: int) -> LimbFormat:
    """Rows of those widths without a prime's bound."""
    return LimbFormat(np.array(bits, np.uint64), np.array([1 << b for b in bits], np.uint64))


def packed_by_integers(words: np.ndarray, bits: list[int]) -> bytes:
    """The definition: word i of a row is bits i·b .. i·b + b - 1 of one little-endian number."""
    rows = []
    for row, width in zip(words, bits, strict=True):
        number = sum(int(word) << (width * i) for i, word in enumerate(row))
        rows.append(number.to_bytes(width * len(row) // 8, "little"))
    return b"".join(rows)


@pytest.mark.parametrize("bits", range(1, 33))
def test_every_width_is_packed_as_defined_and_comes_back(bits: int) -> None:
    words = np.random.default_rng(bits).integers(0, 1 << bits, (2, N), dtype=np.uint64).astype(np.uint32)
    words[0, 0], words[1, -1] = (1 << bits) - 1, (1 << bits) - 1
    packed = pack(words, row_format(bits))
    assert packed.tobytes() == packed_by_integers(words, [bits, bits])
    assert np.array_equal(unpack(packed, words.shape, row_format(bits)), words)


@settings(max_examples=50, deadline=None)
@given(
    widths=st.lists(st.integers(1, 32), min_size=1, max_size=4),
    periods=st.integers(1, 3),
    log_n=st.integers(10, 13),
    offset=st.integers(0, 7),
    seed=st.integers(0, 2**32),
)
def test_rows_of_mixed_widths_come_back_from_any_alignment(
    widths: list[int], periods: int, log_n: int, offset: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 1 << b, 1 << log_n, dtype=np.uint64) for b in widths * periods]
    words = np.array(rows).astype(np.uint32).reshape(periods, len(widths), -1)
    form = row_format(*widths)
    packed = pack(words, form).tobytes()
    assert len(packed) == periods * form.row_bytes(1 << log_n)
    shifted = np.frombuffer(bytes(offset) + packed, np.uint8, offset=offset)
    assert np.array_equal(unpack(shifted, words.shape, form), words)


@pytest.mark.parametrize("place", [0, 1, 5000, 8191])
def test_a_word_at_its_prime_is_refused_both_ways(place: int) -> None:
    primes = PRESETS["default"].data_primes
    words = np.zeros((2, 4096), np.uint32)
    words.reshape(-1)[place] = primes[place // 4096]
    with pytest.raises(FrameError, match="cannot encode residues") as refused:
        pack(words, limb_format(primes))
    assert refused.value.reason == "residue_out_of_range"
    packed = pack(words, row_format(30, 30))
    with pytest.raises(FrameError, match="cannot decode residues") as refused:
        unpack(packed, words.shape, limb_format(primes))
    assert refused.value.reason == "residue_out_of_range"
    words.reshape(-1)[place] -= 1
    assert np.array_equal(unpack(pack(words, limb_format(primes)), words.shape, limb_format(primes)), words)


def test_narrowing_refuses_words_beyond_32_bits() -> None:
    wide = np.zeros((1, N), np.uint64)
    wide[0, 7] = 1 << 32
    with pytest.raises(FrameError) as refused:
        narrow(wide.tobytes(), 0, wide.shape, (PRESETS["default"].primes[0],))
    assert refused.value.reason == "residue_out_of_range"


@settings(max_examples=200, deadline=None)
@given(drop=st.integers(0, 20), seed=st.integers(0, 2**32), prime=st.sampled_from(PRESETS["default"].primes))
def test_dropped_bits_cost_at_most_half_of_the_last_bit_kept(drop: int, seed: int, prime: int) -> None:
    words = np.random.default_rng(seed).integers(0, prime, N, dtype=np.uint32)
    words[:64] = np.arange(64)
    words[64:128] = prime - 1 - np.arange(64)
    form = limb_format((prime,), (drop,))
    restored = unpack(pack(words, form), words.shape, form)
    assert not (restored & ((1 << drop) - 1)).any()
    assert int(restored.max() >> drop) < form.bounds[0] <= 1 << (prime.bit_length() - drop)
    assert int(restored.max()) < prime
    error = (restored.astype(np.int64) - words) % prime
    assert int(np.minimum(error, prime - error).max()) <= (1 << drop) // 2
    assert np.array_equal(unpack(pack(restored, form), words.shape, form), restored)


def test_transparent_means_that_all_of_c1_is_zero() -> None:
    words = np.ones((2, 3, 2, 2, N), np.uint32)
    assert not any_transparent(words)
    words[1, 2, 1] = 0
    assert any_transparent(words)
    words[1, 2, 1, 1, -1] = 1
    assert not any_transparent(words)
    words[0, 0, 0] = 0
    assert not any_transparent(words)
