"""What the CUDA evaluator promises beyond the common contract, on whatever device: bits of the CPU evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Evaluator, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.packed_plan import Plan
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import Preset


def residues(
    rng: np.random.Generator, preset: Preset, primes: Sequence[int], *shape: int
) -> NDArray[np.uint32]:
    """Uniform residues [*shape, primes, N]."""
    out = np.empty((*shape, len(primes), preset.ring_degree), dtype=np.uint32)
    for limb, q in enumerate(primes):
        out[..., limb, :] = rng.integers(0, q, (*shape, preset.ring_degree))
    return out


def random_keys(rng: np.random.Generator, preset: Preset, plans: Sequence[Plan]) -> EvaluationKeys:
    """Uniform words in place of keys: they decrypt nothing, and every bit of an evaluation depends on them."""
    steps = {k for plan in plans for k in plan.rotations}
    elements = tuple(sorted(pow(3, k, 2 * preset.ring_degree) for k in steps))
    words = residues(rng, preset, preset.primes, len(elements), len(preset.data_primes), 2)
    return EvaluationKeys(preset, elements, words)


def random_layer(rng: np.random.Generator, evaluator: Evaluator, plan: Plan) -> EncodedLayer:
    weights = rng.normal(scale=0.05, size=(plan.out_features, plan.in_features)).astype(np.float32)
    return evaluator.encode("layer", plan, weights)


def random_inputs(
    rng: np.random.Generator, preset: Preset, plan: Plan, jobs: int
) -> list[NDArray[np.uint32]]:
    return [residues(rng, preset, preset.data_primes, plan.input_ciphertexts, 2) for _ in range(jobs)]


def assert_equals_the_cpu(
    cuda: CudaEvaluator, plan: Plan, jobs: int = 1, clients: int = 1, rounds: int = 1
) -> None:
    """Fresh layer, keys and inputs: both evaluators must give the same words, each time."""
    rng, preset = np.random.default_rng(), cuda.preset
    cpu = CpuEvaluator(preset, threads=2)
    try:
        layer = random_layer(rng, cpu, plan)
        keys = [random_keys(rng, preset, [plan]) for _ in range(clients)]
        mine, theirs = [cuda.prepare_keys(k) for k in keys], [cpu.prepare_keys(k) for k in keys]
        for _ in range(rounds):
            inputs = random_inputs(rng, preset, plan, jobs)
            expected, _ = cpu.evaluate(layer, [Job(theirs[i % clients], x) for i, x in enumerate(inputs)])
            replies, _ = cuda.evaluate(layer, [Job(mine[i % clients], x) for i, x in enumerate(inputs)])
            np.testing.assert_array_equal(np.stack(replies), np.stack(expected))
    finally:
        cpu.close()


class CudaContract:
    """Mixed into the contract of encrypted evaluators."""

    def make_device(self) -> Any:
        raise NotImplementedError

    def small_plan(self) -> Plan:
        """One with baby and giant steps."""
        contract: Any = self
        return plan_linear(contract.preset, 500, 400)

    def make_evaluator(self) -> Evaluator:
        contract: Any = self
        return CudaEvaluator(self.make_device(), contract.preset, threads=2)

    def test_threads_change_nothing(self, evaluator: CudaEvaluator) -> None:
        """Passes on several lanes at once."""
        contract: Any = self
        rng, preset = np.random.default_rng(), evaluator.preset
        plan = contract.small_plan()
        layer, keys = (
            random_layer(rng, evaluator, plan),
            evaluator.prepare_keys(random_keys(rng, preset, [plan])),
        )
        jobs = [Job(keys, inputs) for inputs in random_inputs(rng, preset, plan, 6)]
        expected = [evaluator.evaluate(layer, [job])[0][0] for job in jobs]
        with ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(lambda job: evaluator.evaluate(layer, [job])[0][0], jobs))
        np.testing.assert_array_equal(np.stack(replies), np.stack(expected))

    def test_keys_of_another_shape_are_refused(self, evaluator: CudaEvaluator) -> None:
        contract: Any = self
        preset = evaluator.preset
        keys = random_keys(np.random.default_rng(), preset, [contract.small_plan()])
        for words in (keys.words[:-1], keys.words[..., :-1], keys.words.astype(np.int64)):
            with pytest.raises(ParameterError, match="cannot use these keys"):
                evaluator.prepare_keys(EvaluationKeys(preset, keys.elements, words))

    def test_words_that_are_not_contiguous_are_refused(self, evaluator: CudaEvaluator) -> None:
        contract: Any = self
        layer = random_layer(np.random.default_rng(), evaluator, contract.small_plan())
        for words in (np.asfortranarray(layer.words), layer.words.astype(np.float64)):
            spoilt = EncodedLayer("layer", layer.plan, layer.log_weight_scale, words)
            with pytest.raises(ParameterError, match="cannot evaluate layer: its words are"):
                evaluator.evaluate(spoilt, [])

    def test_zero_jobs_are_no_replies(self, evaluator: CudaEvaluator) -> None:
        contract: Any = self
        layer = random_layer(np.random.default_rng(), evaluator, contract.small_plan())
        assert evaluator.evaluate(layer, [])[0] == []

    @pytest.mark.parametrize("jobs", [1, 2, 3, 5])
    def test_any_number_of_jobs_equals_the_cpu(self, evaluator: CudaEvaluator, jobs: int) -> None:
        contract: Any = self
        assert_equals_the_cpu(evaluator, contract.small_plan(), jobs, clients=2, rounds=3)
