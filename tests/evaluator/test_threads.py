"""Threads in compiled code count together, take every task once, and wait for the last of a phase."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from fhe_llm.evaluator.threads import atomic_add, atomic_read, finish_phase, give_way, nanoseconds, take

THREADS = 4


def at_once(work: Callable[[int], Any]) -> None:
    """Call ``work`` with 0, 1, ... on threads that begin together."""
    begin = threading.Barrier(THREADS, timeout=20)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        begin.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures


@njit(nogil=True)
def _count(counters: Any, index: int, times: int, seen: Any) -> None:
    for i in range(times):
        seen[i] = atomic_add(counters, index, 1)


def test_no_increment_is_lost() -> None:
    counters, seen = np.zeros(3, dtype=np.int64), np.empty((THREADS, 20_000), dtype=np.int64)
    _count(counters, 0, 0, seen[0])  # compile before threads race
    at_once(lambda n: _count(counters, 1, seen.shape[1], seen[n]))
    assert counters.tolist() == [0, seen.size, 0]
    np.testing.assert_array_equal(np.sort(seen, axis=None), np.arange(seen.size))


@njit
def _read(counters: Any, index: int) -> Any:
    return atomic_read(counters, index)


def test_reading_a_counter() -> None:
    assert [_read(np.array([5, -7, 1 << 40]), i) for i in range(3)] == [5, -7, 1 << 40]


@njit(nogil=True)
def _phases(counters: Any, tasks: int, phases: int, done: Any, early: Any) -> None:
    """Each task counts itself; a task of a later phase that finds one of the phase before missing is too early."""
    for phase in range(phases):
        mine = 0
        task = take(counters, phase)
        while task < tasks:
            if phase > 0 and atomic_read(done, phase - 1) != tasks:
                atomic_add(early, 0, 1)
            give_way()  # others overtake this thread between its phases and its tasks
            atomic_add(done, phase, 1)
            mine += 1
            task = take(counters, phase)
        finish_phase(counters, phase, mine, tasks)


def test_no_task_is_lost_or_taken_twice_and_none_begins_before_the_phase_ahead_has_ended() -> None:
    phases = 40
    for tasks in (1, 3, 100):
        counters, done = np.zeros(16 * phases, dtype=np.int64), np.zeros(phases, dtype=np.int64)
        early = np.zeros(1, dtype=np.int64)
        _phases(counters, tasks, 0, done, early)
        at_once(lambda _, a=counters, b=tasks, c=done, d=early: _phases(a, b, phases, c, d))  # type: ignore[misc]
        assert (done == tasks).all()
        assert early[0] == 0


def test_a_phase_without_tasks_and_a_late_thread_wait_for_nobody() -> None:
    for tasks in (0, 5):
        counters, done, early = (np.zeros(size, dtype=np.int64) for size in (16, 1, 1))
        for _ in range(3):  # the later two come when nothing is left
            _phases(counters, tasks, 1, done, early)
        assert done[0] == tasks


@njit
def _now() -> Any:
    return nanoseconds()


@njit
def _yielded() -> Any:
    return give_way()


def test_the_clock_is_pythons_and_giving_way_succeeds() -> None:
    times = [time.monotonic_ns(), _now(), time.monotonic_ns(), _now()]
    assert times == sorted(times)
    assert _yielded() == 0
