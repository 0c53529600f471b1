"""How many low bits of a request's c0 carry only noise.

A rotation of the input leaves key-switch noise on it, and nearly every product of a layer takes a rotated input; bits
whose rounding is small beside that noise need not travel.
"""

from __future__ import annotations

from math import log2, sqrt
from typing import Final

from fhe_llm.params import Preset
from fhe_llm.wire.composed import composable
from fhe_llm.wire.limbs import MAX_DROP

FRESH_SIGMA: Final = 3.2
"""Standard deviation of SEAL's noise."""
LARGEST_LOSS: Final = 0.1
"""Bits of precision that the dropped bits may cost."""


def rotation_sigma(preset: Preset) -> float:
    """Standard deviation, per coefficient, of the noise one rotation leaves: a fresh ciphertext's own, the key products
    of L digits below q divided by the special prime P (L N q^2/12 sigma^2/P^2), the rounding of that division times a
    ternary secret (N/18)."""
    n, primes = preset.ring_degree, preset.data_primes
    digits = sum(n * q * q / 12 for q in primes) * FRESH_SIGMA**2 / preset.primes[-1] ** 2
    return sqrt(FRESH_SIGMA**2 + digits + n / 18)


def loss(preset: Preset, drop0: int) -> float:
    """Bits of precision lost where every operand is rotated: log2 of the growth of the noise's standard deviation when
    a uniform error of 2^drop0 / sqrt(12) joins it. The rounding of weights and of the reply only make it less."""
    rounding = 2.0**drop0 / sqrt(12) if drop0 else 0.0
    return log2(1 + (rounding / rotation_sigma(preset)) ** 2) / 2


def input_drop(preset: Preset) -> int:
    """The most bits that cost at most ``LARGEST_LOSS``; 0 where c0 cannot be composed."""
    if not composable(preset):
        return 0
    return max(drop for drop in range(MAX_DROP + 1) if loss(preset, drop) <= LARGEST_LOSS)
