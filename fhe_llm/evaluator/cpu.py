"""The CPU evaluator: Numba kernels under a small thread pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator import keyswitch, pipeline
from fhe_llm.evaluator.arena import Arena
from fhe_llm.evaluator.checks import check_job, check_keys, check_layer, steps_of_elements
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job, Timings
from fhe_llm.evaluator.crew import Crew, Scratch
from fhe_llm.evaluator.linear import BLOCK
from fhe_llm.evaluator.packed import GROUPS_PER_PASS, PackedEngine, encode_packed
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.evaluator.rns import ring_tables
from fhe_llm.evaluator.schedule import encode_layer, schedule
from fhe_llm.params import Preset

JOBS_PER_PASS = 8
"""Jobs that share one pass over the weights; bounds the memory of their rotated inputs (1 MB each at N = 4096)."""


@dataclass(frozen=True, slots=True)
class PreparedKeys:
    """Galois keys in slot order and Montgomery form: ``words`` [elements, L, 2, M, N]; ``index``: step to row;
    ``address``: step to where its key lies, 0 for step 0."""

    words: NDArray[np.uint32]
    index: dict[int, int]
    address: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Pass:
    """One thread's part of a pass. ``jobs`` own the keys that ``round`` knows only the addresses of."""

    round: pipeline.Round
    jobs: Sequence[Job]
    tables: keyswitch.EngineTables

    def __call__(self, scratch: Scratch) -> None:
        pipeline.run(self.round, scratch.workspace, self.tables)


class CpuEvaluator:
    """Evaluates layers on ciphertexts with Numba; implements :class:`fhe_llm.evaluator.contract.Evaluator`."""

    def __init__(self, preset: Preset, threads: int | None = None) -> None:
        self.preset = preset
        self.threads = threads or os.cpu_count() or 1
        self._tables = keyswitch.engine_tables(preset.ring_degree, preset.primes)
        self._ring = ring_tables(preset.ring_degree, preset.primes)
        self._crew = Crew(self.threads, preset.ring_degree, len(preset.data_primes))
        special, data = preset.primes[-1], preset.data_primes
        self._special_mod = np.array(
            [(special % q, ((special % q) << 32) // q) for q in data], dtype=np.uint32
        )
        self._packed = PackedEngine(preset, self._tables, self._special_mod, self._crew)

    @property
    def parallel(self) -> int:
        """See :class:`fhe_llm.evaluator.contract.Evaluator`: one for each thread."""
        return self.threads

    @property
    def jobs_per_pass(self) -> int:
        """See :class:`fhe_llm.evaluator.contract.Evaluator`."""
        return JOBS_PER_PASS

    def encode(self, name: str, plan: Plan, weights: NDArray[np.float32]) -> EncodedLayer:
        """Encode ``weights`` [out_features, in_features]; 0.1 ms per product and thread, later for packed plans."""
        if isinstance(plan, PackedPlan):
            return encode_packed(self.preset, name, plan, weights)
        return encode_layer(self.preset, name, plan, weights, self._crew.pool)

    def prepare_keys(self, keys: EvaluationKeys) -> PreparedKeys:
        """Reorder keys and bring them to Montgomery form; raises :class:`ParameterError` for another preset's keys."""
        check_keys(self.preset, keys)
        steps = steps_of_elements(self.preset.ring_degree)
        words = keyswitch.to_montgomery(keys.words[..., self._ring.slot_from_seal], self.preset.primes)
        # other automorphisms, conjugation say, turn no slots and are of no use here
        index = {steps[element]: i for i, element in enumerate(keys.elements) if element in steps}
        first, size = int(words.ctypes.data), words.strides[0] if len(words) else 0
        return PreparedKeys(words, index, {0: 0} | {step: first + i * size for step, i in index.items()})

    def evaluate(self, layer: EncodedLayer, jobs: Sequence[Job]) -> tuple[list[NDArray[np.uint32]], Timings]:
        """See :meth:`fhe_llm.evaluator.contract.Evaluator.evaluate`; exact, so grouping jobs changes no bit."""
        plan = layer.plan
        check_layer(self.preset, layer)
        for job in jobs:
            check_job(self.preset, plan, job)
        replies: list[NDArray[np.uint32]] = []
        spent = np.zeros(3)
        packed = isinstance(plan, PackedPlan)
        most = GROUPS_PER_PASS if packed else JOBS_PER_PASS
        evaluate = self._packed.evaluate if packed else self._evaluate
        for first in range(0, len(jobs), most):
            with self._crew.evaluation() as arena:
                replies += evaluate(layer, jobs[first : first + most], arena, spent)
        return replies, Timings(*(float(seconds) for seconds in spent))

    def close(self) -> None:
        """Stop the threads."""
        self._crew.close()

    def _evaluate(
        self, layer: EncodedLayer, jobs: Sequence[Job], arena: Arena, spent: NDArray[np.float64]
    ) -> list[NDArray[np.uint32]]:
        work = self._round(layer, jobs, arena)
        self._crew.run(_Pass(work, jobs, self._tables))
        ends = work.ends / 1e9
        spent += (ends[2] - ends[0], ends[3] - ends[2], ends[5] - ends[3])
        shape = (len(jobs), layer.plan.output_ciphertexts, *work.replies.shape[1:])
        return list(work.replies.reshape(shape))

    def _round(self, layer: EncodedLayer, jobs: Sequence[Job], arena: Arena) -> pipeline.Round:
        """Everything the threads share; the keys live as long as ``jobs`` does."""
        assert isinstance(layer.plan, LinearPlan)  # noqa: S101  packed plans went another way
        plan, todo = layer.plan, schedule(layer.plan)
        limbs, n = len(self.preset.data_primes), self.preset.ring_degree
        count, groups, replies = len(jobs), len(todo.giant), len(jobs) * plan.output_ciphertexts
        sources = plan.input_ciphertexts * plan.babies
        babies = [[job.keys.address[k] for k in range(plan.babies)] for job in jobs]
        giants = [[job.keys.address[k] for k in todo.giant.tolist()] for job in jobs]
        words = arena.words
        return pipeline.Round(
            inputs=np.concatenate([job.inputs for job in jobs]).astype(np.uint32, order="C", copy=False),
            slot_from_seal=self._ring.slot_from_seal,
            key=jobs[0].keys.words[0] if len(jobs[0].keys.words) else words(limbs, 2, limbs + 1, n),
            baby_keys=np.repeat(np.array(babies, dtype=np.int64), plan.input_ciphertexts, axis=0),
            giant_keys=np.array(giants, dtype=np.int64),
            weights=layer.words,
            source=todo.source,
            groups=todo.groups,
            target=todo.target,
            giant=todo.giant,
            digits=words(count * plan.input_ciphertexts, limbs, limbs + 1, n),
            rotated=words(count, sources, 2, limbs, n),
            side_by_side=arena.array(np.uint64, self.threads, 2 * count * sources * BLOCK),
            sums=words(count, groups, 2, limbs, n),
            switched=words(self.threads, replies, 2, limbs + 1, n),
            direct=words(self.threads, replies, 2, limbs, n),
            joined=np.zeros(self.threads, dtype=np.int64),
            replies=np.empty((replies, 2, self.preset.reply_limbs, n), dtype=np.uint32),
            special_mod=self._special_mod,
            counters=np.zeros(pipeline.COUNTERS, dtype=np.int64),
            ends=np.zeros(pipeline.PHASES + 1, dtype=np.int64),
        )
