"""What our code asks of CuPy is what the installed CuPy takes: the stand-in's calls against the real signatures.

Needs no GPU: CuPy imports without one, and what it refuses first is a wrong argument, then the missing driver.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import fake_cupy
import pytest
from cuda_contract import assert_equals_the_cpu
from host_device import compiler

from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.cupy_device import open_device
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

cupy: Any = pytest.importorskip("cupy", reason="needs CuPy (pip install 'fhe-llm[dev]')")
PRESET = PRESETS["default"]
MADE = {"cuda.Device", "cuda.MemoryPool", "cuda.PinnedMemoryPool", "RawModule"}
"""Classes: their documentation does not mention the object being made, which the stand-in's functions are handed."""
PARAMETER = re.compile(r"(?:[\w.]+ )*(\*{0,2}\w+)(=.*)?")


def real_signature(name: str) -> inspect.Signature:
    """CuPy's own, or what compiled code writes in its first line of documentation, without the types."""
    thing = attrgetter(name)(cupy)
    try:
        return inspect.signature(thing)
    except (TypeError, ValueError):
        first = (thing.__doc__ or "").strip().splitlines()[0]
    written = re.fullmatch(r"[\w.]+\((.*)\)(?: -> .*)?", first)
    assert written, f"{name} says {first!r}"
    kinds = inspect.Parameter
    found, kind = [], kinds.POSITIONAL_OR_KEYWORD
    for part in filter(None, written[1].split(", ")):
        if part == "*":
            kind = kinds.KEYWORD_ONLY
            continue
        match = PARAMETER.fullmatch(part)
        assert match, part
        if match[1].startswith("*"):
            starred = kinds.VAR_KEYWORD if match[1].startswith("**") else kinds.VAR_POSITIONAL
            found.append(kinds(match[1].strip("*"), starred))
            continue
        found.append(kinds(match[1], kind, default=match[2] if match[2] else kinds.empty))
    return inspect.Signature(found)


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_every_call_fits_the_real_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.FakeCupy(PRESET))
    fake_cupy.CALLS.clear()
    device = open_device(PRESET)
    evaluator = CudaEvaluator(device, PRESET, lanes=1, threads=2)
    assert_equals_the_cpu(evaluator, plan_linear(PRESET, 64, 64), rounds=3)
    assert device.reserved() >= device.used() > 0
    device.trim()
    names = {name for name, _, _ in fake_cupy.CALLS}
    assert {"cuda.graph.Graph.launch", "RawKernel.__call__", "cuda.runtime.memcpyAsync", "RawModule"} <= names
    signatures = {name: real_signature(name) for name in names}
    for name, arguments, named in fake_cupy.CALLS:
        signatures[name].bind(*arguments[name in MADE :], **named)  # raises TypeError


def calls_without_a_driver() -> dict[str, Callable[[], object]]:
    """Calls as ours, made on the real thing."""
    runtime, stream = cupy.cuda.runtime, cupy.cuda.Stream.null
    return {
        "memcpyAsync": lambda: runtime.memcpyAsync(1 << 20, 1 << 20, 16, runtime.memcpyHostToDevice, 0),
        "memGetInfo": runtime.memGetInfo,
        "getDeviceProperties": lambda: runtime.getDeviceProperties(0),
        "deviceGetAttribute": lambda: runtime.deviceGetAttribute(13, 0),
        "set_limit": lambda: cupy.cuda.MemoryPool().set_limit(size=1 << 20),
        "pool": lambda: cupy.cuda.MemoryPool().malloc(512),
        "used_bytes": lambda: cupy.cuda.MemoryPool().used_bytes(),
        "pinned": lambda: cupy.cuda.PinnedMemoryPool().malloc(512),
        "synchronize": stream.synchronize,
        "device": lambda: cupy.cuda.Device(0).__enter__(),
        "compile": lambda: cupy.RawModule(code="", options=("--fmad=false",), backend="nvrtc").compile(),
    }


def has_driver() -> bool:
    try:
        return bool(cupy.cuda.runtime.getDeviceCount() >= 0)
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


@pytest.mark.skipif(has_driver(), reason="there is a driver: the tests marked gpu show more")
@pytest.mark.parametrize("name", calls_without_a_driver())
def test_the_real_cupy_misses_nothing_but_the_driver(name: str) -> None:
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as caught:
        calls_without_a_driver()[name]()
    assert isinstance(caught.value.status, int)


def test_what_is_read_and_set_is_there() -> None:
    """Attributes no call shows: exceptions that are caught, and what kernels are told."""
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cupy.cuda.compiler.CompileException, Exception)
    assert issubclass(cupy.cuda.driver.CUDADriverError, RuntimeError)
    assert cupy.cuda.runtime.CUDARuntimeError(2).status == 2
    setting = cupy.RawKernel.max_dynamic_shared_size_bytes
    assert inspect.isgetsetdescriptor(setting)
    assert "attributes" in dir(cupy.RawKernel)
    assert isinstance(cupy.cuda.Stream.null, cupy.cuda.Stream)
    assert "buffer" in inspect.getdoc(cupy.cuda.PinnedMemoryPointer)  # numpy reads it as one
