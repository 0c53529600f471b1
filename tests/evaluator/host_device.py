"""A device made of host memory that runs the CUDA kernels themselves, built by the host compiler (``host_launch.cpp``).

Every allocation has guard words around it that are checked after each launch; a captured sequence is replayed from what
it recorded, so nothing that changes from round to round may hide in it.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.cuda_kernels import (
    KERNELS,
    SHARED_BYTES,
    SHARED_WITHOUT_ASKING,
    expanded,
    macros,
    source,
)
from fhe_llm.evaluator.device import Address, Argument, DeviceMemoryError, Grid
from fhe_llm.params import Preset

HERE = Path(__file__).parent / "host_build"
GUARD = 256
PROBES = ("probe_arithmetic", "probe_transform", "probe_rotation")
"""Kernels of ``host_build/probes.cu``: device functions by themselves."""
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def compiler() -> str | None:
    """The host's C++ compiler, if there is one."""
    return shutil.which("g++") or shutil.which("clang++")


@cache
def _libraries(preset: Preset) -> dict[str, Any]:
    """Kernel name to the library that runs it."""
    found = {}
    probes = expanded((HERE / "probes.cu").read_text(), set())
    texts = {probes: PROBES} | {source(file): kernels for file, kernels in KERNELS.items()}
    for text, kernels in texts.items():
        found |= dict.fromkeys(kernels, ctypes.CDLL(str(_built(text, kernels, preset))))
    return found


def _built(text: str, kernels: tuple[str, ...], preset: Preset) -> Path:
    parts = [text, *FLAGS, str(macros(preset)), *(p.read_text() for p in sorted(HERE.glob("host_*.[ch]pp")))]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"fhe-llm-host-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{digest}.so"
    if target.exists():
        return target
    whole = folder / f"{digest}-{os.getpid()}.cu"
    whole.write_text(text)
    built = whole.with_suffix(".so")
    names = " ".join(f"X({name})" for name in kernels)
    defines = [f"-D{name}={value}" for name, value in macros(preset).items()]
    command = [
        str(compiler()),
        *FLAGS,
        *WARNINGS,
        f"-I{HERE}",
        *defines,
        f'-DSOURCE="{whole}"',
        f"-DKERNELS={names}",
    ]
    done = subprocess.run(
        [*command, str(HERE / "host_launch.cpp"), "-o", str(built)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    built.replace(target)
    whole.unlink()
    return target


class HostBuffer:
    """Memory with guards on both sides, filled with a pattern."""

    def __init__(self, device: HostDevice, nbytes: int) -> None:
        self.nbytes = nbytes
        self.whole = np.full(nbytes + 3 * GUARD, 0xA5, dtype=np.uint8)
        self.first = GUARD + -(self.whole.ctypes.data + GUARD) % 256
        self.address = self.whole.ctypes.data + self.first
        weakref.finalize(self, device.freed, nbytes)

    def intact(self) -> bool:
        end = self.first + self.nbytes
        return bool(
            (self.whole[: self.first] == 0xA5).all() and (self.whole[end : end + GUARD] == 0xA5).all()
        )


class HostLane:
    """Does at once what it is asked, or records it."""

    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self._recording: list[Callable[[], None]] | None = None
        self.replayed = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def copy_in(self, target: Address, source: NDArray[Any]) -> None:
        assert source.flags.c_contiguous
        self._do(lambda: ctypes.memmove(target.value, source.ctypes.data, source.nbytes))

    def copy_out(self, target: NDArray[Any], source: Address) -> None:
        assert target.flags.c_contiguous
        self._do(lambda: ctypes.memmove(target.ctypes.data, source.value, target.nbytes))

    def launch(self, kernel: str, grid: Grid, block: Grid, shared_bytes: int, *arguments: Argument) -> None:
        self._do(lambda: self._device.run(kernel, grid, block, shared_bytes, arguments))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        recorded: list[Callable[[], None]] = []
        self._recording = recorded
        work()
        self._recording = None

        def replay() -> None:
            self.replayed += 1
            for step in recorded:
                step()

        return replay

    def wait(self) -> None:
        pass

    def _do(self, step: Callable[[], Any]) -> None:
        if self._recording is None:
            step()
        else:
            self._recording.append(step)


class HostDevice:
    """``descending`` runs threads and blocks in the opposite order: results must not depend on it."""

    name = "the host"
    multiprocessors = 16

    def __init__(self, preset: Preset, memory: int = 4 << 30, descending: bool = False) -> None:
        self.memory = memory
        self.descending = descending
        self.launches: list[str] = []
        self._preset = preset
        self._libraries = _libraries(preset)
        self._used = 0
        self._lock = threading.Lock()
        self._buffers: weakref.WeakSet[HostBuffer] = weakref.WeakSet()

    def allocate(self, nbytes: int) -> HostBuffer:
        with self._lock:
            if self._used + nbytes > self.memory:
                raise DeviceMemoryError(f"cannot allocate {nbytes} bytes: the device is full. Allow more.")
            self._used += nbytes
        buffer = HostBuffer(self, nbytes)
        self._buffers.add(buffer)
        return buffer

    def freed(self, nbytes: int) -> None:
        self._used -= nbytes

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        return np.empty(nbytes // 8 + 1, dtype=np.uint64).view(np.uint8)[:nbytes]

    def lane(self) -> HostLane:
        return HostLane(self)

    def used(self) -> int:
        return self._used

    def trim(self) -> None:
        gc.collect()

    def run(self, kernel: str, grid: Grid, block: Grid, shared: int, arguments: tuple[Argument, ...]) -> None:
        most = SHARED_BYTES.get(kernel, lambda _: SHARED_WITHOUT_ASKING)(self._preset)
        assert shared <= max(most, SHARED_WITHOUT_ASKING), "more shared memory than a kernel may have unasked"
        assert shared <= 64 * 1024, "more shared memory than every device has"
        assert block[0] * block[1] * block[2] <= 1024
        assert grid[1] < 1 << 16
        assert grid[2] < 1 << 16
        values = [
            ctypes.c_uint64(a.value) if isinstance(a, Address) else ctypes.c_int32(a) for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        sizes = [(ctypes.c_int * 3)(*size) for size in (grid, block)]
        self.launches.append(kernel)
        outcome = self._libraries[kernel].host_launch(
            kernel.encode(), *sizes, ctypes.c_size_t(shared), pointers, int(self.descending)
        )
        assert outcome == 0, f"{kernel}: " + ("", "unknown", "divergent barriers", "shared memory")[outcome]
        assert all(buffer.intact() for buffer in list(self._buffers)), f"{kernel} wrote past an allocation"
