"""Weights are whole numbers on the safe side of e^ε, and each candidate stands for exactly as many numbers."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rational_exp import exp_bounds

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.charge import UNIT_INFO, to_amount
from fhe_llm.privacy.exact_weights import BITS, LEAST_NEAR, LevelWeights, TwoWeights, exact_epsilon, exp_below

EPSILONS = st.floats(min_value=1e-9, max_value=1000, allow_nan=False)


@given(EPSILONS)
@example(0.1)
@example(0.3)
@example(1000.0)
@example(5e-324)
@example(math.nextafter(1.0, 2.0))
def test_epsilon_is_never_more_than_what_the_ledger_charges(epsilon: float) -> None:
    exact = exact_epsilon(epsilon)
    assert exact <= Fraction(epsilon)
    assert exact <= Fraction(Decimal(repr(epsilon)))
    assert exact <= Fraction(to_amount(epsilon, "epsilon"), UNIT_INFO["epsilon"].scale)
    assert exact > 0


@pytest.mark.parametrize(
    "bad", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 1000.001, True, "1", None, 1j]
)
def test_an_epsilon_that_promises_nothing_is_refused(bad: object) -> None:
    with pytest.raises(PrivacyParameterError, match="epsilon="):
        exact_epsilon(bad)  # type: ignore[arg-type]


@given(st.fractions(min_value=0, max_value=1000, max_denominator=10**9))
@example(Fraction(0))
@example(Fraction(1, 10**30))
@example(Fraction(1000))
@example(Fraction(48) * Fraction(math.log(2)))
def test_a_weight_is_just_below_the_exponential(exponent: Fraction) -> None:
    low, high = exp_bounds(exponent)
    found = exp_below(exponent)
    assert Fraction(found, 1 << BITS) <= high
    assert found == 1 << BITS or Fraction(found, 1 << BITS) <= low
    assert Fraction(found + 2, 1 << BITS) > low * (1 - Fraction(1, 10**76))


def test_the_judge_of_exponentials_is_right() -> None:
    for x in (Fraction(0), Fraction(1, 3), Fraction(1), Fraction(700)):
        low, high = exp_bounds(x)
        assert low <= high <= low * (1 + Fraction(1, 2**280))
        assert float(low) == pytest.approx(math.exp(x), rel=1e-12)


@given(st.integers(1, 60), EPSILONS, st.none() | st.integers(1, 60))
def test_two_weights_keep_the_claim_and_add_up(size: int, epsilon: float, near: int | None) -> None:
    two = TwoWeights.of(size, exact_epsilon(epsilon), near)
    assert 1 <= two.near <= size
    assert two.total == two.near * two.high + (size - two.near) * (1 << BITS)
    assert Fraction(two.high, 1 << BITS) <= exp_bounds(Fraction(epsilon))[0]
    assert two.high >= 1 << BITS


@given(st.integers(1, 9), st.floats(0.01, 20), st.integers(1, 9))
def test_every_candidate_stands_for_as_many_numbers_as_its_weight(
    size: int, epsilon: float, near: int
) -> None:
    two = TwoWeights.of(size, exact_epsilon(epsilon), near)
    edges = [
        *((True, place, place * two.high, two.high) for place in range(two.near)),
        *(
            (False, place, two.near * two.high + (place << BITS), 1 << BITS)
            for place in range(size - two.near)
        ),
    ]
    end = 0
    for is_near, place, first, weight in edges:
        assert first == end
        end = first + weight
        assert two.pick(first) == two.pick(end - 1) == (is_near, place)
    assert end == two.total


def test_few_words_are_near_and_never_one_alone() -> None:
    for epsilon in (0.1, 1.0, 5.0, 10.0, 1000.0):
        two = TwoWeights.of(20_000, exact_epsilon(epsilon))
        assert two.near >= LEAST_NEAR
        if two.near < 20_000:
            assert Fraction(two.near * two.high, two.total) >= Fraction(3, 4) - Fraction(1, 10**9)
    assert TwoWeights.of(20_000, exact_epsilon(1000.0)).near == LEAST_NEAR
    assert [TwoWeights.of(n, exact_epsilon(1000.0)).near for n in (2, 4, 8, 20)] == [1, 1, 2, 5]


@given(st.integers(1, 12), st.floats(1e-6, 5))
def test_levels_differ_by_one_ratio_exactly(levels: int, epsilon: float) -> None:
    made = LevelWeights.of(levels, exact_epsilon(epsilon))
    assert len(made.weights) == levels
    for nearer, farther in zip(made.weights, made.weights[1:], strict=False):
        assert Fraction(nearer, farther) == Fraction(made.ratio, 1 << BITS)
    assert Fraction(made.ratio, 1 << BITS) <= exp_bounds(Fraction(epsilon))[0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any), st.floats(0.01, 3))
def test_every_level_stands_for_as_many_numbers_as_its_weights(counts: list[int], epsilon: float) -> None:
    made = LevelWeights.of(len(counts), exact_epsilon(epsilon))
    cumulative, end = made.cumulative(counts), 0
    for level, count in enumerate(counts):
        for place in range(count):
            first, end = end, end + made.weights[level]
            assert made.pick(first, cumulative) == made.pick(end - 1, cumulative) == (level, place)
    assert end == cumulative[-1]
