"""A circuit breaker: a provider that failed again and again is left alone for a while, then tried with one request.

Closed (requests pass) → open (none do) → half open (one trial) → closed, or open again.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from fhe_llm.errors import ProviderUnavailableError

FAILURES: Final = 5
"""Failures in a row that open the circuit."""
REST_SECONDS: Final = 30.0
"""How long an open circuit lets nothing pass."""
_TRIAL_SECONDS: Final = 1.0
"""When to ask again while a trial is on its way."""


class Circuit:
    """The state of one provider at one address, shared by threads and event loops of a process."""

    def __init__(
        self,
        name: str,
        *,
        failures: int = FAILURES,
        rest_seconds: float = REST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._allowed, self._rest, self._clock = name, failures, rest_seconds, clock
        self._lock = threading.Lock()  # held for a few assignments, never while anything waits
        self._in_a_row = 0
        self._opened_at: float | None = None
        self._trial: Passage | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing but a trial may pass."""
        return self._opened_at is not None

    def enter(self) -> Passage:
        """Leave to send one request. Raises :class:`ProviderUnavailableError`, with ``retry_after``, where there is
        none."""
        with self._lock:
            passage = Passage(self)
            if self._opened_at is None:
                return passage
            left = self._opened_at + self._rest - self._clock()
            if left <= 0 and self._trial is None:
                self._trial = passage
                return passage
        raise self._refusal(left)

    def _refusal(self, left: float) -> ProviderUnavailableError:
        if left > 0:
            when = f"It is tried again in {math.ceil(left)} s; repeat then."
        else:
            left, when = _TRIAL_SECONDS, "A trial request is on its way; repeat when it has ended."
        return ProviderUnavailableError(
            f"cannot reach {self._name}: it failed {self._in_a_row} times in a row, and its circuit is open. {when}",
            provider=self._name,
            retryable=True,
            retry_after=left,
        )

    def _succeeded(self, passage: Passage) -> None:
        with self._lock:
            # one that left before the circuit opened says nothing about now
            if self._opened_at is None or passage is self._trial:
                self._in_a_row, self._opened_at, self._trial = 0, None, None

    def _failed(self, passage: Passage) -> None:
        with self._lock:
            if self._opened_at is not None and passage is not self._trial:
                return
            self._in_a_row += 1
            if self._in_a_row >= self._allowed:
                self._opened_at, self._trial = self._clock(), None

    def _withdrawn(self, passage: Passage) -> None:
        with self._lock:
            if passage is self._trial:
                self._trial = None


class Passage:
    """One request that may be sent. Whoever holds it says how it went, and :meth:`end` in any case."""

    __slots__ = ("_circuit",)

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit

    def succeeded(self) -> None:
        """The provider answers, be it with a refusal."""
        self._circuit._succeeded(self)

    def failed(self) -> None:
        """It is down, overloaded, silent or broken."""
        self._circuit._failed(self)

    def end(self) -> None:
        """Nothing more will be said: a trial without outcome makes room for another."""
        self._circuit._withdrawn(self)


_CIRCUITS: Final[dict[tuple[int, str, str], Circuit]] = {}


def shared_circuit(provider: str, address: str) -> Circuit:
    """The process's circuit of a provider at an address. A forked child has its own: a trial of its parent's would
    never end there, and a lock might be held."""
    key = (os.getpid(), provider, address)
    return _CIRCUITS.get(key) or _CIRCUITS.setdefault(key, Circuit(provider))
