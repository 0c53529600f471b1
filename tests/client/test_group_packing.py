"""Groups of vectors in shared slots: what the slots hold, and what comes back when the proxy computes exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhe_llm.client.group_packing import pack_groups, unpack_groups
from fhe_llm.client.packing import pack
from fhe_llm.errors import ModelError
from fhe_llm.evaluator.packed_plan import PackedPlan, packed_plans
from fhe_llm.evaluator.packed_reference import packed_product
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import preset

P = preset("default")
sizes = st.integers(1, 80)


def of_tokens(out: int, inp: int, tokens: int) -> PackedPlan:
    (plan,) = (p for p in packed_plans(P, out, inp) if p.tokens == tokens)
    return plan


@settings(max_examples=15, deadline=None)
@given(out=sizes, inp=sizes, count=st.integers(1, 130), seed=st.integers(0, 2**32 - 1))
def test_an_exact_proxy_gives_the_products_back(out: int, inp: int, count: int, seed: int) -> None:
    plan = of_tokens(out, inp, 64)
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((count, inp)) * 10.0 ** rng.integers(-3, 4, (count, 1))).astype(np.float32)
    w = rng.standard_normal((out, inp)).astype(np.float32)
    slots, scale = pack_groups(plan, x)
    assert slots.shape == (-(-count // 64), plan.input_ciphertexts, P.slots)
    y = unpack_groups(plan, np.stack([packed_product(plan, w, group) for group in slots]), scale)
    expected = x.astype(np.float64) @ w.T.astype(np.float64)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(x).sum() + 1e-30)


@settings(max_examples=30, deadline=None)
@given(
    inp=st.integers(1, 700),
    count=st.integers(1, 70),
    tokens=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_loses_nothing(inp: int, count: int, tokens: int, seed: int) -> None:
    plan = of_tokens(7, inp, tokens)
    x = np.random.default_rng(seed).standard_normal((count, inp)).astype(np.float32)
    slots, scale = pack_groups(plan, x)
    rows = slots.reshape(-1, plan.input_ciphertexts, plan.rows, plan.width)
    held = plan.input_map()
    back = np.zeros((len(rows), 2, plan.rows, inp))
    for part, values in enumerate((rows.real, rows.imag)):
        for i in range(plan.input_ciphertexts):
            used = held[i, 0] >= 0
            back[:, part][..., held[i, 0][used]] = values[:, i][..., used]
            assert not values[:, i][..., ~used].any()
    flat = back.reshape(-1, inp)
    np.testing.assert_allclose(flat[:count] * scale[:, None], x, rtol=1e-12)
    assert not flat[count:].any()


def test_divisors_are_those_of_single_vectors() -> None:
    x = np.array([[3.0] * 96, [0.0] * 96, [1e-30] + [0.0] * 95, [3e38] * 96], np.float32)
    _, together = pack_groups(of_tokens(40, 96, 16), x)
    _, alone = pack(plan_linear(P, 40, 96), x)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = np.ones((2, 96), np.float32)
    x[1, 5] = bad
    with pytest.raises(ModelError, match="not finite"):
        pack_groups(of_tokens(40, 96, 16), x)


def test_wrong_shapes_are_refused() -> None:
    plan = of_tokens(40, 96, 16)
    with pytest.raises(ModelError, match="shape"):
        pack_groups(plan, np.ones((1, 95), np.float32))
    with pytest.raises(ModelError, match="shape"):
        unpack_groups(plan, np.zeros((2, 1, P.slots), complex), np.ones(3))
