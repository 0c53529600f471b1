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
    """What one pass evaluates: ``weights`` and each job's keys are device addresses, ``scale`` the weights' own."""

    plan: Plan
    weights: int
    scale: float
    expanded: bool
    inputs: Sequence[NDArray[Any]]
    keys: Sequence[Sequence[int]]


class _Captured:
    """One sequence: launched piece by piece the first time, which loads its kernels; captured from then on."""

    def __init__(self, runner: Runner, work: Work) -> None:
        self._runner = runner
        self._layout = layout(runner.preset, work.plan, len(work.inputs), work.expanded)
        constants = runner.constants(work.plan)
        self._launches = Launches(
            runner.preset,
            work.plan,
            len(work.inputs),
            work.expanded,
            runner.device.multiprocessors,
            constants,
            runner.base,
        )
        self._replay: Callable[[], None] | None = None
        self._begun = False

    def run(self) -> None:
        if not self._begun:
            self._everything()
            self._begun = True
            return
        if self._replay is None:
            self._replay = self._runner.lane.capture(self._everything)
        self._replay()

    def _everything(self) -> None:
        runner, lane = self._runner, self._runner.lane
        first, _ = self._layout.span("round", "inputs")
        lane.copy_in(Address(runner.base + first), runner.incoming(self._layout))
        self._launches.launch(lane)
        first, _ = self._layout.span("replies", "stamps")
        lane.copy_out(runner.outgoing(self._layout), Address(runner.base + first))


class Runner:
    """Evaluates one pass after another; not for concurrent use."""

    def __init__(self, device: Device, preset: Preset, constants: Callable[[Plan], Constants]) -> None:
        self.device = device
        self.preset = preset
        self.constants = constants
        self.lane = device.lane()
        self._block: Buffer | None = None
        self._staging = np.empty(0, dtype=np.uint8)
        self._captured: OrderedDict[tuple[bytes, int, bool], _Captured] = OrderedDict()

    @property
    def base(self) -> int:
        """Address of the scratch memory."""
        return self._block.address if self._block is not None else 0

    def incoming(self, where: Layout) -> NDArray[np.uint8]:
        """Staging for what is copied in."""
        return self._staging[: where.span("round", "inputs")[1]]

    def outgoing(self, where: Layout) -> NDArray[np.uint8]:
        """Staging for what is copied out."""
        first = -(-where.span("round", "inputs")[1] // 8) * 8
        return self._staging[first : first + where.span("replies", "stamps")[1]]

    def run(self, work: Work) -> tuple[list[NDArray[np.uint32]], NDArray[np.uint64]]:
        """Replies [O, 2, reply limbs, N] of each job, and the stamps; raises :class:`DeviceMemoryError`."""
        where = layout(self.preset, work.plan, len(work.inputs), work.expanded)
        with self.lane.active():
            self._make_room(where)
            self._fill(work, where)
            self._sequence(work).run()
            self.lane.wait()
            return self._replies(work, where)

    def release(self) -> None:
        """Give the scratch memory back."""
        with self.lane.active():
            self._captured.clear()
            self._block = None

    def _make_room(self, where: Layout) -> None:
        if self._block is None or self._block.nbytes < where.nbytes:
            self._captured.clear()  # they hold addresses of the old block
            self._block = None
            self._block = self.device.allocate(where.nbytes)
        staged = where.span("round", "inputs")[1] + where.span("replies", "stamps")[1] + 8
        if len(self._staging) < staged:
            self._captured.clear()
            self._staging = self.device.pinned(staged)

    def _fill(self, work: Work, where: Layout) -> None:
        incoming, s, n = self.incoming(where), steps_of(work.plan), self.preset.ring_degree
        head = incoming[: where.sizes["round"]].view(np.uint64)
        head[0] = work.weights
        head[1:2].view(np.float64)[0] = work.scale
        head[ROUND_HEAD:] = np.array(work.keys, dtype=np.uint64).reshape(-1)
        shape = (len(work.inputs), s.inputs, 2, len(self.preset.data_primes), n)
        inputs = incoming[where.offsets["inputs"] :].view(np.uint32).reshape(shape)
        for j, words in enumerate(work.inputs):
            inputs[j] = words

    def _sequence(self, work: Work) -> _Captured:
        key = (work.plan.plan_id, len(work.inputs), work.expanded)
        captured = self._captured.pop(key, None) or _Captured(self, work)
        self._captured[key] = captured
        if len(self._captured) > MOST_CAPTURED:
            self._captured.popitem(last=False)
        return captured

    def _replies(self, work: Work, where: Layout) -> tuple[list[NDArray[np.uint32]], NDArray[np.uint64]]:
        outgoing, outputs = self.outgoing(where), steps_of(work.plan).outputs
        shape = (len(work.inputs), outputs, 2, self.preset.reply_limbs, self.preset.ring_degree)
        words = outgoing[: where.sizes["replies"]].view(np.uint32).reshape(shape).copy()
        start = where.offsets["stamps"] - where.offsets["replies"]
        return list(words), outgoing[start : start + 8 * STAMPS].view(np.uint64).copy()
