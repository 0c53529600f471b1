"""The CUDA evaluator: the CPU evaluator's arithmetic, bit for bit, on a device of :mod:`fhe_llm.evaluator.device`.

Encoded layers have the CPU evaluator's form, so either can evaluate what the other has encoded.
"""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.checks import check_job, check_keys, check_layer, steps_of_elements
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job, Timings
from fhe_llm.evaluator.cuda_encoding import DeviceEncoder
from fhe_llm.evaluator.cuda_loader import CudaKeys, Loader, NotCompactError
from fhe_llm.evaluator.cuda_residency import FORMS, Form, WeightSize, plan_residency
from fhe_llm.evaluator.cuda_runner import Runner, Work
from fhe_llm.evaluator.cuda_sequence import layout
from fhe_llm.evaluator.cuda_store import DeviceStore, Item
from fhe_llm.evaluator.device import Device, DeviceMemoryError
from fhe_llm.evaluator.packed import encode_packed
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.schedule import encode_layer
from fhe_llm.params import Preset

logger = logging.getLogger(__name__)

LANES: Final = 2
"""Passes at once: one copies while the other computes."""
MOST_JOBS: Final = 64
SCRATCH_BYTES: Final = 512 << 20
"""Scratch memory of a lane, unless one job needs more."""
MOST_FAILURES: Final = 2
"""Times a job by itself may find the device full: once without others' keys, once without weights."""
SPARE_BYTES: Final = 64 << 20
"""Left for tables and what loading needs in passing."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A layer, and its weights as they live on the device."""

    layer: EncodedLayer
    item: Item
    expanded: bool
    most_jobs: int


