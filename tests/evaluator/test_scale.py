"""The weight scale is as large as it may be: no input wraps around, and the bound is not loose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.evaluator.scale import log_weight_scale, singular_value_bound
from fhe_llm.params import PRESETS

DEFAULT = PRESETS["default"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32), st.floats(-6, 6))
def test_bound_holds_and_is_tight(rows: int, columns: int, seed: int, log_size: float) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(rows, columns)) * 10.0**log_size).astype(np.float32)
    largest = np.linalg.norm(weights.astype(np.float64), 2)
    bound = singular_value_bound(weights)
    assert largest <= bound
    assert bound <= largest * 1.2


def test_scale_leaves_room_for_the_worst_input() -> None:
    """The worst vector of rms one is the leading singular vector; its reply stays below half the modulus."""
    weights = np.random.default_rng().normal(size=(576, 1536)).astype(np.float32)
    plan = plan_linear(DEFAULT, 576, 1536)
    scale = log_weight_scale(DEFAULT, plan, weights)
    worst = np.linalg.norm(weights, 2) * np.sqrt(2 * 1536 / plan.slots)
    modulus = np.prod([float(q) for q in DEFAULT.data_primes])
    assert worst * 2.0 ** (DEFAULT.log_input_scale + scale) < modulus / 2
    assert worst * 2.0 ** (DEFAULT.log_input_scale + scale + 3) > modulus / 2


def test_zero_and_huge_weights() -> None:
    plan = plan_linear(DEFAULT, 4, 4)
    assert log_weight_scale(DEFAULT, plan, np.zeros((4, 4), dtype=np.float32)) == DEFAULT.log_weight_scale
    with pytest.raises(ParameterError, match="wider preset"):
        log_weight_scale(DEFAULT, plan, np.full((4, 4), 1e12, dtype=np.float32))
