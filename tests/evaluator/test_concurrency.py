"""Evaluations at once, each with a thread to itself, give the bits that one alone gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fhe_llm.evaluator.contract import EvaluationKeys, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.packed_plan import Plan, packed_plans, plan_elements
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

PRESET = PRESETS["default"]
SHAPES = [(96, 64), (64, 300), (700, 40)]


def test_side_by_side_equals_one_after_another() -> None:
    rng = np.random.default_rng()
    plans: list[Plan] = [plan_linear(PRESET, *shape) for shape in SHAPES]
    plans += [packed_plans(PRESET, 64, 64)[0], packed_plans(PRESET, 96, 64)[-1]]
    primes = np.array(PRESET.primes)[:, None]
    elements = plan_elements(PRESET, plans)
    words = rng.integers(0, primes, (len(elements), 2, 2, 3, PRESET.ring_degree)).astype(np.uint32)
    evaluator = CpuEvaluator(PRESET, threads=2)
    keys = evaluator.prepare_keys(EvaluationKeys(PRESET, elements, words))
    rounds = []
    for plan in plans:
        weights = rng.normal(size=(plan.out_features, plan.in_features)).astype(np.float32)
        layer = evaluator.encode("layer", plan, weights)
        inputs = rng.integers(0, primes[:2], (plan.input_ciphertexts, 2, 2, PRESET.ring_degree)).astype(
            np.uint32
        )
        rounds.append((layer, [Job(keys, inputs)]))
    alone = [evaluator.evaluate(layer, jobs)[0][0] for layer, jobs in rounds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: (i, evaluator.evaluate(*rounds[i])[0][0]), [0, 1, 2, 3, 4] * 12))
    for i, reply in together:
        np.testing.assert_array_equal(reply, alone[i])
    evaluator.close()
