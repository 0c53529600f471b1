"""Packing against the definition: what the slots hold, and what comes back when the proxy computes exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fhe_llm.client.packing import pack, packing_index, unpack
from fhe_llm.errors import ModelError
from fhe_llm.evaluator.plan import LinearPlan, plan_linear
from fhe_llm.params import preset

P = preset("default")
sizes = st.integers(1, 300) | st.sampled_from([575, 576, 960, 1536, 2048, 2049, 4096, 4097])


def exact_product(
    plan: LinearPlan, slots: NDArray[np.complex128], w: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """What a proxy without noise would answer: every answering slot an equal share of its row's product."""
    held, answered = plan.input_map(), plan.output_map()
    z = np.zeros(plan.folded_columns, complex)
    z[held[held >= 0]] = slots[held >= 0]
    folded = np.zeros((plan.folded_rows, plan.folded_columns), complex)
    if plan.fold == "input":
        folded += w[:, : plan.folded_columns]
        upper = w[:, plan.folded_columns :]
        folded[:, : upper.shape[1]] -= 1j * upper
    else:
        folded += w[: plan.folded_rows]
        upper = w[plan.folded_rows :]
        folded[: len(upper)] += 1j * upper
    product = folded @ z
    share = np.bincount(answered[answered >= 0], minlength=plan.folded_rows)
    garbage = np.random.default_rng().standard_normal(answered.shape) * 1e6
    return np.where(answered >= 0, (product / share)[answered], garbage)


@settings(max_examples=60, deadline=None)
@given(out_features=sizes, in_features=sizes, rows=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_an_exact_proxy_gives_the_product_back(
    out_features: int, in_features: int, rows: int, seed: int
) -> None:
    plan = plan_linear(P, out_features, in_features)
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal((rows, in_features)) * 10.0 ** generator.integers(-3, 4)).astype(
        np.float32
    )
    w = generator.standard_normal((out_features, in_features))
    slots, scale = pack(plan, x)
    assert slots.shape == (rows, plan.input_ciphertexts, P.slots)
    answer = np.stack([exact_product(plan, row, w) for row in slots])
    y = unpack(plan, answer, scale)
    expected = x.astype(np.float64) @ w.T
    assert y.dtype == np.float32
    np.testing.assert_allclose(
        y, expected, rtol=0, atol=1e-6 * np.abs(expected).max() + 1e-6 * np.abs(x).sum()
    )


@settings(max_examples=40, deadline=None)
@given(in_features=sizes, seed=st.integers(0, 2**32 - 1))
def test_packing_loses_nothing(in_features: int, seed: int) -> None:
    plan = plan_linear(P, 7, in_features)
    x = np.random.default_rng(seed).standard_normal((2, in_features)).astype(np.float32)
    slots, scale = pack(plan, x)
    held = plan.input_map()
    half = plan.folded_columns
    back = np.zeros((2, 2 * half))
    back[:, held[held >= 0]] = slots[:, held >= 0].real
    back[:, held[held >= 0] + half] = slots[:, held >= 0].imag
    np.testing.assert_allclose(back[:, :in_features] * scale[:, None], x, rtol=1e-12)
    assert not slots[:, held < 0].any()


def test_vectors_travel_with_root_mean_square_one() -> None:
    plan = plan_linear(P, 40, 96)
    x = np.array([[3.0] * 96, [0.0] * 96, [1e-30] + [0.0] * 95, [3e38] * 96], np.float32)
    _, scale = pack(plan, x)
    np.testing.assert_allclose(scale, [3.0, 1.0, 1e-30 / np.sqrt(96), 3e38], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = np.ones((2, 96), np.float32)
    x[1, 5] = bad
    with pytest.raises(ModelError, match="not finite"):
        pack(plan_linear(P, 40, 96), x)


def test_wrong_shapes_are_refused() -> None:
    plan = plan_linear(P, 40, 96)
    with pytest.raises(ModelError, match="shape"):
        pack(plan, np.ones((1, 95), np.float32))
    with pytest.raises(ModelError, match="shape"):
        unpack(plan, np.zeros((1, 2, 5), complex), np.ones(1))


def test_the_index_is_made_once() -> None:
    plan = plan_linear(P, 40, 96)
    assert packing_index(plan) is packing_index(plan)
