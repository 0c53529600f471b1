"""Vectors are clipped in whole numbers, so that no two are further apart than the noise is for."""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from forking import forked
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.embedding_noise import UNIT, GaussianEmbedding, clipped, multiplier_for

ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(
    arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=ANY_FLOAT),
    st.floats(1e-300, 1e300),
)
def test_no_two_vectors_differ_by_more_than_the_noise_is_for(vectors: Any, clip: float) -> None:
    whole = clipped(vectors, clip)
    for row in whole.tolist():
        assert sum(number * number for number in row) <= UNIT**2
    for one in whole.tolist():
        for other in whole.tolist():
            assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) <= (2 * UNIT) ** 2


def test_a_length_that_floats_round_down_is_seen_in_whole_numbers() -> None:
    whole = clipped(np.array([[1.0, 1.0, 1.0, 1.0, 2.0**-25]]), 1.0)[0].tolist()
    assert sum(number * number for number in whole) <= UNIT**2
    assert whole[:4] == [2**25 - 1] * 4, "it was never too long"


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3)), st.floats(1e-3, 1e3))
def test_a_vector_keeps_its_direction_and_a_short_one_its_length(vector: Any, clip: float) -> None:
    back = clipped(vector[None], clip)[0] * (clip / UNIT)
    expected = vector * min(1.0, clip / max(np.linalg.norm(vector), 1e-300))
    assert np.abs(back - expected).max() <= 3 * clip / UNIT


def test_the_longest_and_the_shortest_floats_are_clipped() -> None:
    largest, least = np.finfo(float).max, np.finfo(float).smallest_subnormal
    found = clipped(np.array([[largest, -largest], [least, 0.0], [0.0, 0.0], [largest, least]]), 1.0)
    assert found.tolist() == [
        [math.isqrt(UNIT**2 // 2), -math.isqrt(UNIT**2 // 2)],
        [0, 0],
        [0, 0],
        [UNIT, 0],
    ]
    assert clipped(np.array([[least, least]]), 1e-323)[0].min() > 0


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 3.7, 1000.0])
def test_the_noise_has_the_deviation_that_is_paid_for(multiplier: float) -> None:
    """Six deviations of the mean and of the variance: false twice in a thousand million."""
    made, count = GaussianEmbedding(2.0, noise_multiplier=multiplier), 4000
    drawn = made.protect(np.tile([[0.5]], (count, 1)))
    deviation = multiplier * 2 * 2.0
    assert abs(drawn.value.mean() - 0.5) < 6 * deviation / math.sqrt(count)
    assert abs(drawn.value.var() / deviation**2 - 1) < 6 * math.sqrt(2 / count)
    rho = charge_of(drawn.event)["rho"] / 10**9
    assert rho >= count / (2 * multiplier**2)
    assert rho == pytest.approx(count / (2 * multiplier**2), rel=1e-6)


@given(st.floats(1e-3, 100), st.floats(1e-12, 0.5))
def test_a_multiplier_gives_what_was_asked(epsilon: float, delta: float) -> None:
    rho = 1 / (2 * Fraction(multiplier_for(epsilon, delta)) ** 2)
    assert float(rho) + 2 * math.sqrt(rho * math.log(1 / delta)) <= epsilon * (1 + 1e-15)
    more = float(rho) * (1 + 1e-9)
    assert more + 2 * math.sqrt(more * math.log(1 / delta)) > epsilon


def test_epsilon_and_delta_are_another_way_to_say_it() -> None:
    made = GaussianEmbedding(epsilon=2.0, delta=1e-6)
    assert made.noise_multiplier == multiplier_for(2.0, 1e-6)
    assert made.rho == 1 / (2 * Fraction(made.noise_multiplier) ** 2)
    assert "noise_multiplier=" in repr(made)


def test_one_vector_or_many_and_the_quote_is_the_event() -> None:
    made = GaussianEmbedding(noise_multiplier=2.0, dimensions=3)
    for vectors, count in ((np.ones(3), 1), (np.ones((5, 3)), 5), ([[1, 2, 3]], 1), (np.ones((0, 3)), 0)):
        drawn = made.protect(vectors)
        assert drawn.event == made.quote(vectors)
        assert (drawn.event.vectors, drawn.event.dimensions) == (count, 3)
        assert drawn.value.shape == np.shape(vectors)
        assert drawn.value.dtype == np.float64


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((2, 2, 2)),
        np.float64(1.0),
        np.ones((2, 0)),
        np.ones(4),
        np.ones(3, dtype=complex),
        np.array(["a", "b", "c"]),
        np.array([True, False, True]),
        [math.nan, 0.0, 0.0],
        [[1.0, 2.0, 3.0], [0.0, math.inf, 0.0]],
    ],
)
def test_what_is_no_vector_of_that_size_is_refused(bad: Any) -> None:
    made = GaussianEmbedding(noise_multiplier=2.0, dimensions=3)
    for call in (made.quote, made.protect):
        with pytest.raises(PrivacyParameterError, match="cannot protect"):
            call(bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, True, "1", None])
def test_a_clip_that_makes_no_sense_is_refused(bad: Any) -> None:
    with pytest.raises(PrivacyParameterError, match="clip="):
        GaussianEmbedding(bad, noise_multiplier=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epsilon": 1.0},
        {"delta": 1e-6},
        {"epsilon": 1.0, "delta": 1e-6, "noise_multiplier": 1.0},
        {"epsilon": 0.0, "delta": 1e-6},
        {"epsilon": -1.0, "delta": 1e-6},
        {"epsilon": math.nan, "delta": 1e-6},
        {"epsilon": math.inf, "delta": 1e-6},
        {"epsilon": 1e-200, "delta": 1e-6},
        {"epsilon": 1.0, "delta": 0.0},
        {"epsilon": 1.0, "delta": 1.0},
        {"epsilon": 1.0, "delta": math.nan},
        {"epsilon": 1.0, "delta": "small"},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": 2.0**-21},
        {"noise_multiplier": 2.0**21},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PrivacyParameterError):
        GaussianEmbedding(**options)


def test_threads_and_forked_children_draw_differently() -> None:
    made, drawn = GaussianEmbedding(noise_multiplier=1.0), []

    def use() -> None:
        drawn.extend(made.protect(np.zeros((50, 2))).value.ravel().tolist())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == 400

    def draw() -> bytes:
        return made.protect(np.zeros(2)).value.tobytes()

    with forked(draw) as one, forked(draw) as other:
        assert len({one(), other(), draw()}) == 3
