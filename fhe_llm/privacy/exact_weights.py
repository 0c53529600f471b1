"""Exact distributions over candidates: whole-number weights, and one uniform whole number below their sum for a draw.

No floating-point number takes part in a draw, so what is proved about the weights holds for the program.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Final, Self

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.charge import check_epsilon

MAX_EPSILON: Final = 1000
BITS: Final = 48
LEAST_NEAR: Final = 5
"""So many candidates share the larger weight even where ε would allow a single one: no token is likelier than one in
five to be drawn for itself (in small sets a quarter of the candidates, at least one)."""


def exact_epsilon(epsilon: float) -> Fraction:
    """``epsilon`` as a fraction: the smaller of the float and the decimal number that it prints as, which is what the
    ledger charges. Raises :class:`PrivacyParameterError` unless it lies in (0, 1000]."""
    check_epsilon(epsilon)
    if epsilon > MAX_EPSILON:
        raise PrivacyParameterError(
            f"cannot use epsilon={epsilon!r}: more than {MAX_EPSILON} promises nothing. Use less."
        )
    return min(Fraction(epsilon), Fraction(repr(epsilon)))


def exp_below(exponent: Fraction, bits: int = BITS) -> int:
    """A whole number p with p/2^bits ≤ e^exponent for certain: at most one below ⌊e^exponent·2^bits⌋, or a part in
    10^76 of it. ``exponent`` ≥ 0.

    Decimal's exp is correctly rounded to 80 digits of an exponent that was rounded down, and 10^-78 of it is taken off.
    """
    context = Context(prec=80, rounding=ROUND_FLOOR)
    rounded = context.exp(context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator)))
    below = Fraction(rounded) * (1 - Fraction(1, 10**78))
    return max(1 << bits, math.floor(below * (1 << bits)))


@dataclass(frozen=True, slots=True)
class TwoWeights:
    """``near`` of ``size`` candidates have weight ``high``, the others 2^48, where high/2^48 ≤ e^ε: the exponential
    mechanism for a utility of 1 near and 0 elsewhere.

    The sum is the same whichever candidates are near, so no candidate's probability changes by more than the ratio of
    the two weights: ε, not the 2ε of a utility whose sum varies. Kairouz, Oh and Viswanath (2016, "Extremal Mechanisms
    for Local Differential Privacy") show that distributions of two weights a factor of e^ε apart are optimal.
    """

    size: int
    near: int
    high: int

    @classmethod
    def of(cls, size: int, epsilon: Fraction, near: int | None = None) -> Self:
        """``near`` None: as few as get three draws of four, and at least :data:`LEAST_NEAR`."""
        high = exp_below(epsilon)
        if near is None:
            least = min(LEAST_NEAR, max(1, size // 4))
            near = max(least, math.ceil(Fraction(3 * size << BITS, high + (3 << BITS))))
        return cls(size, min(near, size), high)

    @property
    def total(self) -> int:
        """The sum of all weights."""
        return self.near * self.high + ((self.size - self.near) << BITS)

    def pick(self, number: int) -> tuple[bool, int]:
        """Where ``number`` from 0 to ``total`` - 1 falls: near or not, and at which place there."""
        edge = self.near * self.high
        return (True, number // self.high) if number < edge else (False, (number - edge) >> BITS)


@dataclass(frozen=True)
class LevelWeights:
    """A candidate at level l has weight proportional to r^-l, where r = ``ratio``/2^48 ≤ e^exponent: powers of one
    rational base, as in Ilvento's base-2 mechanism (2020, "Implementing the Exponential Mechanism with Base-2
    Differential Privacy"). Weights are exact: 2^(48·l)·ratio^(levels-1-l)."""

    levels: int
    ratio: int

    @classmethod
    def of(cls, levels: int, exponent: Fraction) -> Self:
        """``exponent``: what one level may change a weight by."""
        return cls(levels, exp_below(exponent))

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """The weight of one candidate at each level."""
        powers = list(accumulate(range(self.levels - 1), lambda power, _: power * self.ratio, initial=1))
        return tuple(power << (BITS * level) for level, power in enumerate(reversed(powers)))

    def cumulative(self, counts: list[int]) -> list[int]:
        """Sums over the first levels, of which ``counts`` says how many candidates they have; the last is the total."""
        return list(accumulate(count * weight for count, weight in zip(counts, self.weights, strict=True)))

    def pick(self, number: int, cumulative: list[int]) -> tuple[int, int]:
        """Where ``number`` from 0 to the total - 1 falls: the level, and at which place there."""
        level = bisect_right(cumulative, number)
        return level, (number - (cumulative[level - 1] if level else 0)) // self.weights[level]
