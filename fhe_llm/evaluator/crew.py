"""The threads that evaluations share, and how many of them may work on one.

An evaluation runs on its caller's thread. Threads that no other evaluation has taken help it: one alone uses them all,
several together no more than there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.arena import Arena, aligned
from fhe_llm.evaluator.keyswitch import Workspace, workspace


@dataclass(frozen=True, slots=True)
class Scratch:
    """What a thread keeps to write to: the workspace of a rotation, and for packed plans two ciphertexts and the words
    of sixteen plaintexts with up to N/16 features."""

    workspace: Workspace
    ciphertexts: NDArray[np.uint32]  # [2, 2, L, N]
    reals: NDArray[np.float64]  # [N]
    lanes: NDArray[np.uint32]  # [L N]

    @classmethod
    def fresh(cls, ring_degree: int, data_limbs: int) -> Scratch:
        """Scratch for one thread."""
        return cls(
            workspace(ring_degree, data_limbs),
            aligned(np.uint32, 2, 2, data_limbs, ring_degree),
            aligned(np.float64, ring_degree),
            aligned(np.uint32, data_limbs * ring_degree),
        )


class Crew:
    """``threads`` threads, those of the callers among them. Thread-safe."""

    def __init__(self, threads: int, ring_degree: int, data_limbs: int) -> None:
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="fhe-evaluator")
        self._shape = ring_degree, data_limbs
        self._local = threading.local()
        self._lock, self._active = threading.Lock(), 0
        self._arenas: list[Arena] = []

    @contextmanager
    def evaluation(self) -> Iterator[Arena]:
        """Count as one evaluation until the end; the arena is nobody else's meanwhile."""
        with self._lock:
            self._active += 1
            arena = self._arenas.pop() if self._arenas else Arena()
        try:
            yield arena
            arena.clear()
            self._arenas.append(arena)  # not after a failure: a helper might still write to it
        finally:
            with self._lock:
                self._active -= 1

    def run(self, work: Callable[[Scratch], None]) -> None:
        """Call ``work`` here and on every thread left over; all of them have ended on return, or one raises.

        ``work`` divides what there is to do itself. A helper may come when nothing is left, and one that has not begun
        when this thread is done never does. To be called within :meth:`evaluation`; may be called many times, and takes
        the helpers there are each time.
        """
        others: list[Future[None]] = []
        try:
            for _ in range(self.threads - self._active):
                others.append(self.pool.submit(self._call, work))
            self._call(work)
        finally:
            begun = [other for other in others if not other.cancel()]
            wait(begun)  # they write to arrays that the caller gives up
        for other in begun:
            other.result()

    def close(self) -> None:
        """Stop the threads."""
        self.pool.shutdown(wait=True)

    def _call(self, work: Callable[[Scratch], None]) -> None:
        """A thread keeps its scratch."""
        scratch = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = Scratch.fresh(*self._shape)
        work(scratch)
