"""The queue in front of the evaluator: groups what waits for the same layer, takes turns between keys.

A few worker threads share the evaluator, which is itself parallel while only one of them uses it. What asks for the
same layer shares one pass over the weights; :mod:`fhe_llm_server.steps` chooses the layer, so that conversations fall
into step, and may let a worker wait for company that is expected at once. A long request is cut into slices so that
others get a turn in between; results depend neither on the cut nor on the company.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray

from fhe_llm.errors import FheLlmError
from fhe_llm.evaluator.contract import EncodedLayer, Evaluator, Job, Timings
from fhe_llm.evaluator.device import DeviceLostError
from fhe_llm_server.metrics import Metrics
from fhe_llm_server.refusal import Refusal
from fhe_llm_server.steps import Group, Steps

logger = logging.getLogger(__name__)

BATCH_JOBS: Final = 8
"""Jobs evaluated before others get a turn, unless the evaluator shares a pass over the weights among more."""
MAX_REQUEST_JOBS: Final = 256
"""What one frame can carry."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """Replies in the request's order; seconds in the queue, in the evaluator's phases, and altogether."""

    outputs: list[NDArray[Any]]
    queue: float
    rotations: float
    products: float
    finish: float
    total: float


@dataclass(eq=False, slots=True)
class _Waiting:
    session: str
    layer: EncodedLayer
    jobs: Sequence[Job]
    future: asyncio.Future[RoundResult]
    enqueued: float
    place: int | None
    first_taken: float | None = None
    taken: int = 0
    overtaken: float = 0.0
    outputs: list[NDArray[Any]] = field(default_factory=list)
    phases: list[Timings] = field(default_factory=list)

    def result(self) -> RoundResult:
        now = time.perf_counter()
        started = now if self.first_taken is None else self.first_taken
        return RoundResult(
            outputs=self.outputs,
            queue=started - self.enqueued,
            rotations=sum(phase.rotations for phase in self.phases),
            products=sum(phase.products for phase in self.phases),
            finish=sum(phase.finish for phase in self.phases),
            total=now - self.enqueued,
        )


@dataclass(frozen=True, slots=True)
class _Slice:
    waiting: _Waiting
    jobs: Sequence[Job]


class Batcher:
    """Submit from the event loop; evaluation happens on ``workers`` threads of its own, each with a layer at a time."""

    def __init__(
        self,
        evaluator: Evaluator,
        max_queued_jobs: int,
        metrics: Metrics,
        workers: int = 1,
        batch_jobs: int = BATCH_JOBS,
        on_lost: Callable[[DeviceLostError], None] = lambda _: None,
    ) -> None:
        self._evaluator = evaluator
        self._most = max(max_queued_jobs, MAX_REQUEST_JOBS)
        self._metrics = metrics
        self._batch_jobs = batch_jobs
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._sessions: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._jobs: dict[str, int] = {}
        self._condition = threading.Condition()
        self._closed = False
        self._seconds_per_job = self._seconds_per_step = 0.02
        self._steps = Steps()
        self._places: dict[int, int] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"evaluate-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued_jobs(self) -> int:
        """Jobs waiting for their turn."""
        return sum(self._jobs.values())

    def set_pass(self, layers: Sequence[EncodedLayer]) -> None:
        """The layers of one pass, in the order a client asks for them; layers that are not among them are served
        first come, first served."""
        with self._condition:
            self._places = {id(layer): place for place, layer in enumerate(layers)}
            self._steps.set_ring(len(layers))

    async def submit(self, session: str, layer: EncodedLayer, jobs: Sequence[Job]) -> RoundResult:
        """Evaluate ``jobs`` on ``layer``. ``session`` is the unit of fairness: the key id.

        Raises :class:`Refusal`: ``busy`` when the queue (or this key's half of it) is full, ``not_ready``
        while shutting down, ``internal`` when the evaluator fails. Cancelling the call drops what has not
        begun.
        """
        with self._condition:
            self._admit(session, len(jobs))
            # a long request is no step of a conversation that others could keep up with
            place = self._places.get(id(layer)) if len(jobs) <= self._batch_jobs else None
            now = time.perf_counter()
            waiting = _Waiting(session, layer, jobs, self._loop.create_future(), now, place)
            self._steps.asked(session, now)
            self._sessions.setdefault(session, deque()).append(waiting)
            self._jobs[session] = self._jobs.get(session, 0) + len(jobs)
            self._condition.notify_all()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._drop(waiting)
            raise

    def close(self) -> None:
        """Refuse new work, fail what waits, finish what runs; returns when the threads have ended."""
        with self._condition:
            self._closed = True
            waiting = [item for queue in self._sessions.values() for item in queue]
            self._sessions.clear()
            self._jobs.clear()
            self._condition.notify_all()
        for item in waiting:
            self._fail(item, _shutting_down())
        for thread in self._threads:
            thread.join(timeout=30)

    def _admit(self, session: str, jobs: int) -> None:
        if self._closed:
            raise _shutting_down()
        queued, own = self.queued_jobs, self._jobs.get(session, 0)
        own_most = max(self._most // 2, MAX_REQUEST_JOBS)
        if queued + jobs > self._most or own + jobs > own_most:
            retry = int(1000 * self._seconds_per_job * queued)
            message = (
                "cannot queue this round: the proxy is at capacity. Retry the same bytes a little later."
            )
            raise Refusal("busy", message, retry_after_ms=min(max(retry, 50), 10_000))

    def _drop(self, waiting: _Waiting) -> None:
        with self._condition:
            queue = self._sessions.get(waiting.session)
            if queue is not None and waiting in queue:
                queue.remove(waiting)
                self._uncount(waiting.session, len(waiting.jobs) - waiting.taken)

    def _uncount(self, session: str, jobs: int) -> None:
        left = self._jobs.get(session, 0) - jobs
        if left > 0:
            self._jobs[session] = left
        else:
            self._jobs.pop(session, None)
        if not self._sessions.get(session, True):
            del self._sessions[session]

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._evaluate(batch)
            except Exception:
                # The thread must outlive anything an evaluator does: without it every later round would hang.
                logger.exception("evaluation failed")
                for part in batch:
                    self._fail(part.waiting, _failed())

    def _next_batch(self) -> list[_Slice]:
        with self._condition:
            deadline: float | None = None
            while not self._closed:
                groups, now = self._groups(), time.perf_counter()
                if not groups:
                    deadline = None
                    self._condition.wait()
                    continue
                choice = self._steps.choose(
                    [_group(items) for items in groups], self._sessions, now, self._seconds_per_step
                )
                if choice.wait and deadline is None:
                    deadline = now + choice.wait
                if not choice.wait or deadline is None or now >= deadline:
                    return self._take_group(groups, choice.index)
                self._condition.wait(deadline - now)
            return []

    def _groups(self) -> list[list[_Waiting]]:
        """What waits, by layer; layers and rounds in line order. A request whose last slice still runs waits for it, so
        that its replies come in order."""
        groups: dict[int, list[_Waiting]] = {}
        for queue in self._sessions.values():
            for item in queue:
                if item.taken == len(item.outputs):
                    groups.setdefault(id(item.layer), []).append(item)
        return list(groups.values())

    def _take_group(self, groups: list[list[_Waiting]], index: int) -> list[_Slice]:
        candidates = groups[index]
        sessions = len({item.session for item in candidates})
        return self._take(candidates, share=max(1, self._batch_jobs // sessions))

    def _take(self, candidates: list[_Waiting], share: int) -> list[_Slice]:
        """Up to ``share`` jobs a session and a batch altogether; a session served goes to the back."""
        room, shares = self._batch_jobs, dict.fromkeys((item.session for item in candidates), share)
        batch: list[_Slice] = []
        for item in candidates:
            count = min(len(item.jobs) - item.taken, shares[item.session], room)
            if count <= 0:
                continue
            batch.append(_Slice(item, item.jobs[item.taken : item.taken + count]))
            item.taken += count
            item.first_taken = item.first_taken or time.perf_counter()
            shares[item.session] -= count
            room -= count
            if item.taken == len(item.jobs):
                self._sessions[item.session].remove(item)
            self._sessions.move_to_end(item.session)
            self._uncount(item.session, count)
        return batch

    def _evaluate(self, batch: list[_Slice]) -> None:
        layer, jobs = batch[0].waiting.layer, [job for part in batch for job in part.jobs]
        started = time.perf_counter()
        try:
            outputs, timings = self._evaluator.evaluate(layer, jobs)
        except DeviceLostError as error:
            for part in batch:
                self._fail(part.waiting, _lost())
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._on_lost, error)
            return
        except Exception as error:
            if len(batch) > 1:
                for part in batch:
                    self._evaluate([part])
                return
            logger.exception("evaluation failed")
            self._fail(batch[0].waiting, _failed(error))
            return
        self._metrics.batch_jobs.observe(len(jobs))
        self._metrics.jobs.inc(len(jobs))
        now = time.perf_counter()
        per_job = (now - started) / len(jobs)
        with self._condition:
            self._seconds_per_job += 0.1 * (per_job - self._seconds_per_job)
            if all(part.waiting.place is not None for part in batch):
                self._seconds_per_step += 0.1 * (per_job - self._seconds_per_step)
            for part in batch:
                self._steps.answered(part.waiting.session, part.waiting.place, now)
            served = {part.waiting.session for part in batch}
            for item in (item for queue in self._sessions.values() for item in queue):
                if item.enqueued <= started and item.session not in served:
                    item.overtaken += max(len(jobs), (now - started) / self._seconds_per_step)
            position = 0
            for part in batch:
                part.waiting.outputs += outputs[position : position + len(part.jobs)]
                part.waiting.phases.append(timings)
                position += len(part.jobs)
            self._condition.notify_all()
        for part in batch:
            if len(part.waiting.outputs) == len(part.waiting.jobs):
                self._post(part.waiting, part.waiting.result())

    def _fail(self, waiting: _Waiting, refusal: Refusal) -> None:
        self._drop(waiting)
        self._post(waiting, refusal)

    def _post(self, waiting: _Waiting, outcome: RoundResult | Refusal) -> None:
        def settle() -> None:
            if waiting.future.done():
                return
            if isinstance(outcome, Refusal):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)


def _group(items: list[_Waiting]) -> Group:
    return Group(
        place=next((item.place for item in items if item.place is not None), None),
        sessions=len({item.session for item in items}),
        overtaken=max(item.overtaken for item in items),
    )


def _shutting_down() -> Refusal:
    message = (
        "cannot queue this round: the proxy is shutting down. Retry the same bytes with another replica."
    )
    return Refusal("not_ready", message, retry_after_ms=1000)


def _lost() -> Refusal:
    message = "cannot evaluate this round: the proxy lost its device. Retry the same bytes with another replica."
    return Refusal("not_ready", message, retry_after_ms=2000)


def _failed(error: Exception | None = None) -> Refusal:
    if isinstance(error, MemoryError):
        message = (
            "cannot evaluate this round: the proxy is short of memory. Retry the same bytes a little later."
        )
        return Refusal("busy", message, retry_after_ms=2000)
    cause = "the evaluator refused it" if isinstance(error, FheLlmError) else "the evaluator failed"
    return Refusal("internal", f"cannot evaluate this round: {cause}. Retry the same bytes once.")
