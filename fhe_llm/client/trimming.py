"""How many low bits of a request's c0 carry only noise.

What a layer does to an error of its input is bounded by the rule that chooses the weights' scale; the noise that
rotations leave on the input and that the end of the evaluation leaves on the reply is there anyway. Bits whose
rounding is small beside these need not travel.
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


def input_gain(preset: Preset) -> float:
    """Largest growth, from input to reply, of the standard deviation of a random error.

    No input of rms one, at scale 2^log_input_scale, may leave half the modulus (``evaluator/scale``, which bounds
    coefficients by the rms of the slots). A random error is such an input but for its size.
    """
    log_modulus = sum(log2(q) for q in preset.data_primes[: preset.reply_limbs])
    return 2.0 ** (log_modulus - 1 - preset.log_input_scale)


def loss(preset: Preset, drop0: int) -> float:
    """Largest loss of precision in bits: log2 of the growth of the reply's noise when c0 loses ``drop0`` bits.

    The loss is a uniform error of 2^drop0 / sqrt(12). Beside it stand the rotations' noise and, on the reply, the
    rounding of the rescale times a ternary secret (N/18); the rounding of the weights only makes it less.
    """
    rounding = input_gain(preset) * (2.0**drop0 / sqrt(12) if drop0 else 0.0)
    already = (input_gain(preset) * rotation_sigma(preset)) ** 2 + preset.ring_degree / 18
    return log2(1 + rounding**2 / already) / 2


def input_drop(preset: Preset) -> int:
    """The most bits that cost at most ``LARGEST_LOSS``; 0 where c0 cannot be composed."""
    if not composable(preset):
        return 0
    return max(drop for drop in range(MAX_DROP + 1) if loss(preset, drop) <= LARGEST_LOSS)
