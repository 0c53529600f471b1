"""A CUDA device through CuPy: memory from a pool with a cap, streams, graphs, and kernels that NVRTC compiles.

CuPy is imported when a device is opened. Everything that can be wrong with an installation or a machine ends in one
:class:`DeviceUnavailableError` that says what.
"""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.cuda_kernels import (
    KERNELS,
    OPTIONS,
    SHARED_BYTES,
    SHARED_WITHOUT_ASKING,
    macros,
    source,
)
from fhe_llm.evaluator.device import (
    Address,
    Argument,
    DeviceLostError,
    DeviceMemoryError,
    DeviceUnavailableError,
    Grid,
)
from fhe_llm.params import Preset

logger = logging.getLogger(__name__)

LEAST_MEMORY: Final = 256 << 20
"""Below this even a small model leaves no room for keys."""
SHARE: Final = 0.9
"""Of the memory that is free at the start, unless another limit is given."""
OUT_OF_MEMORY: Final = 2
"""cudaErrorMemoryAllocation, and CUDA_ERROR_OUT_OF_MEMORY of the driver's own interface, which launches go through."""
OLDEST: Final = 70
"""Compute capability times ten: the oldest with the independent scheduling of threads that NVRTC still knows."""


class CupyBuffer:
    """Memory of the pool."""

    def __init__(self, pointer: Any, nbytes: int) -> None:
        self._pointer = pointer  # returns to the pool with us
        self.address = int(pointer.ptr)
        self.nbytes = nbytes


class CupyLane:
    """A stream that does not wait for the default one."""

    def __init__(self, device: CupyDevice) -> None:
        self._device = device
        self._runtime = device.cupy.cuda.runtime
        with device.cuda_device:
            self._stream = device.cupy.cuda.Stream(non_blocking=True)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The device and this stream, on the calling thread. What was asked is done when an error leaves it: the memory
        it works on may be given back then."""
        with self._device.cuda_device, self._stream, self._device.errors():
            try:
                yield
            except BaseException:
                with suppress(RuntimeError):  # a lost device says so once more
                    self._stream.synchronize()
                raise

    def copy_in(self, target: Address, source: NDArray[Any]) -> None:
        """See :class:`fhe_llm.evaluator.device.Lane`."""
        kind = self._runtime.memcpyHostToDevice
        self._runtime.memcpyAsync(target.value, source.ctypes.data, source.nbytes, kind, self._stream.ptr)

    def copy_out(self, target: NDArray[Any], source: Address) -> None:
        """See :class:`fhe_llm.evaluator.device.Lane`."""
        kind = self._runtime.memcpyDeviceToHost
        self._runtime.memcpyAsync(target.ctypes.data, source.value, target.nbytes, kind, self._stream.ptr)

    def launch(self, kernel: str, grid: Grid, block: Grid, shared_bytes: int, *arguments: Argument) -> None:
        """See :class:`fhe_llm.evaluator.device.Lane`."""
        values = tuple(np.uint64(a.value) if isinstance(a, Address) else np.int32(a) for a in arguments)
        self._device.kernel(kernel)(grid, block, values, shared_mem=shared_bytes)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph; ``work`` itself where the driver does not record it."""
        self._stream.begin_capture()
        try:
            work()
            graph = self._stream.end_capture()
        except self._device.failures as error:
            self._abandon()
            logger.warning("launches are not captured: %s. They cost more time each.", error)
            return work
        except BaseException:
            self._abandon()
            raise

        def replay() -> None:
            graph.launch(self._stream)

        return replay

    def wait(self) -> None:
        """See :class:`fhe_llm.evaluator.device.Lane`."""
        self._stream.synchronize()

    def _abandon(self) -> None:
        try:
            self._stream.end_capture()
        except RuntimeError:  # CUDA's errors, too; the stream has left the capture, which is what was wanted
            logger.debug("a capture was abandoned")


