"""As much of CuPy as the real device uses, on host memory with the host's build of the kernels.

It is as strict as CuPy about what it is handed (contexts, kinds of arguments, limits), so that the code around CuPy
runs where there is no GPU. Every call is written down, and a test holds them against the signatures of the real CuPy.
What a driver does, only a GPU can show.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from host_device import HostDevice

from fhe_llm.evaluator.cuda_kernels import OPTIONS, SHARED_WITHOUT_ASKING, macros
from fhe_llm.evaluator.device import Address
from fhe_llm.params import Preset

_current = threading.local()
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
"""Every call since a test cleared this: CuPy's name for what was called, and its arguments."""


def noted(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Write the calls of a function down."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            CALLS.append((name, arguments, named))
            return function(*arguments, **named)

        return called

    return decorated


def on_the_device() -> None:
    """CuPy's pools and kernels act on the device that the calling thread has entered."""
    assert any(isinstance(context, Device) for context in _current.__dict__.get("stack", []))


class CUDARuntimeError(RuntimeError):
    status = 0


class CUDADriverError(RuntimeError):
    status = 0


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):  # noqa: N818 - CuPy's name
    pass


class Context:
    """Entered and left on one thread, in order."""

    def __enter__(self) -> Context:
        stack = _current.__dict__.setdefault("stack", [])
        stack.append(self)
        return self

    def __exit__(self, *_error: object) -> None:
        assert _current.stack.pop() is self


class Device(Context):
    @noted("cuda.Device")
    def __init__(self, number: int) -> None:
        assert number == 0


class Graph:
    def __init__(self, steps: list[Callable[[], Any]]) -> None:
        self.steps = steps
        self.launched = 0

    @noted("cuda.graph.Graph.launch")
    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        self.launched += 1
        for step in self.steps:
            step()


class Stream(Context):
    null: Stream
    streams: dict[int, Stream] = {}  # noqa: RUF012 - what runtime functions find a stream by

    @noted("cuda.Stream.__init__")
    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        assert null or non_blocking
        self.ptr = len(self.streams) + 1
        self.streams[self.ptr] = self
        self.capturing: list[Callable[[], Any]] | None = None

    @noted("cuda.Stream.begin_capture")
    def begin_capture(self) -> None:
        assert self.capturing is None
        self.capturing = []

    @noted("cuda.Stream.end_capture")
    def end_capture(self) -> Graph:
        steps, self.capturing = self.capturing, None
        if steps is None:
            raise CUDARuntimeError("cudaErrorIllegalState")
        return Graph(steps)

    @noted("cuda.Stream.synchronize")
    def synchronize(self) -> None:
        assert self.capturing is None

    def do(self, step: Callable[[], Any]) -> None:
        if self.capturing is None:
            step()
        else:
            self.capturing.append(step)


Stream.null = Stream(null=True)


def current_stream() -> Stream:
    """The stream entered last; a device must have been entered as well."""
    on_the_device()
    return next(context for context in reversed(_current.stack) if isinstance(context, Stream))


class MemoryPool:
    @noted("cuda.MemoryPool")
    def __init__(self) -> None:
        self._host: HostDevice

    @noted("cuda.MemoryPool.set_limit")
    def set_limit(self, size: int) -> None:
        on_the_device()
        self._host.memory = size

    @noted("cuda.MemoryPool.malloc")
    def malloc(self, nbytes: int) -> Any:
        assert nbytes > 0
        assert current_stream().capturing is None
        try:
            buffer = self._host.allocate(nbytes)
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        return SimpleNamespace(ptr=buffer.address, keep=buffer)

    @noted("cuda.MemoryPool.total_bytes")
    def total_bytes(self) -> int:
        on_the_device()
        return self._host.used()

    @noted("cuda.MemoryPool.used_bytes")
    def used_bytes(self) -> int:
        on_the_device()
        return self._host.used()

    @noted("cuda.MemoryPool.free_all_blocks")
    def free_all_blocks(self) -> None:
        on_the_device()


class PinnedMemoryPool:
    @noted("cuda.PinnedMemoryPool")
    def __init__(self) -> None:
        pass

    @noted("cuda.PinnedMemoryPool.malloc")
    def malloc(self, size: int) -> bytearray:
        on_the_device()
        return bytearray(size)


class Kernel:
    """What ``RawModule.get_function`` gives."""

    def __init__(self, host: HostDevice, name: str) -> None:
        self._host, self._name = host, name
        self._most_shared = SHARED_WITHOUT_ASKING

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        on_the_device()
        self._most_shared = nbytes

    @noted("RawKernel.__call__")
    def __call__(self, grid: Any, block: Any, arguments: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        assert all(type(size) is tuple and len(size) == 3 for size in (grid, block))
        assert {type(a) for a in arguments} <= {np.uint64, np.int32}
        assert shared_mem <= self._most_shared
        plain = tuple(Address(int(a)) if isinstance(a, np.uint64) else int(a) for a in arguments)
        current_stream().do(lambda: self._host.run(self._name, grid, block, shared_mem, plain))


class RawModule:
    def __init__(self, host: HostDevice, code: str) -> None:
        self._host, self._code = host, code

    @noted("RawModule.compile")
    def compile(self) -> None:
        on_the_device()

    @noted("RawModule.get_function")
    def get_function(self, name: str) -> Kernel:
        assert name in self._code or name.startswith("multiply_")
        return Kernel(self._host, name)


class FakeCupy(ModuleType):
    """``import cupy`` on a machine with one device of ``memory`` bytes."""

    def __init__(self, preset: Preset, memory: int = 1 << 30) -> None:
        super().__init__("cupy")
        self.host = HostDevice(preset, memory)
        self._expected = {*OPTIONS, *(f"-D{name}={value}" for name, value in macros(preset).items())}
        self.runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            getDeviceCount=noted("cuda.runtime.getDeviceCount")(lambda: 1),
            getDeviceProperties=noted("cuda.runtime.getDeviceProperties")(
                lambda _number: {
                    "name": b"a fake GPU",
                    "multiProcessorCount": 16,
                    "major": 9,
                    "minor": 0,
                }
            ),
            memGetInfo=noted("cuda.runtime.memGetInfo")(lambda: (memory - self.host.used(), memory)),
            memcpyAsync=noted("cuda.runtime.memcpyAsync")(self._memcpy),
        )
        self.cuda = SimpleNamespace(
            runtime=self.runtime,
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            compiler=SimpleNamespace(CompileException=CompileException),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=Device,
            Stream=Stream,
            MemoryPool=type("Pool", (MemoryPool,), {"_host": self.host}),
            PinnedMemoryPool=PinnedMemoryPool,
        )

    @noted("RawModule")
    def _module(self, *, code: str, options: tuple[str, ...], backend: str) -> RawModule:
        assert set(options) == self._expected
        assert backend == "nvrtc"
        return RawModule(self.host, code)

    @property
    def RawModule(self) -> Any:
        return self._module

    def _memcpy(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        assert kind in (1, 2)
        on_the_device()
        Stream.streams[stream].do(lambda: ctypes.memmove(target, source, nbytes))
