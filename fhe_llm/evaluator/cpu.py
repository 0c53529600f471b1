"""The CPU evaluator: Numba kernels under a small thread pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import keyswitch, linear
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job, MissingRotationKeyError, Timings
from fhe_llm.evaluator.packed import PackedEngine, encode_packed
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.evaluator.rns import GALOIS_GENERATOR, ring_tables
from fhe_llm.evaluator.schedule import Schedule, encode_layer, schedule
from fhe_llm.params import Preset

JOBS_PER_PASS = 8
"""Jobs that share one pass over the weights; bounds the memory of their rotated inputs (1 MB each at N = 4096)."""


@dataclass(frozen=True, slots=True)
class PreparedKeys:
    """Galois keys in slot order and Montgomery form: ``words`` [elements, L, 2, M, N]; ``index``: step to row."""

    words: NDArray[np.uint32]
    index: dict[int, int]


class CpuEvaluator:
    """Evaluates layers on ciphertexts with Numba; implements :class:`fhe_llm.evaluator.contract.Evaluator`."""

    def __init__(self, preset: Preset, threads: int | None = None) -> None:
        self.preset = preset
        self.threads = threads or os.cpu_count() or 1
        self._tables = keyswitch.engine_tables(preset.ring_degree, preset.primes)
        self._ring = ring_tables(preset.ring_degree, preset.primes)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="fhe-evaluator")
        special, data = preset.primes[-1], preset.data_primes
        self._special_mod = np.array(
            [(special % q, ((special % q) << 32) // q) for q in data], dtype=np.uint32
        )
        self._packed = PackedEngine(preset, self._tables, self._ring, self._special_mod, self._split)

    def encode(self, name: str, plan: Plan, weights: NDArray[np.float32]) -> EncodedLayer:
        """Encode ``weights`` [out_features, in_features]; 0.1 ms per product and thread, later for packed plans."""
        if isinstance(plan, PackedPlan):
            return encode_packed(self.preset, name, plan, weights)
        return encode_layer(self.preset, name, plan, weights, self._pool)

    def prepare_keys(self, keys: EvaluationKeys) -> PreparedKeys:
        """Reorder keys and bring them to Montgomery form; raises :class:`ParameterError` for another preset's keys."""
        if keys.preset != self.preset:
            raise ParameterError(
                f"cannot use keys of preset {keys.preset.name!r}: this evaluator runs {self.preset.name!r}. "
                "Make a key ring for that preset."
            )
        steps = _steps_of_elements(self.preset.ring_degree)
        words = keyswitch.to_montgomery(keys.words[..., self._ring.slot_from_seal], self.preset.primes)
        return PreparedKeys(words, {steps[element]: i for i, element in enumerate(keys.elements)})

    def evaluate(self, layer: EncodedLayer, jobs: Sequence[Job]) -> tuple[list[NDArray[np.uint32]], Timings]:
        """See :meth:`fhe_llm.evaluator.contract.Evaluator.evaluate`; exact, so grouping jobs changes no bit."""
        plan = layer.plan
        for job in jobs:
            self._check(plan, job)
        replies: list[NDArray[np.uint32]] = []
        spent = np.zeros(3)
        if isinstance(plan, PackedPlan):
            replies = self._packed.evaluate(layer, jobs, spent)
            return replies, Timings(*(float(seconds) for seconds in spent))
        for first in range(0, len(jobs), JOBS_PER_PASS):
            replies += self._evaluate_pass(layer, jobs[first : first + JOBS_PER_PASS], spent)
        return replies, Timings(*(float(seconds) for seconds in spent))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True)

    def _evaluate_pass(
        self, layer: EncodedLayer, jobs: Sequence[Job], spent: NDArray[np.float64]
    ) -> list[NDArray[np.uint32]]:
        assert isinstance(layer.plan, LinearPlan)  # noqa: S101  packed plans went another way
        plan, todo = layer.plan, schedule(layer.plan)
        started = perf_counter()
        rotated = self._baby_steps(plan, jobs)
        turned = perf_counter()
        limbs, n = len(self.preset.data_primes), self.preset.ring_degree
        sums = np.empty((len(jobs), len(todo.groups) - 1, 2, limbs, n), dtype=np.uint32)
        units = limbs * (n // linear.BLOCK)
        self._split(
            units,
            lambda lo, hi: linear.products(
                layer.words, todo.source, todo.groups, rotated, sums, lo, hi, self._tables
            ),
        )
        multiplied = perf_counter()
        tasks = [(j, target) for j in range(len(jobs)) for target in range(plan.output_ciphertexts)]
        replies = [
            np.empty((plan.output_ciphertexts, 2, self.preset.reply_limbs, n), dtype=np.uint32) for _ in jobs
        ]
        for j, target in tasks:
            self._giant_steps(todo, target, jobs[j].keys, sums[j], replies[j][target])
        done = perf_counter()
        spent += (turned - started, multiplied - turned, done - multiplied)
        return replies

    def _baby_steps(self, plan: LinearPlan, jobs: Sequence[Job]) -> NDArray[np.uint32]:
        """Rotations 0 ... babies - 1 of every input: [jobs, input ciphertexts * babies, 2, L, N]."""
        limbs, n, babies = len(self.preset.data_primes), self.preset.ring_degree, plan.babies
        inputs = np.stack([job.inputs for job in jobs])[..., self._ring.slot_from_seal]
        flat = inputs.reshape(-1, 2, limbs, n)
        rotated = np.empty((len(flat), babies, 2, limbs, n), dtype=np.uint32)
        rotated[:, 0] = flat
        digits = np.empty((len(flat), limbs, limbs + 1, n), dtype=np.uint32)
        keys = [job.keys for job in jobs for _ in range(plan.input_ciphertexts)]

        def decompose(lo: int, hi: int) -> None:
            w = keyswitch.workspace(n, limbs)
            for task in range(lo, hi):
                i, digit = divmod(task, limbs)
                keyswitch.decompose_digit(flat[i, 1], digit, digits[i, digit], w, self._tables)

        def turn(lo: int, hi: int) -> None:
            w = keyswitch.workspace(n, limbs)
            for task in range(lo, hi):
                i, k = divmod(task, babies - 1)
                key = keys[i].words[keys[i].index[k + 1]]
                keyswitch.rotate_hoisted(
                    flat[i, 0], digits[i], key, k + 1, rotated[i, k + 1], w, self._tables
                )

        if babies > 1:
            self._split(len(flat) * limbs, decompose)
            self._split(len(flat) * (babies - 1), turn)
        return rotated.reshape(len(jobs), plan.input_ciphertexts * babies, 2, limbs, n)

    def _giant_steps(
        self,
        todo: Schedule,
        target: int,
        keys: PreparedKeys,
        sums: NDArray[np.uint32],
        reply: NDArray[np.uint32],
    ) -> None:
        """Rotate the groups of one output into place, add them, rescale: ``reply`` [2, reply limbs, N]."""
        limbs, n = len(self.preset.data_primes), self.preset.ring_degree
        groups = [g for g in range(len(todo.giant)) if todo.target[g] == target]
        parts: list[tuple[NDArray[np.uint32], NDArray[np.uint32]]] = []

        def turn(lo: int, hi: int) -> None:
            w = keyswitch.workspace(n, limbs)
            switched = np.zeros((2, limbs + 1, n), dtype=np.uint32)
            direct = np.zeros((2, limbs, n), dtype=np.uint32)
            for g in groups[lo:hi]:
                k = int(todo.giant[g])
                if k == 0:
                    for c in range(2):
                        for limb in range(limbs):
                            keyswitch.shift_add(sums[g, c, limb], direct[c, limb], 0, self._tables.q[limb])
                else:
                    key = keys.words[keys.index[k]]
                    keyswitch.rotate_lazily(sums[g], key, k, switched, direct[0], w, self._tables)
            parts.append((switched, direct))

        self._split(len(groups), turn)
        switched, direct = parts[0]
        for more_switched, more_direct in parts[1:]:
            for c in range(2):
                for limb in range(limbs + 1):
                    keyswitch.shift_add(more_switched[c, limb], switched[c, limb], 0, self._tables.q[limb])
                for limb in range(limbs):
                    keyswitch.shift_add(more_direct[c, limb], direct[c, limb], 0, self._tables.q[limb])

        def end(lo: int, hi: int) -> None:
            w = keyswitch.workspace(n, limbs)
            for c in range(lo, hi):
                linear.finish(switched[c], direct[c], reply[c], self._special_mod, w, self._tables)

        self._split(2, end)

    def _split(self, count: int, work: Callable[[int, int], Any]) -> None:
        """Run ``work(lo, hi)`` over 0 ... count in one contiguous share per thread."""
        shares = min(self.threads, count)
        bounds = [count * i // shares for i in range(shares + 1)]
        others = [self._pool.submit(work, bounds[i], bounds[i + 1]) for i in range(1, shares)]
        work(bounds[0], bounds[1])
        for other in others:
            other.result()

    def _check(self, plan: Plan, job: Job) -> None:
        expected = (plan.input_ciphertexts, 2, len(self.preset.data_primes), self.preset.ring_degree)
        if job.inputs.shape != expected:
            raise ParameterError(
                f"cannot evaluate a job of shape {job.inputs.shape}: the plan takes {expected}. Pack it with this plan."
            )
        missing = [k for k in plan.rotations if k not in job.keys.index]
        if missing:
            raise MissingRotationKeyError(
                f"cannot rotate by {missing[0]}: {len(missing)} rotation keys are missing. "
                "Upload evaluation keys made for this model's plans."
            )


def _steps_of_elements(ring_degree: int) -> dict[int, int]:
    steps, value = {}, 1
    for k in range(ring_degree // 2):
        steps[value] = k
        value = value * GALOIS_GENERATOR % (2 * ring_degree)
    return steps
