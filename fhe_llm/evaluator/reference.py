"""The plaintext scheme behind the evaluator's interface: complex slots instead of ciphertexts, floats instead of words.

It follows the same plan, schedule and rotations as the encrypted evaluators, so layouts and schedules can be tested
without cryptography. It offers no privacy whatsoever; the proxy does not serve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job, MissingRotationKeyError, Timings
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.packed_reference import packed_product
from fhe_llm.evaluator.packed_scale import packed_log_weight_scale
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.evaluator.scale import log_weight_scale
from fhe_llm.evaluator.schedule import check_weights, plaintext_slots, schedule
from fhe_llm.params import Preset


class ReferenceEvaluator:
    """Evaluates layers on plaintext slots; ``Job.inputs`` and replies are [ciphertexts, slots], complex."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset

    @property
    def parallel(self) -> int:
        """One: NumPy gains nothing from company."""
        return 1

    @property
    def jobs_per_pass(self) -> int:
        """One, for the same reason."""
        return 1

    def encode(self, name: str, plan: Plan, weights: NDArray[np.float32]) -> EncodedLayer:
        """Weights [out_features, in_features] as slots [products, slots], at scale one."""
        if isinstance(plan, PackedPlan):
            check_weights(name, plan, weights)
            return EncodedLayer(name, plan, packed_log_weight_scale(self.preset, plan, weights), weights)
        words = plaintext_slots(plan, weights)
        return EncodedLayer(name, plan, log_weight_scale(self.preset, plan, weights), words)

    def prepare_keys(self, keys: EvaluationKeys) -> frozenset[int]:
        """The Galois elements there are; a rotation without one is refused as it would be under encryption."""
        return frozenset(keys.elements)

    def evaluate(self, layer: EncodedLayer, jobs: Sequence[Job]) -> tuple[list[NDArray[Any]], Timings]:
        """One reply [plan.output_ciphertexts, slots] per job."""
        started = perf_counter()
        replies = [self._evaluate_one(layer, job) for job in jobs]
        return replies, Timings(rotations=0.0, products=perf_counter() - started, finish=0.0)

    def _evaluate_one(self, layer: EncodedLayer, job: Job) -> NDArray[Any]:
        plan = layer.plan
        if job.inputs.shape != (plan.input_ciphertexts, plan.slots):
            raise ParameterError(
                f"cannot evaluate a job of shape {job.inputs.shape}: the plan takes "
                f"{(plan.input_ciphertexts, plan.slots)}. Pack it with this plan."
            )
        for k in plan.rotations:
            if pow(3, k, 2 * self.preset.ring_degree) not in job.keys:
                raise MissingRotationKeyError(
                    f"cannot rotate by {k}: its key is missing. Upload evaluation keys made for this model's plans."
                )
        if isinstance(plan, PackedPlan):
            return packed_product(plan, layer.words, job.inputs)
        assert isinstance(plan, LinearPlan)  # noqa: S101  the only other kind
        todo = schedule(plan)
        reply = np.zeros((plan.output_ciphertexts, plan.slots), dtype=np.complex128)
        for g, (target, giant) in enumerate(zip(todo.target, todo.giant, strict=True)):
            total = np.zeros(plan.slots, dtype=np.complex128)
            for p in range(todo.groups[g], todo.groups[g + 1]):
                block, baby = divmod(int(todo.source[p]), plan.babies)
                total += layer.words[p] * np.roll(job.inputs[block], -baby)
            reply[target] += np.roll(total, -int(giant))
        return reply
