"""As much of CuPy as the real device uses, on host memory with the host's build of the kernels.

It is as strict as CuPy about what it is handed (contexts, kinds of arguments, limits), so that the code around CuPy
runs where there is no GPU. What a driver does, only a GPU can show.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from host_device import HostDevice

from fhe_llm.evaluator.cuda_kernels import OPTIONS, macros
from fhe_llm.evaluator.device import Address
from fhe_llm.params import Preset

_current = threading.local()


class CUDARuntimeError(RuntimeError):
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
    def __init__(self, number: int) -> None:
        assert number == 0


class Graph:
    def __init__(self, steps: list[Callable[[], Any]]) -> None:
        self.steps = steps
        self.launched = 0

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        self.launched += 1
        for step in self.steps:
            step()


class Stream(Context):
    null: Stream
    streams: dict[int, Stream] = {}  # noqa: RUF012 - what runtime functions find a stream by

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        assert null or non_blocking
        self.ptr = len(self.streams) + 1
        self.streams[self.ptr] = self
        self.capturing: list[Callable[[], Any]] | None = None

    def begin_capture(self) -> None:
        assert self.capturing is None
        self.capturing = []

    def end_capture(self) -> Graph:
        steps, self.capturing = self.capturing, None
        assert steps is not None
        return Graph(steps)

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
    assert any(isinstance(context, Device) for context in _current.stack)
    return next(context for context in reversed(_current.stack) if isinstance(context, Stream))


class MemoryPool:
    def __init__(self, host: HostDevice) -> None:
        self._host = host

    def set_limit(self, size: int) -> None:
        self._host.memory = size

    def malloc(self, nbytes: int) -> Any:
        assert nbytes > 0
        assert current_stream().capturing is None
        try:
            buffer = self._host.allocate(nbytes)
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        return SimpleNamespace(ptr=buffer.address, keep=buffer)

    def total_bytes(self) -> int:
        return self._host.used()

    def free_all_blocks(self) -> None:
        pass


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
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda _number: {
                "name": b"a fake GPU",
                "multiProcessorCount": 16,
                "major": 9,
                "minor": 0,
            },
            memGetInfo=lambda: (memory, memory),
            memcpyAsync=self._memcpy,
        )
        self.cuda = SimpleNamespace(
            runtime=self.runtime,
            compiler=SimpleNamespace(CompileException=CompileException),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=Device,
            Stream=Stream,
            MemoryPool=lambda: MemoryPool(self.host),
            PinnedMemoryPool=lambda: SimpleNamespace(malloc=bytearray),
        )

    def RawModule(self, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert set(options) == self._expected
        assert backend == "nvrtc"
        return SimpleNamespace(compile=lambda: None, get_function=lambda name: self._kernel(code, name))

    def _kernel(self, code: str, name: str) -> Callable[..., None]:
        assert name in code or name.startswith("multiply_")

        def kernel(grid: Any, block: Any, arguments: tuple[Any, ...], *, shared_mem: int) -> None:
            assert {type(a) for a in arguments} <= {np.uint64, np.int32}
            plain = tuple(Address(int(a)) if isinstance(a, np.uint64) else int(a) for a in arguments)
            current_stream().do(lambda: self.host.run(name, grid, block, shared_mem, plain))

        return kernel

    def _memcpy(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        assert kind in (1, 2)
        assert any(isinstance(context, Device) for context in _current.stack)
        Stream.streams[stream].do(lambda: ctypes.memmove(target, source, nbytes))
