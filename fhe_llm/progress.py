"""One progress bar for every long step: download, encoding, key generation, upload, prefill.

A step takes a :class:`Progress` and calls it; it neither knows nor cares whether anybody is watching.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Protocol


class Progress(Protocol):
    """Called with a label, what is done and the total, in any unit; ``done == total`` ends the step."""

    def __call__(self, label: str, done: int, total: int, /) -> None: ...


def silent(_label: str, _done: int, _total: int, /) -> None:
    """A progress that shows nothing."""


def bar() -> Progress:
    """A bar on a terminal or in a notebook; :func:`silent` anywhere else (pipes, CI, servers)."""
    return _Bar() if _watched() else silent


def _watched() -> bool:
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


class _Bar:
    """At most one open ``tqdm`` bar; a new label replaces the previous one. Safe to call from several
    threads."""

    _SCALED_FROM = 100_000  # totals from here on are bytes or weights: show 93.8M rather than 93840384

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._label: str | None = None
        self._tqdm: Any = None

    def __call__(self, label: str, done: int, total: int, /) -> None:
        with self._lock:
            if label != self._label:
                self._close()
                self._open(label, total)
            if self._tqdm is None:
                return
            self._tqdm.total = total
            self._tqdm.update(max(0, min(done, total) - self._tqdm.n))
            if done >= total:
                self._close()

    def _open(self, label: str, total: int) -> None:
        from tqdm.auto import tqdm  # picks the notebook widget where there is one; slow to import

        self._label = label
        self._tqdm = tqdm(
            desc=label, total=total, unit_scale=total >= self._SCALED_FROM, leave=False, dynamic_ncols=True
        )

    def _close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None
