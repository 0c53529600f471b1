"""Packed plans cover every weight, keep the keys few, and groups are chosen sensibly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.packed_plan import (
    GROUP_TOKENS,
    MAX_CIPHERTEXTS,
    PackedPlan,
    layer_plans,
    packed_plans,
    plan_elements,
    split_tokens,
)
from fhe_llm.evaluator.packed_reference import band
from fhe_llm.evaluator.plan import MAX_FEATURES, plan_linear
from fhe_llm.params import PRESETS

DEFAULT = PRESETS["default"]
SMOLLM2 = ((960, 576), (576, 576), (3072, 576), (576, 1536))
SIZES = st.one_of(st.integers(1, 64), st.integers(1, 3000))


def of_tokens(shape: tuple[int, int], tokens: int) -> PackedPlan:
    (plan,) = (p for p in packed_plans(DEFAULT, *shape) if p.tokens == tokens)
    return plan


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_bands_hold_every_weight_once(out: int, inp: int, seed: int) -> None:
    plan = of_tokens((out, inp), 64)
    weights = np.random.default_rng(seed).normal(size=(out, inp)).astype(np.float32)
    bands = [
        band(plan, weights, o, i)
        for o in range(plan.output_ciphertexts)
        for i in range(plan.input_ciphertexts)
    ]
    held = np.sort(np.concatenate([b[b != 0] for b in bands]))
    np.testing.assert_array_equal(held, np.sort(weights[weights != 0].astype(np.float64)))


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.sampled_from(sorted(PRESETS)))
def test_maps_and_counts_agree(out: int, inp: int, name: str) -> None:
    for plan in packed_plans(PRESETS[name], out, inp):
        assert plan == PackedPlan(name, inp, out, plan.tokens, plan.baby_steps)
        assert plan.rows * plan.width == plan.slots
        for features, where in ((inp, plan.input_map()), (out, plan.output_map())):
            held = where[:, 0][where[:, 0] >= 0]
            np.testing.assert_array_equal(np.sort(held), np.arange(features))
            assert (where == where[:, :1]).all()
        keyed = {0, *plan.rotations}
        assert all(giant in keyed for giant in plan.giant_rotations)
        offsets = {giant + baby for giant in plan.giant_rotations for baby in range(plan.babies)}
        rows, columns = min(plan.width, out), min(plan.width, inp)
        assert offsets >= set(range(plan.width - rows + 1, plan.width + columns))
        assert max(offsets) < 2 * plan.width + plan.babies
        assert max(plan.input_ciphertexts, plan.output_ciphertexts) <= MAX_CIPHERTEXTS


def test_counts_of_smollm2_layers() -> None:
    """A regression here costs time on every prompt."""
    plans = [of_tokens(shape, 64) for shape in SMOLLM2]
    assert [(p.input_ciphertexts, p.output_ciphertexts) for p in plans] == [(9, 15), (9, 9), (9, 48), (24, 9)]
    assert sum(p.rotation_count for p in plans) <= 1332
    assert sum(p.product_count for p in plans) <= 110_592


def test_galois_elements_are_the_union_of_the_rotations() -> None:
    plans = [plan_linear(DEFAULT, 960, 576), of_tokens((576, 1536), 32)]
    steps = {k for plan in plans for k in plan.rotations}
    assert plan_elements(DEFAULT, plans) == tuple(sorted(pow(3, k, 8192) for k in steps))


def test_all_plans_of_smollm2_share_the_keys_of_single_tokens() -> None:
    single = plan_elements(DEFAULT, [plan_linear(DEFAULT, *shape) for shape in SMOLLM2])
    every = plan_elements(DEFAULT, [plan for shape in SMOLLM2 for plan in layer_plans(DEFAULT, *shape)])
    assert every == single


@settings(max_examples=60, deadline=None)
@example((3072, 576), 13)
@example((3072, 576), 14)
@given(st.sampled_from(SMOLLM2), st.integers(0, 300))
def test_tokens_are_split_without_loss(shape: tuple[int, int], count: int) -> None:
    single, groups = plan_linear(DEFAULT, *shape), packed_plans(DEFAULT, *shape)
    parts = split_tokens(single, groups, count)
    assert sum(n for _, n in parts) == count
    assert len({plan for plan, _ in parts}) == len(parts)
    assert all(n > 0 for _, n in parts)
    if count <= 3:
        assert all(plan == single for plan, _ in parts)
    if count >= 14:  # the widest layer breaks even between 13 and 14 tokens, the others at ten or eleven
        assert isinstance(parts[0][0], PackedPlan)


def test_without_packed_plans_every_token_goes_alone() -> None:
    single = plan_linear(DEFAULT, 96, 40)
    assert split_tokens(single, (), 45) == ((single, 45),)
    assert split_tokens(single, (), 0) == ()


def test_a_layer_too_wide_for_the_wire_has_no_packed_plan() -> None:
    assert packed_plans(DEFAULT, MAX_FEATURES, 64) == ()
    assert [p.tokens for p in packed_plans(DEFAULT, 64, 64)] == list(GROUP_TOKENS)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (MAX_FEATURES + 1, 5)])
def test_sizes_outside_the_range_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ParameterError, match="cannot plan"):
        packed_plans(DEFAULT, *shape)


def test_different_plans_have_different_ids() -> None:
    plans = [plan for name in PRESETS for out in range(1, 20) for plan in layer_plans(PRESETS[name], out, 64)]
    assert len({plan.plan_id for plan in plans}) == len(plans)
    assert all(len(plan.plan_id) == 32 for plan in plans)