class CupyDevice:
    """One GPU, compiled for one preset; see :func:`open_device`."""

    def __init__(self, cupy: Any, number: int, preset: Preset, memory: int | None) -> None:
        self.cupy = cupy
        self._number = number
        self.failures = (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        self.name = properties["name"].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])
        with self.cuda_device:
            free = int(cupy.cuda.runtime.memGetInfo()[0])
            self.memory = int(SHARE * free) if memory is None else min(memory, free)
            self._pool = cupy.cuda.MemoryPool()
            self._pool.set_limit(size=self.memory)
            self._pinned = cupy.cuda.PinnedMemoryPool()
            self._kernels = {
                name: kernel for file in KERNELS for name, kernel in self._compiled(file, preset)
            }

    @property
    def cuda_device(self) -> Any:
        """A context in which the calling thread uses this device: a new one, as each remembers where it came from."""
        return self.cupy.cuda.Device(self._number)

    def kernel(self, name: str) -> Any:
        """A compiled kernel."""
        return self._kernels[name]

    def allocate(self, nbytes: int) -> CupyBuffer:
        """See :class:`fhe_llm.evaluator.device.Device`."""
        # the pool keeps what is free apart for each stream; everything is used to its end before it is given back
        with self.cuda_device, self.cupy.cuda.Stream.null, self.errors():
            return CupyBuffer(self._pool.malloc(max(nbytes, 1)), nbytes)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See :class:`fhe_llm.evaluator.device.Device`."""
        with self.cuda_device, self.errors():
            memory = self._pinned.malloc(nbytes)
        return np.frombuffer(memory, dtype=np.uint8, count=nbytes)

    def lane(self) -> CupyLane:
        """See :class:`fhe_llm.evaluator.device.Device`."""
        with self.errors():
            return CupyLane(self)

    def used(self) -> int:
        """Bytes handed out and not freed, in the pool's units of 512."""
        with self.cuda_device:
            return int(self._pool.used_bytes())

    def reserved(self) -> int:
        """Bytes the pool holds, handed out or not: what the cap bounds."""
        with self.cuda_device:
            return int(self._pool.total_bytes())

    def trim(self) -> None:
        """See :class:`fhe_llm.evaluator.device.Device`."""
        gc.collect()  # an error that was dealt with holds its frames, and their buffers, in a cycle (Python 3.12)
        with self.cuda_device:
            self._pool.free_all_blocks()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns CuPy's errors into ours: a full device can be helped, any other failure stays with the process."""
        try:
            yield
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"cannot allocate on {self.name}: {error}. Allow more memory, or serve fewer clients."
            ) from error
        except self.failures as error:
            if error.status == OUT_OF_MEMORY:
                raise DeviceMemoryError(
                    f"cannot allocate on {self.name}: its memory is full. Stop other programs, or allow less."
                ) from error
            raise DeviceLostError(
                f"cannot compute on {self.name}: {error}. Start this process again; if it persists, look at the "
                "driver's log."
            ) from error

    def _compiled(self, file: str, preset: Preset) -> Iterator[tuple[str, Any]]:
        options = (*OPTIONS, *(f"-D{name}={value}" for name, value in macros(preset).items()))
        module = self.cupy.RawModule(code=source(file), options=options, backend="nvrtc")
        module.compile()
        for name in KERNELS[file]:
            kernel = module.get_function(name)
            if name in SHARED_BYTES and (shared := SHARED_BYTES[name](preset)) > SHARED_WITHOUT_ASKING:
                kernel.max_dynamic_shared_size_bytes = shared
            yield name, kernel


def open_device(preset: Preset, memory: int | None = None, number: int = 0) -> CupyDevice:
    """GPU ``number`` with its kernels compiled; ``memory`` caps what we allocate, in bytes.

    Raises :class:`DeviceUnavailableError`.
    """
    with _said(cupy := _import_cupy()):
        _properties(cupy, number)
        device = CupyDevice(cupy, number, preset, memory)
    if device.memory < LEAST_MEMORY:
        raise _unavailable(
            f"{device.name} has {device.memory >> 20} MiB for us, and {LEAST_MEMORY >> 20} MiB are needed"
        )
    return device


def device_name(number: int = 0) -> str:
    """The name of GPU ``number``, without opening it; raises :class:`DeviceUnavailableError`."""
    with _said(cupy := _import_cupy()):
        return str(_properties(cupy, number)["name"].decode())


def _properties(cupy: Any, number: int) -> dict[str, Any]:
    if number >= int(cupy.cuda.runtime.getDeviceCount()):
        raise _unavailable("this machine has no CUDA device")
    properties: dict[str, Any] = cupy.cuda.runtime.getDeviceProperties(number)
    capability = 10 * properties["major"] + properties["minor"]
    if capability < OLDEST:
        raise _unavailable(f"its compute capability is {capability / 10}, and {OLDEST / 10} is needed")
    return properties


@contextmanager
def _said(cupy: Any) -> Iterator[None]:
    """Whatever CuPy raises, as one line."""
    try:
        yield
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise _unavailable(_cause(str(error))) from error
    except cupy.cuda.compiler.CompileException as error:
        raise _unavailable(f"its kernels do not compile ({_first_line(error)})") from error
    except (RuntimeError, OSError, ImportError) as error:  # NVRTC's library is found when it is first needed
        raise _unavailable(_first_line(error)) from error


def _import_cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _unavailable(f"CuPy does not import ({error})") from error
        raise _unavailable(
            "CuPy is not installed; pip install 'fhe-llm[cuda13]' or 'fhe-llm[cuda12]'"
        ) from None
    except Exception as error:  # whatever its libraries make of a broken installation
        raise _unavailable(f"CuPy does not import ({_first_line(error)})") from error


def _cause(message: str) -> str:
    """CUDA's own words, with what they mean on this machine."""
    if "Insufficient" in message or "insufficient" in message:
        return f"the NVIDIA driver is missing or older than CuPy's CUDA ({message})"
    if "NoDevice" in message or "no CUDA-capable" in message:
        return f"this machine has no CUDA device ({message})"
    return message


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unavailable(cause: str) -> DeviceUnavailableError:
    return DeviceUnavailableError(f"cannot use CUDA: {cause}. Use --device cpu, or mend it.")
