"""Plans cover every weight exactly once, are deterministic, and cost what the counts of real layers say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import plan as plan_module
from fhe_llm.evaluator.plan import (
    MAX_FEATURES,
    MAX_REPAIRS,
    LinearPlan,
    _layouts,
    placement,
    plan_linear,
)
from fhe_llm.evaluator.schedule import schedule
from fhe_llm.params import PRESETS

DEFAULT = PRESETS["default"]
SIZES = st.one_of(
    st.integers(1, 64), st.integers(1, 3000), st.sampled_from([2047, 2048, 2049, 4096, 4097, 5000])
)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.sampled_from(sorted(PRESETS)))
def test_every_weight_is_covered_once_by_rotations_with_keys(out: int, inp: int, name: str) -> None:
    plan = plan_linear(PRESETS[name], out, inp)
    columns, rows = plan.input_map(), plan.output_map()
    keyed = {0, *plan.rotations}
    assert all(k % plan.slots in keyed for k in plan.giant_rotations)
    for target in range(plan.output_ciphertexts):
        answered = 0
        for source in range(plan.input_ciphertexts):
            maps = plan.diagonal_maps(source, target)
            for d in (0, plan.diagonals // 2, plan.diagonals - 1):
                used = maps[d] >= 0
                rotated = np.roll(columns[source], -(plan.first_rotation + d))
                np.testing.assert_array_equal(maps[d][used], rotated[used])
                assert (rows[target][used] >= 0).all()
            answered += int((maps >= 0).sum())
        assert answered == len(np.unique(rows[target][rows[target] >= 0])) * plan.folded_columns


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, tuple[int, ...], int, int]:
    """Slots, rows and columns, and one of the layouts that the planner would try for them."""
    slots = draw(st.sampled_from([64, 128, 256]))
    rows, columns = draw(st.integers(1, slots)), draw(st.integers(1, slots))
    return slots, rows, columns, *draw(st.sampled_from(_layouts(slots, rows, columns)))


@settings(max_examples=300)
@given(layouts())
def test_repairs_answer_exactly_what_the_end_of_the_slots_cuts_off(
    layout: tuple[int, int, int, tuple[int, ...], int, int],
) -> None:
    slots, rows, columns, offsets, first, diagonals = layout
    answered = placement(*layout)
    blocks = np.full(slots, -1)
    for offset in offsets:
        assert (blocks[offset : offset + rows] == -1).all()  # blocks do not overlap, nor leave the slots
        blocks[offset : offset + rows] = np.arange(rows)
    by_blocks = covered(blocks, rows, columns, first, diagonals)
    lacking = np.flatnonzero(~by_blocks.all(axis=1))
    if answered is None:
        assert lacking.size  # nothing is given up that is whole
        return
    assert covered(answered, rows, columns, first, diagonals).all()
    np.testing.assert_array_equal(answered[blocks >= 0], blocks[blocks >= 0])
    repairs = answered[(blocks < 0) & (answered >= 0)]
    assert set(repairs) <= set(lacking)
    assert len(lacking) <= MAX_REPAIRS
    # every repair sees a column that its row lacks
    for slot in np.flatnonzero((blocks < 0) & (answered >= 0)):
        seen = (slot + first + np.arange(diagonals)) % slots % columns
        assert not by_blocks[answered[slot], seen].all()


def covered(
    answered: NDArray[np.int32], rows: int, columns: int, first: int, diagonals: int
) -> NDArray[np.bool_]:
    """[rows, columns]: the pairs that some slot sees, pair by pair as the plan's docstring says."""
    pairs = np.zeros((rows, columns), dtype=bool)
    for slot in np.flatnonzero(answered >= 0):
        for k in range(first, first + diagonals):
            pairs[answered[slot], (slot + k) % len(answered) % columns] = True
    return pairs


def test_too_many_rows_to_repair_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = 2048, MAX_REPAIRS + 1, 100, (0,), 0, 99  # every row lacks one column
    assert placement.__wrapped__(*layout) is None
    monkeypatch.setattr(plan_module, "MAX_REPAIRS", MAX_REPAIRS + 1)
    assert placement.__wrapped__(*layout) is not None


@settings(max_examples=60)
@given(SIZES, SIZES, st.sampled_from(sorted(PRESETS)))
def test_a_plan_of_any_shape_has_a_placement(out: int, inp: int, name: str) -> None:
    plan = plan_linear(PRESETS[name], out, inp)
    shape = plan.rows_per_output, plan.columns_per_input, plan.offsets
    answered = placement(plan.slots, *shape, plan.first_rotation, plan.diagonals)
    assert answered is not None
    counts = np.bincount(answered[answered >= 0], minlength=plan.rows_per_output)
    assert counts.min() >= len(plan.offsets)  # every block answers every row, repairs come on top
    assert counts.max() == plan.segments


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES)
def test_plans_are_deterministic_and_counts_agree(out: int, inp: int) -> None:
    plan = plan_linear(DEFAULT, out, inp)
    again = plan_linear.__wrapped__(DEFAULT, out, inp)
    assert plan == again
    assert plan.plan_id == again.plan_id
    todo = schedule(plan)
    assert len(todo.source) == plan.product_count
    rotations = sum(1 for k in todo.giant if k) + plan.input_ciphertexts * (plan.babies - 1)
    assert rotations == plan.rotation_count


@pytest.mark.parametrize(
    ("shape", "rotations", "products", "replies"),
    [((960, 576), 23, 144, 1), ((576, 576), 20, 96, 1), ((3072, 576), 46, 576, 1), ((576, 1536), 34, 288, 1)],
)
def test_counts_of_smollm2_layers(
    shape: tuple[int, int], rotations: int, products: int, replies: int
) -> None:
    """A regression here costs time on every token; see docs/performance.md for what a count costs."""
    plan = plan_linear(DEFAULT, *shape)
    assert plan.rotation_count <= rotations
    assert plan.product_count <= products
    assert plan.output_ciphertexts == replies
    assert plan.input_ciphertexts == 1


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (MAX_FEATURES + 1, 5), (5, MAX_FEATURES + 1), (-1, 1)])
def test_sizes_outside_the_range_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ParameterError, match="cannot plan"):
        plan_linear(DEFAULT, *shape)


def test_different_plans_have_different_ids() -> None:
    ids = {plan_linear(preset, o, 64).plan_id for preset in PRESETS.values() for o in range(1, 40)}
    assert len(ids) == 78
    assert all(len(i) == 32 for i in ids)
    assert isinstance(plan_linear(DEFAULT, 4, 4), LinearPlan)
