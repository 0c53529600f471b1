"""Encryptions of zero made ahead of time: each is handed out once, and never by two processes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, TypeVar

T = TypeVar("T")

MAX_READY: Final = 256


class ZeroPool(Generic[T]):
    """At most ``MAX_READY`` items from ``make``; thread-safe, never persisted, empty again in a forked child."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._ready: deque[T] = deque()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def take(self) -> T:
        """An item nobody else gets; made on the spot where none is ready."""
        # empty at first, or emptied by a thread that noticed the same fork
        with self._held(), contextlib.suppress(IndexError):
            return self._ready.popleft()
        return self._make()

    def prepare(self, count: int) -> None:
        """Have at least ``count`` items ready (at most ``MAX_READY``)."""
        while len(self) < min(count, MAX_READY):
            item = self._make()
            with self._held():
                self._ready.append(item)

    def drop(self) -> None:
        """Forget everything that is ready."""
        with self._held():
            self._ready.clear()

    def __len__(self) -> int:
        with self._held():
            return len(self._ready)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("cannot copy or pickle encryptions of zero. They are for one use in one process.")

    def _held(self) -> threading.Lock:
        """The lock, after noticing a fork: the parent may hand out what this copy holds."""
        if self._process != os.getpid():
            # emptied before the process is known: a second thread of the child must not find the parent's items
            self._ready = deque()
            self._lock = threading.Lock()
            self._process = os.getpid()
        return self._lock
