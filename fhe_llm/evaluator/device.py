"""What the CUDA evaluator needs of a device: memory, lanes of work in order, and launches of our kernels.

:mod:`fhe_llm.evaluator.cupy_device` is the real one; tests run the same kernels on the host behind the same interface.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import FheLlmError

Grid = tuple[int, int, int]


class DeviceUnavailableError(FheLlmError):
    """There is no CUDA device that this process can compute with."""

    code = "device_unavailable"


class DeviceMemoryError(FheLlmError, MemoryError):
    """The device, or the share of it that we may use, has no room left."""

    code = "device_memory"


class DeviceLostError(FheLlmError):
    """The device failed in a way that nothing but a new process mends: every later call fails as well."""

    code = "device_lost"


@dataclass(frozen=True, slots=True)
class Address:
    """A pointer into device memory."""

    value: int


class Buffer(Protocol):
    """Device memory, freed with its last reference."""

    address: int
    nbytes: int


Argument = int | Address
"""An int is a 32-bit argument of a kernel."""


class Lane(Protocol):
    """A stream: what is asked of it happens in order, and beside other lanes. One thread at a time."""

    def active(self) -> AbstractContextManager[Any]:
        """Everything below happens inside this, on the thread that entered it."""
        ...

    def copy_in(self, target: Address, source: NDArray[Any]) -> None:
        """Host to device; ``source`` is contiguous and stays as it is until :meth:`wait`."""
        ...

    def copy_out(self, target: NDArray[Any], source: Address) -> None:
        """Device to host; ``target`` is contiguous and valid after :meth:`wait`."""
        ...

    def launch(self, kernel: str, grid: Grid, block: Grid, shared_bytes: int, *arguments: Argument) -> None:
        """Run a kernel."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` asks of this lane without doing it; the result does it, as one launch."""
        ...

    def wait(self) -> None:
        """Return when everything asked so far is done."""
        ...


class Device(Protocol):
    """A device whose kernels are compiled for one preset. Thread-safe."""

    name: str
    memory: int
    """Bytes that :meth:`allocate` may hand out altogether."""
    multiprocessors: int

    def allocate(self, nbytes: int) -> Buffer:
        """Memory aligned to 256 bytes; raises :class:`DeviceMemoryError`."""
        ...

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that copies need not be staged for."""
        ...

    def lane(self) -> Lane:
        """A new lane."""
        ...

    def used(self) -> int:
        """Bytes handed out and not freed."""
        ...

    def trim(self) -> None:
        """Return to the device what is cached, and what only waits for the garbage collector."""
        ...
