"""Composed coefficients against Python's own integers."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fhe_llm.errors import FrameError
from fhe_llm.params import PRESETS
from fhe_llm.wire.composed import composable, composed_format, pack_composed, unpack_composed

DEFAULT = PRESETS["default"]
P, Q = DEFAULT.data_primes
N = 1024


def random_residues(seed: int, count: int = 2) -> NDArray[np.uint32]:
    """Uniform residues [count, 2, N] with the corners of the range among them."""
    rng = np.random.default_rng(seed)
    values = [0, 1, P - 1, P, Q, P * Q - 1, P * Q // 2, P * Q - 2**19, 2**30, 2**59]
    values += [int(a) * Q % (P * Q) + int(b) for a, b in rng.integers(0, P, (count * N - len(values), 2))]
    whole = np.array(values, dtype=object).reshape(count, N) % (P * Q)
    return np.stack([whole % P, whole % Q], axis=1).astype(np.uint32)


def whole_numbers(words: NDArray[np.uint32]) -> list[int]:
    """The numbers behind residues [count, 2, N] (Chinese remainders)."""
    inverse = pow(P, -1, Q)
    pairs = zip(words[:, 0].ravel().tolist(), words[:, 1].ravel().tolist(), strict=True)
    return [a + P * ((b - a) * inverse % Q) for a, b in pairs]


@settings(max_examples=40, deadline=None)
@given(drop=st.integers(0, 20), seed=st.integers(0, 2**32))
def test_coefficients_come_back_to_within_half_of_the_last_bit_kept(drop: int, seed: int) -> None:
    words, form = random_residues(seed), composed_format(DEFAULT, drop)
    packed = pack_composed(words, form)
    assert packed.nbytes == 2 * form.row_bytes(N) == 2 * N * (60 - drop) // 8
    back = unpack_composed(packed, (2, 2, N), form)
    for sent, got in zip(whole_numbers(words), whole_numbers(back), strict=True):
        assert got % (1 << drop) == 0
        assert min((got - sent) % (P * Q), (sent - got) % (P * Q)) <= (1 << drop) // 2
    assert np.array_equal(pack_composed(back, form), packed)


@pytest.mark.parametrize("drop", [0, 5, 20])
def test_the_bytes_are_as_defined(drop: int) -> None:
    words, form = random_residues(drop, 1), composed_format(DEFAULT, drop)
    most = (P * Q - 1) >> drop
    rounded = [(value + (1 << drop) // 2) >> drop for value in whole_numbers(words)]
    number = sum((v if v <= most else 0) << (form.bits * i) for i, v in enumerate(rounded))
    assert pack_composed(words, form).tobytes() == number.to_bytes(form.bits * N // 8, "little")


def test_what_is_out_of_range_is_refused_both_ways() -> None:
    form = composed_format(DEFAULT, 5)
    for limb, prime in enumerate((P, Q)):
        words = random_residues(0, 1)
        words[0, limb, 7] = prime
        with pytest.raises(FrameError, match="cannot encode residues") as refused:
            pack_composed(words, form)
        assert refused.value.reason == "residue_out_of_range"
    for number, fine in [(form.bound - 1, True), (form.bound, False), ((1 << 55) - 1, False)]:
        packed = np.frombuffer((number << 55 * (N - 1)).to_bytes(55 * N // 8, "little"), np.uint8)
        if fine:
            assert whole_numbers(unpack_composed(packed, (1, 2, N), form))[-1] == number << 5
            continue
        with pytest.raises(FrameError, match="cannot decode residues"):
            unpack_composed(packed, (1, 2, N), form)


def test_only_two_primes_of_30_bits_are_composed() -> None:
    assert [name for name, preset in PRESETS.items() if composable(preset)] == ["default"]
    assert prod(DEFAULT.data_primes).bit_length() == 60
