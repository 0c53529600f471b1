"""e^x between two fractions, by Taylor's series: an outside judge of exact claims."""

from __future__ import annotations

from fractions import Fraction

BITS = 600
HALVINGS = 16


def exp_bounds(exponent: Fraction) -> tuple[Fraction, Fraction]:
    """Fractions below and above e^``exponent``, at most 2^-280 of it apart. ``exponent`` from 0 to 1100."""
    x = exponent / 2**HALVINGS  # below 1/32
    term = low = Fraction(1)
    for n in range(1, 60):
        term = _down(term * x / n)
        low += term
    high = low + Fraction(60, 2**BITS) + 2 * x**60  # what rounding took, and the rest of the series
    for _ in range(HALVINGS):
        low, high = _down(low * low), _down(high * high) + Fraction(1, 2**BITS)
    return low, high


def _down(number: Fraction) -> Fraction:
    return Fraction((number.numerator << BITS) // number.denominator, 1 << BITS)
