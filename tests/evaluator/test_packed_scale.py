"""The scale of a packed plan leaves room for the worst group of tokens, and not a bit more than it must."""

from __future__ import annotations

import numpy as np
import pytest

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.encoding import slots_to_coefficients
from fhe_llm.evaluator.packed_plan import packed_plans
from fhe_llm.evaluator.packed_scale import largest_coefficient, packed_log_weight_scale
from fhe_llm.evaluator.rns import slot_exponents
from fhe_llm.params import PRESETS

DEFAULT = PRESETS["default"]


@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_the_bound_is_reached_and_never_passed(tokens: int) -> None:
    """For many coefficients: the tokens that make it as large as they can, through the encoder's own transform."""
    (plan,) = (p for p in packed_plans(DEFAULT, 60, 150) if p.tokens == tokens)
    rng = np.random.default_rng()
    weights = (rng.normal(size=(60, 150)) * np.geomspace(1, 30, 150)).astype(np.float32)
    bound = largest_coefficient(DEFAULT, plan, weights)
    block = np.zeros((plan.width, 150))
    block[:60] = weights
    reached = 0.0
    for n in range(DEFAULT.ring_degree) if tokens == 64 else rng.integers(0, DEFAULT.ring_degree, 300):
        angle = (np.pi / DEFAULT.ring_degree) * (slot_exponents(DEFAULT.ring_degree)[: plan.slots] * n % 8192)
        angle = angle.reshape(plan.rows, plan.width)
        y = np.zeros((plan.rows, plan.width), dtype=np.complex128)
        for part, wave in ((1.0, np.cos(angle)), (1j, np.sin(angle))):
            x = wave @ block
            x *= np.sqrt(150) / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
            y += part * (x @ block.T)
        value = slots_to_coefficients(y.reshape(1, -1), 1.0)[0, n]
        assert value <= bound * (1 + 1e-6)
        reached = max(reached, float(value))
    if tokens == 64:
        assert reached >= bound * (1 - 1e-4)


@pytest.mark.parametrize("tokens", [16, 64])
def test_random_groups_stay_below_half_the_modulus(tokens: int) -> None:
    (plan,) = (p for p in packed_plans(DEFAULT, 96, 40) if p.tokens == tokens)
    rng = np.random.default_rng()
    weights = rng.normal(size=(96, 40)).astype(np.float32)
    scale = packed_log_weight_scale(DEFAULT, plan, weights)
    modulus = np.prod([float(q) for q in DEFAULT.data_primes])
    x = rng.normal(size=(2, plan.rows, 40))
    x *= np.sqrt(40) / np.linalg.norm(x, axis=2, keepdims=True)
    y = np.zeros((plan.rows, plan.width), dtype=np.complex128)
    rows = weights[: plan.width].astype(np.float64)
    y[:, : len(rows)] = (x[0] + 1j * x[1]) @ rows.T
    coefficients = slots_to_coefficients(y.reshape(1, -1), 2.0 ** (DEFAULT.log_input_scale + scale))
    assert np.abs(coefficients).max() < modulus / 2


def test_zero_and_huge_weights() -> None:
    (plan, *_) = packed_plans(DEFAULT, 4, 4)
    zeros = np.zeros((4, 4), dtype=np.float32)
    assert packed_log_weight_scale(DEFAULT, plan, zeros) == DEFAULT.log_weight_scale
    with pytest.raises(ParameterError, match="wider preset"):
        packed_log_weight_scale(DEFAULT, plan, np.full((4, 4), 1e12, dtype=np.float32))
