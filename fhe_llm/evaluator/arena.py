"""Scratch memory that an evaluator keeps from one pass to the next.

A pass writes megabytes that nobody reads afterwards. Fresh pages for them cost the kernel a zeroing and us a cold cache
every time.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

_ALIGNMENT: Final = 64


def aligned(kind: DTypeLike, *shape: int) -> NDArray[Any]:
    """A fresh array on a cache line, uninitialised. A vector that lies across two lines takes two loads."""
    size = np.dtype(kind).itemsize * prod(shape)
    fresh = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    first = -fresh.ctypes.data % _ALIGNMENT
    return fresh[first : first + size].view(kind).reshape(shape)


class Arena:
    """Hands out uninitialised arrays from one block that grows to the largest pass seen. Not for concurrent use."""

    def __init__(self) -> None:
        self._block = aligned(np.uint8, 0)
        self._used = self._most = 0

    def words(self, *shape: int) -> NDArray[np.uint32]:
        """A uint32 array of ``shape``, valid until the next :meth:`clear`."""
        return self.array(np.uint32, *shape)

    def array(self, kind: DTypeLike, *shape: int) -> NDArray[Any]:
        """An array of ``shape`` on a cache line, valid until the next :meth:`clear`."""
        if self._used == 0 and self._most > len(self._block):
            self._block = aligned(np.uint8, 0)  # the old block goes before the new one comes
            self._block = aligned(np.uint8, self._most)
        size = np.dtype(kind).itemsize * prod(shape)
        first, self._used = self._used, self._used + -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._used > len(self._block):
            return aligned(kind, *shape)
        return self._block[first : first + size].view(kind).reshape(shape)

    def clear(self) -> None:
        """Take everything back, without asking for memory: the next pass does that."""
        self._most, self._used = max(self._most, self._used), 0
