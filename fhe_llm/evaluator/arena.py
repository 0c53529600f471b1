"""Scratch memory that an evaluator keeps from one pass to the next.

A pass writes a few megabytes that nobody reads afterwards. Fresh pages for them cost the kernel a zeroing and us a cold
cache every time.
"""

from __future__ import annotations

from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT: Final = 64
_WORD: Final = 4


class Arena:
    """Hands out uninitialised arrays from one block that grows to the largest pass seen. Not for concurrent use."""

    def __init__(self) -> None:
        self._block = np.empty(0, dtype=np.uint8)
        self._used = 0

    def words(self, *shape: int) -> NDArray[np.uint32]:
        """A uint32 array of ``shape``, valid until the next :meth:`clear`."""
        size = _WORD * prod(shape)
        first = self._used + -(self._block.ctypes.data + self._used) % _ALIGNMENT
        if first + size > len(self._block):
            self._used += size + _ALIGNMENT
            return np.empty(shape, dtype=np.uint32)
        self._used = first + size
        return self._block[first : first + size].view(np.uint32).reshape(shape)

    def clear(self) -> None:
        """Take everything back; the block grows to what was asked for since the last time."""
        if self._used > len(self._block):
            self._block = np.empty(self._used, dtype=np.uint8)
        self._used = 0
