"""One lane of evaluations: its scratch memory, its staging area, and the sequences it has captured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.cuda_sequence import ROUND_HEAD, STAMPS, Constants, Layout, layout, steps_of
from fhe_llm.evaluator.cuda_sequence import Sequence as Launches
from fhe_llm.evaluator.device import Address, Buffer, Device
from fhe_llm.evaluator.packed_plan import Plan
from fhe_llm.params import Preset

MOST_CAPTURED: Final = 256
"""Captured sequences a lane keeps; each takes some memory of the driver's."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one pass evaluates: ``weights`` is a device address, ``scale`` the weights' own, and ``keys`` the addresses
    that a job's part of the round holds, in the order of :class:`cuda_sequence.Steps`."""

    plan: Plan
    weights: int
    scale: float
    expanded: bool
    inputs: Sequence[NDArray[Any]]
    keys: Sequence[NDArray[np.uint64]]


class Captured:
    """The sequence for one plan and number of jobs, and the parts of the staging area that it copies."""

    def __init__(self, runner: Runner, work: Work, where: Layout) -> None:
        preset, jobs, s = runner.preset, len(work.inputs), steps_of(work.plan)
        self._lane = runner.lane
        self._launches = Launches(
            preset,
            work.plan,
            jobs,
            work.expanded,
            runner.device.multiprocessors,
            runner.constants(work.plan),
            runner.base,
        )
        first, size = where.span("round", "inputs")
        self._in, self._in_at = runner.staging[:size], Address(runner.base + first)
        start = -(-size // 8) * 8
        first, size = where.span("replies", "stamps")
        self._out, self._out_at = runner.staging[start : start + size], Address(runner.base + first)
        n, limbs = preset.ring_degree, len(preset.data_primes)
        head = self._in[: where.sizes["round"]].view(np.uint64)
        self._weights, self._scale = head[:1], head[1:2].view(np.float64)
        self._keys = head[ROUND_HEAD:].reshape(jobs, len(s.keys))
        inputs = self._in[where.offsets["inputs"] :].view(np.uint32)
        self._inputs = inputs.reshape(jobs, s.inputs, 2, limbs, n)
        words = self._out[: where.sizes["replies"]].view(np.uint32)
        self._replies = words.reshape(jobs, s.outputs, 2, preset.reply_limbs, n)
        start = where.offsets["stamps"] - where.offsets["replies"]
        self._stamps = self._out[start : start + 8 * STAMPS].view(np.uint64)
        self._replay: Callable[[], None] | None = None
        self._begun = False

    def run(self, work: Work) -> tuple[list[NDArray[np.uint32]], list[int]]:
        """Replies of each job, and the stamps. Launched piece by piece the first time, which loads the kernels, and
        captured after that."""
        self._weights[0], self._scale[0] = work.weights, work.scale
        for j, (words, addresses) in enumerate(zip(work.inputs, work.keys, strict=True)):
            self._inputs[j], self._keys[j] = words, addresses
        if not self._begun:
            self._everything()
            self._begun = True
        else:
            if self._replay is None:
                self._replay = self._lane.capture(self._everything)
            self._replay()
        self._lane.wait()
        return list(self._replies.copy()), self._stamps.tolist()

    def _everything(self) -> None:
        self._lane.copy_in(self._in_at, self._in)
        self._launches.launch(self._lane)
        self._lane.copy_out(self._out, self._out_at)


class Runner:
    """Evaluates one pass after another; not for concurrent use."""

    def __init__(self, device: Device, preset: Preset, constants: Callable[[Plan], Constants]) -> None:
        self.device = device
        self.preset = preset
        self.constants = constants
        self.lane = device.lane()
        self.staging = np.empty(0, dtype=np.uint8)
        self._block: Buffer | None = None
        self._captured: OrderedDict[tuple[bytes, int, bool], Captured] = OrderedDict()

    @property
    def base(self) -> int:
        """Address of the scratch memory."""
        return self._block.address if self._block is not None else 0

    def run(self, work: Work) -> tuple[list[NDArray[np.uint32]], list[int]]:
        """Replies [O, 2, reply limbs, N] of each job, and the stamps; raises :class:`DeviceMemoryError`."""
        key = (work.plan.plan_id, len(work.inputs), work.expanded)
        with self.lane.active():
            captured = self._captured.get(key)
            if captured is None:
                captured = self._captured[key] = self._begin(work)
                if len(self._captured) > MOST_CAPTURED:
                    self._captured.popitem(last=False)
            self._captured.move_to_end(key)
            return captured.run(work)

    def release(self) -> None:
        """Give the scratch memory back."""
        with self.lane.active():
            self._captured.clear()
            self._block = None

    def _begin(self, work: Work) -> Captured:
        where = layout(self.preset, work.plan, len(work.inputs), work.expanded)
        if self._block is None or self._block.nbytes < where.nbytes:
            self._captured.clear()  # they hold addresses of the old block
            self._block = None
            self._block = self.device.allocate(where.nbytes)
        staged = where.span("round", "inputs")[1] + where.span("replies", "stamps")[1] + 8
        if len(self.staging) < staged:
            self._captured.clear()
            # devices keep pinned memory for as long as they live: sizes double, so that all of it is twice the last
            self.staging = self.device.pinned(1 << (staged - 1).bit_length())
        return Captured(self, work, where)