class CudaEvaluator:
    """Evaluates layers on a device; implements :class:`fhe_llm.evaluator.contract.Evaluator`."""

    form: Final = "fhe_llm.evaluator.cpu.CpuEvaluator"
    """Whose encoded layers ours are: files of either are read by both."""

    def __init__(
        self, device: Device, preset: Preset, lanes: int = LANES, threads: int | None = None
    ) -> None:
        self.preset = preset
        self.parallel = lanes
        self.device = device
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="fhe-encode")
        self._loader = Loader(device, preset)
        self._encoder = DeviceEncoder(device, preset, self._loader)
        self._scratch = min(SCRATCH_BYTES, device.memory // (4 * lanes))
        room = max(0, device.memory - lanes * self._scratch - SPARE_BYTES)
        self._weights = DeviceStore(device, room * 3 // 4)
        self._keys = DeviceStore(device, room // 4)
        self._held: dict[int, _Placed] = {}
        self._runners: list[Runner] = [Runner(device, preset, self._loader.constants) for _ in range(lanes)]
        self._idle: queue.LifoQueue[Runner] = queue.LifoQueue()
        for runner in self._runners:
            self._idle.put(runner)

    @property
    def jobs_per_pass(self) -> int:
        """Jobs worth evaluating together."""
        return MOST_JOBS

    def encode(self, name: str, plan: Plan, weights: NDArray[np.float32]) -> EncodedLayer:
        """See :meth:`fhe_llm.evaluator.contract.Evaluator.encode`; the CPU evaluator's words, wherever it is done."""
        if isinstance(plan, PackedPlan):
            return encode_packed(self.preset, name, plan, weights)
        encoded = self._encoder.encode(name, plan, weights)
        return encoded or encode_layer(self.preset, name, plan, weights, self._pool)

    def prepare_keys(self, keys: EvaluationKeys) -> CudaKeys:
        """Keep the keys at the host; evaluations bring them to the device. Raises :class:`ParameterError`."""
        check_keys(self.preset, keys)
        steps = _steps(self.preset.ring_degree)
        # other automorphisms, conjugation say, turn no slots and are of no use here
        index = {steps[element]: i for i, element in enumerate(keys.elements) if element in steps}
        return CudaKeys(keys.words, index)

    def hold(self, layers: Sequence[EncodedLayer]) -> None:
        """Decide where these layers' weights live, say so in the log, and bring them there.

        Raises :class:`DeviceMemoryError` where the largest of them does not fit in any form.
        """
        for layer in layers:
            check_layer(self.preset, layer)
        distinct = list({_array(layer): layer for layer in layers}.values())
        room = self._weights.budget + self._keys.budget
        self._weights.budget, self._keys.budget = room * 3 // 4, room // 4
        sizes = [self._size(str(number), layer) for number, layer in enumerate(distinct)]
        forms = plan_residency(sizes, self._weights.budget)
        self._encoder.release()
        placed = {_array(layer): self._bring(layer, forms[str(n)]) for n, layer in enumerate(distinct)}
        self._held = {id(layer): self._placed(layer, placed[_array(layer)]) for layer in layers}
        if "host" not in placed.values():  # nothing else will ask for weights
            used = self._weights.used
            self._weights.budget, self._keys.budget = used, room - used
        self._report(list(placed.values()))

    def evaluate(self, layer: EncodedLayer, jobs: Sequence[Job]) -> tuple[list[NDArray[np.uint32]], Timings]:
        """See :meth:`fhe_llm.evaluator.contract.Evaluator.evaluate`; exact, so grouping jobs changes no bit."""
        weights = self._held.get(id(layer))
        if weights is None:
            check_layer(self.preset, layer)
            weights = self._placed(layer, "words")
        for job in jobs:
            check_job(self.preset, layer.plan, job)
        replies: list[NDArray[np.uint32]] = []
        spent = [0.0, 0.0, 0.0]
        most, failures = weights.most_jobs, 0
        while len(replies) < len(jobs):
            some = self._together(jobs[len(replies) : len(replies) + most])
            done = self._attempt(weights, some, last=failures == MOST_FAILURES and len(some) == 1)
            if done is None:
                failures = min(failures + 1, MOST_FAILURES)
                most = max(1, len(some) // 2)
                self._recover(everything=failures > 1)  # weights are dear: keys first
                continue
            replies += done[0]
            for phase, (began, ended) in enumerate(pairwise(done[1])):
                spent[phase] += max(ended - began, 1) / 1e9
        return replies, Timings(*spent)

    def close(self) -> None:
        """Give everything back."""
        self._pool.shutdown(wait=True)
        self._recover(everything=True)

    def _attempt(
        self, weights: _Placed, jobs: Sequence[Job], last: bool
    ) -> tuple[list[NDArray[np.uint32]], list[int]] | None:
        """A pass, or None where the device is full and this is not the ``last`` attempt: the caller makes room once the
        error is dealt with, as until then it keeps what was allocated."""
        try:
            return self._pass(weights, jobs)
        except DeviceMemoryError:
            if last:
                raise
            return None

    def _pass(self, weights: _Placed, jobs: Sequence[Job]) -> tuple[list[NDArray[np.uint32]], list[int]]:
        layer = weights.layer
        keys = [self._loader.keys(job.keys, self._keys) for job in jobs]
        with (
            self._runner() as runner,
            self._weights.lease([weights.item]) as (address,),
            self._keys.lease(keys) as starts,
        ):
            addresses = [
                np.uint64(start) + job.keys.offsets(layer.plan)
                for job, start in zip(jobs, starts, strict=True)
            ]
            inputs = [job.inputs for job in jobs]
            scale = 2.0**layer.log_weight_scale
            return runner.run(Work(layer.plan, address, scale, weights.expanded, inputs, addresses))

    def _together(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The first of ``jobs`` whose clients' keys fit a lane's part of the keys' budget, at least one."""
        room, seen = self._keys.budget // self.parallel, set[int]()
        for count, job in enumerate(jobs):
            keys: CudaKeys = job.keys
            if keys.number not in seen:
                room -= keys.nbytes
                seen.add(keys.number)
            if room < 0 and count:
                return jobs[:count]
        return jobs

    def _placed(self, layer: EncodedLayer, form: Form) -> _Placed:
        """``most_jobs`` are those whose scratch memory a lane has, at least one."""
        expanded = form == "compact"
        one, two = (layout(self.preset, layer.plan, jobs, expanded).nbytes for jobs in (1, 2))
        most = min(MOST_JOBS, max(1, 1 + (self._scratch - one) // max(1, two - one)))
        return _Placed(layer, self._loader.weights(layer, form), expanded, most)

    @contextmanager
    def _runner(self) -> Iterator[Runner]:
        runner = self._idle.get()
        try:
            yield runner
        finally:
            self._idle.put(runner)

    def _recover(self, everything: bool) -> None:
        """Let go of what can be had again, of weights only if ``everything``."""
        idle: list[Runner] = []
        with suppress(queue.Empty):  # those at work keep what they have
            while True:
                idle.append(self._idle.get_nowait())
        for runner in idle:
            runner.release()
            self._idle.put(runner)
        self._encoder.release()
        self._keys.evict()
        if everything:
            self._weights.evict()
        self.device.trim()

    def _size(self, name: str, layer: EncodedLayer) -> WeightSize:
        compact = None if isinstance(layer.plan, PackedPlan) else layer.words.nbytes
        return WeightSize(name, layer.words.nbytes, compact and compact // len(self.preset.data_primes))

    def _bring(self, layer: EncodedLayer, form: Form) -> Form:
        if form != "host":
            try:
                with self._weights.lease([self._loader.weights(layer, form)]):
                    return form
            except NotCompactError:
                pass
            except DeviceMemoryError:  # a compact form is made from the words, which need room meanwhile
                if form == "words":
                    raise
        if layer.words.nbytes > self._weights.budget:
            raise DeviceMemoryError(
                f"cannot hold {layer.name}: its {layer.words.nbytes >> 20} MiB pass the weights' share of "
                f"{self._weights.budget >> 20} MiB. Allow more memory, or use a smaller model."
            )
        return "host"

    def _report(self, forms: Sequence[Form]) -> None:
        logger.info(
            "weights on %s: %d arrays as words, %d as coefficients (expanded in passing), %d at the host (copied in "
            "passing); %d MiB; keys may take %d MiB",
            self.device.name,
            *(forms.count(form) for form in FORMS),
            self._weights.used >> 20,
            self._keys.budget >> 20,
        )


@lru_cache(maxsize=8)
def _steps(ring_degree: int) -> dict[int, int]:
    return steps_of_elements(ring_degree)


def _array(layer: EncodedLayer) -> tuple[int, int]:
    """Where the layer's words lie: layers of several plans may share them."""
    return layer.words.ctypes.data, layer.words.nbytes
