"""Plaintexts made in passing are those the full-length encoder makes, word for word."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import keyswitch, rns
from fhe_llm.evaluator.crew import Scratch
from fhe_llm.evaluator.encoding import coefficients_to_words, slots_to_coefficients
from fhe_llm.evaluator.packed_encoding import check_scale, encode_rows, giant_steps, packed_tables
from fhe_llm.evaluator.packed_plan import PackedPlan, packed_plans
from fhe_llm.evaluator.packed_reference import band
from fhe_llm.params import PRESETS, preset


def encode_block(
    plan: PackedPlan, weights: NDArray[np.float32], log_scale: int, first_output: int, outputs: int
) -> NDArray[np.int32]:
    """Words of ``outputs`` output blocks, [L, G, outputs * giants, inputs * babies]: Montgomery form, centred."""
    tables, parameters = packed_tables(plan.preset_name, plan.width), preset(plan.preset_name)
    steps, giants = giant_steps(plan), len(plan.giant_rotations)
    rows, inner = outputs * giants, plan.input_ciphertexts * plan.babies
    words = np.empty((rows, len(tables.q) * plan.width * inner), dtype=np.int32)
    scratch = Scratch.fresh(parameters.ring_degree, len(parameters.data_primes))
    base, scale = first_output * giants, 2.0**log_scale
    encode_rows(
        weights, scale, plan.babies, steps, base, words, 0, rows, scratch.reals, scratch.lanes, tables
    )
    return words.reshape(rows, len(tables.q), plan.width, inner).transpose(1, 2, 0, 3)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_words_equal_those_of_the_long_transform(name: str, tokens: int) -> None:
    parameters, shape, log_scale = PRESETS[name], (300, 500), 24
    (plan,) = (p for p in packed_plans(parameters, *shape) if p.tokens == tokens)
    rng = np.random.default_rng()
    weights = rng.normal(scale=0.05, size=shape).astype(np.float32)
    output = plan.output_ciphertexts - 1
    words = encode_block(plan, weights, log_scale, output, 1)
    primes = np.array(parameters.data_primes, dtype=np.int64)[:, None]
    assert (np.abs(words) <= primes[:, None, None] // 2).all()
    for row in rng.choice(len(plan.giant_rotations), 3, replace=False):
        source, baby = divmod(int(rng.integers(words.shape[3])), plan.babies)
        giant = plan.giant_rotations[row]
        period = np.roll(band(plan, weights, output, source)[giant + baby], giant)
        coefficients = slots_to_coefficients(np.tile(period, plan.rows)[None] + 0j, 2.0**log_scale)
        residues = coefficients_to_words(coefficients, parameters.data_primes)
        tables = rns.ring_tables(parameters.ring_degree, parameters.data_primes)
        expected = keyswitch.to_montgomery(rns.to_slot_order_ntt(residues, tables), parameters.data_primes)[0]
        ours = words[:, :, row, source * plan.babies + baby].astype(np.int64) % primes
        np.testing.assert_array_equal(np.tile(ours, 2 * plan.rows), expected)


def test_encoding_is_deterministic_and_does_not_depend_on_the_cut() -> None:
    (plan, *_) = packed_plans(PRESETS["default"], 700, 130)
    weights = np.random.default_rng().normal(size=(700, 130)).astype(np.float32)
    whole = encode_block(plan, weights, 20, 0, plan.output_ciphertexts)
    giants = len(plan.giant_rotations)
    for output in range(plan.output_ciphertexts):
        np.testing.assert_array_equal(
            encode_block(plan, weights, 20, output, 1), whole[:, :, output * giants : (output + 1) * giants]
        )


def test_a_width_beyond_the_scratch_is_refused() -> None:
    with pytest.raises(ParameterError, match="larger groups"):
        packed_tables("default", 512)


def test_a_scale_too_large_for_exact_sums_is_refused() -> None:
    with pytest.raises(ParameterError, match="51 bits"):
        check_scale(PRESETS["default"], "layer", 50, np.full((1, 1), 2.5, dtype=np.float32))
