"""The scale of a packed plan leaves room for the worst group of tokens, and little more."""

from __future__ import annotations

import numpy as np
import pytest

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.encoding import slots_to_coefficients
from fhe_llm.evaluator.packed_plan import packed_plans
from fhe_llm.evaluator.packed_scale import packed_log_weight_scale
from fhe_llm.params import PRESETS

DEFAULT = PRESETS["default"]
HALF_MODULUS = np.prod([float(q) for q in DEFAULT.data_primes]) / 2


@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_the_worst_group_does_not_wrap(tokens: int) -> None:
    """Every token along the block's leading singular vector; the coefficients are those of the reply's slots."""
    (plan,) = (p for p in packed_plans(DEFAULT, 200, 150) if p.tokens == tokens)
    weights = np.random.default_rng().normal(size=(200, 150)).astype(np.float32)
    scale = packed_log_weight_scale(DEFAULT, plan, weights)
    largest = worst = 0.0
    for first in range(0, 200, plan.width):
        block = weights[first : first + plan.width].astype(np.float64)
        x = np.linalg.svd(block)[2][0] * np.sqrt(150)
        y = np.zeros(plan.width)
        y[: len(block)] = block @ x
        # signs that line the slots up with one coefficient make the average as large as it gets
        slots = np.tile(y * (1 + 1j), plan.rows)[None]
        coefficients = slots_to_coefficients(slots, 2.0 ** (DEFAULT.log_input_scale + scale))
        largest = max(largest, float(np.abs(coefficients).max()))
        mean_square = np.sqrt(np.mean(np.abs(slots) ** 2)) * 2.0 ** (DEFAULT.log_input_scale + scale)
        assert mean_square < HALF_MODULUS
        worst = max(worst, float(mean_square))
    assert largest <= worst * (1 + 1e-9)
    limited = scale == int(np.log2(HALF_MODULUS)) - DEFAULT.log_input_scale
    assert limited or worst * 4 > HALF_MODULUS / 2.0**0.5


def test_zero_and_huge_weights() -> None:
    (plan, *_) = packed_plans(DEFAULT, 4, 4)
    assert (
        packed_log_weight_scale(DEFAULT, plan, np.zeros((4, 4), dtype=np.float32)) == DEFAULT.log_weight_scale
    )
    with pytest.raises(ParameterError, match="wider preset"):
        packed_log_weight_scale(DEFAULT, plan, np.full((4, 4), 1e12, dtype=np.float32))
