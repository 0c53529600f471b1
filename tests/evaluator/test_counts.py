"""Counts of SmolLM2's layers: a regression here costs time or bytes on every token and fails without a clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fhe_llm.client.trimming import input_drop
from fhe_llm.evaluator.counts import Counts, counts, ntt_count
from fhe_llm.evaluator.packed_plan import plan_elements
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import preset
from fhe_llm.wire import frame as wire
from fhe_llm_server.rounds import DROP_C0

DEFAULT = preset("default")
SHAPES = {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536)}
BLOCKS = 30


@dataclass(frozen=True)
class Bound:
    """The most one round may take."""

    rotations: int
    products: int
    ntts: int
    bytes_up: int
    bytes_down: int


BOUNDS = {
    "qkv": Bound(23, 144, 150, 27_340, 28_240),
    "o": Bound(20, 96, 132, 27_340, 28_240),
    "gate_up": Bound(46, 576, 288, 27_340, 28_240),
    "down": Bound(34, 288, 216, 27_340, 28_240),
}
TOKEN = Bound(3_690, 33_120, 23_580, 3_281_000, 3_390_000)
ROUNDS_PER_TOKEN = 120
KEYS = 51
KEY_BYTES = 9_510_000
WEIGHT_BYTES = 1_085_276_160


def frame_bytes(shape: tuple[int, int]) -> tuple[int, int]:
    """Bytes of one seeded request and of its reply, as client and proxy encode them."""
    plan, degree = plan_linear(DEFAULT, *shape), DEFAULT.ring_degree
    c0 = np.ones((1, plan.input_ciphertexts, 1, len(DEFAULT.data_primes), degree), np.uint32)
    seeds = np.arange(plan.input_ciphertexts * 32, dtype=np.uint8).reshape(1, -1, 32)
    request = wire.EvaluateRequest(
        DEFAULT, 1, bytes(32), bytes(32), plan.plan_id, "layers.29.gate_up", c0, seeds, input_drop(DEFAULT)
    )
    words = np.full((1, plan.output_ciphertexts, 2, DEFAULT.reply_limbs, degree), 1 << 10, np.uint32)
    reply = wire.EvaluateReply(DEFAULT, 1, words, wire.PhaseMicroseconds(), DROP_C0, 0)
    return len(wire.encode(request)), len(wire.encode(reply))


@pytest.mark.parametrize("layer", SHAPES)
def test_a_round_stays_within_its_bounds(layer: str) -> None:
    found, bound = counts(plan_linear(DEFAULT, *SHAPES[layer])), BOUNDS[layer]
    up, down = frame_bytes(SHAPES[layer])
    assert found.rotations <= bound.rotations
    assert found.products <= bound.products
    assert found.ntts <= bound.ntts
    assert up <= bound.bytes_up
    assert down <= bound.bytes_down


def test_a_token_stays_within_its_bounds() -> None:
    plans = [plan_linear(DEFAULT, *shape) for shape in SHAPES.values()]
    total = sum((counts(plan) for plan in plans), Counts())
    up, down = (BLOCKS * sum(frame_bytes(shape)[way] for shape in SHAPES.values()) for way in (0, 1))
    assert BLOCKS * len(plans) == ROUNDS_PER_TOKEN
    assert BLOCKS * total.rotations <= TOKEN.rotations
    assert BLOCKS * total.products <= TOKEN.products
    assert BLOCKS * total.ntts <= TOKEN.ntts
    assert up <= TOKEN.bytes_up
    assert down <= TOKEN.bytes_down
    assert BLOCKS * total.weight_bytes <= WEIGHT_BYTES


def test_the_keys_of_a_client_stay_within_their_bounds() -> None:
    elements = plan_elements(DEFAULT, [plan_linear(DEFAULT, *shape) for shape in SHAPES.values()])
    limbs, degree = len(DEFAULT.data_primes), DEFAULT.ring_degree
    words = np.ones((len(elements), limbs, 2, limbs + 1, degree), np.uint32)
    assert len(elements) <= KEYS
    assert len(wire.encode(wire.KeyFrame(DEFAULT, elements, words))) <= KEY_BYTES


def test_transforms_of_the_smallest_plan_by_hand() -> None:
    plan = plan_linear(DEFAULT, 1, 1)
    # no rotation at all: what is left are the inverse transforms of both components, three limbs each
    assert (plan.rotation_count, ntt_count(plan)) == (0, 6)


def test_counts_add_up() -> None:
    one = counts(plan_linear(DEFAULT, 576, 576))
    assert one + Counts() == one
    assert (one + one).products == 2 * one.products
