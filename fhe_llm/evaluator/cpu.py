"""The CPU evaluator: Numba kernels under a small thread pool."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import keyswitch, pipeline
from fhe_llm.evaluator.arena import Arena
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job, MissingRotationKeyError, Timings
from fhe_llm.evaluator.linear import BLOCK
from fhe_llm.evaluator.packed import PackedEngine, encode_packed
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.evaluator.rns import GALOIS_GENERATOR, ring_tables
from fhe_llm.evaluator.schedule import encode_layer, encoded_shape, schedule
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


class CpuEvaluator:
    """Evaluates layers on ciphertexts with Numba; implements :class:`fhe_llm.evaluator.contract.Evaluator`."""

    def __init__(self, preset: Preset, threads: int | None = None) -> None:
        self.preset = preset
        self.threads = threads or os.cpu_count() or 1
        self._tables = keyswitch.engine_tables(preset.ring_degree, preset.primes)
        self._ring = ring_tables(preset.ring_degree, preset.primes)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="fhe-evaluator")
        self._local = threading.local()
        self._lock, self._active = threading.Lock(), 0
        self._arenas: list[Arena] = []
        special, data = preset.primes[-1], preset.data_primes
        self._special_mod = np.array(
            [(special % q, ((special % q) << 32) // q) for q in data], dtype=np.uint32
        )
        self._packed = PackedEngine(preset, self._tables, self._special_mod, self._pool, self.threads)

    @property
    def parallel(self) -> int:
        """Evaluations worth running at once: each then has a thread to itself and waits for no other."""
        return self.threads

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
        # other automorphisms, conjugation say, turn no slots and are of no use here
        index = {steps[element]: i for i, element in enumerate(keys.elements) if element in steps}
        first, size = int(words.ctypes.data), words.strides[0] if len(words) else 0
        return PreparedKeys(words, index, {0: 0} | {step: first + i * size for step, i in index.items()})

    def evaluate(self, layer: EncodedLayer, jobs: Sequence[Job]) -> tuple[list[NDArray[np.uint32]], Timings]:
        """See :meth:`fhe_llm.evaluator.contract.Evaluator.evaluate`; exact, so grouping jobs changes no bit."""
        plan = layer.plan
        self._check_layer(layer)
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
        with self._lock:
            self._active += 1
            helpers = max(0, self.threads - self._active)
            arena = self._arenas.pop() if self._arenas else Arena()
        others: list[Future[None]] = []
        try:
            work = self._round(layer, jobs, arena)
            for _ in range(helpers):
                others.append(self._pool.submit(self._run, work))
            self._run(work)
        finally:
            # a thread that has not begun would find nothing to do; one that has still writes to the arena
            wait(other for other in others if not other.cancel())
            with self._lock:
                self._active -= 1
                arena.clear()
                self._arenas.append(arena)
        ends = work.ends / 1e9
        spent += (ends[2] - ends[0], ends[3] - ends[2], ends[5] - ends[3])
        shape = (len(jobs), layer.plan.output_ciphertexts, *work.replies.shape[1:])
        return list(work.replies.reshape(shape))

    def _run(self, work: pipeline.Round) -> None:
        """One thread's part; a thread keeps its scratch."""
        scratch = getattr(self._local, "workspace", None)
        if scratch is None:
            limbs, n = len(self.preset.data_primes), self.preset.ring_degree
            scratch = self._local.workspace = keyswitch.workspace(n, limbs)
        pipeline.run(work, scratch, self._tables)

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
            side_by_side=words(self.threads, 4 * count * sources * BLOCK).view(np.uint64),
            sums=words(count, groups, 2, limbs, n),
            switched=words(self.threads, replies, 2, limbs + 1, n),
            direct=words(self.threads, replies, 2, limbs, n),
            joined=np.zeros(self.threads, dtype=np.int64),
            replies=np.empty((replies, 2, self.preset.reply_limbs, n), dtype=np.uint32),
            special_mod=self._special_mod,
            counters=np.zeros(pipeline.COUNTERS, dtype=np.int64),
            ends=np.zeros(pipeline.PHASES + 1, dtype=np.int64),
        )

    def _check_layer(self, layer: EncodedLayer) -> None:
        """The kernels trust shapes: words that are not the plan's would be read past their end."""
        plan = layer.plan
        if isinstance(plan, PackedPlan):
            wanted: tuple[int, ...] = (plan.out_features, plan.in_features)
        else:
            wanted = encoded_shape(self.preset, plan)
        if layer.words.shape != wanted:
            raise ParameterError(
                f"cannot evaluate {layer.name}: its words are {layer.words.shape}, not {wanted}. Encode it anew."
            )

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
