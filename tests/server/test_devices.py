"""``--device``: what it makes, and the one line where it cannot."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from fhe_llm.evaluator import cupy_device
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.device import DeviceMemoryError, DeviceUnavailableError
from fhe_llm.params import PRESETS
from fhe_llm_server.devices import make_evaluator
from fhe_llm_server.settings import Settings

PRESET = PRESETS["default"]
HAS_CUPY = importlib.util.find_spec("cupy") is not None


def has_gpu() -> bool:
    try:
        cupy_device.open_device(PRESET)
    except DeviceUnavailableError:
        return False
    return True


without_gpu = pytest.mark.skipif(HAS_CUPY and has_gpu(), reason="there is a GPU")


class FakeRuntime(ModuleType):
    """As much of CuPy as opening a device asks for, on a machine of the test's choice."""

    class CUDARuntimeError(RuntimeError):
        status = 0

    class CompileException(Exception):  # noqa: N818 - CuPy's name
        pass

    def __init__(self, count: int = 1, capability: tuple[int, int] = (9, 0), error: str = "") -> None:
        super().__init__("cupy")
        self.cuda, self.runtime, self.compiler = self, self, self
        self._count, self._capability, self._error = count, capability, error

    def getDeviceCount(self) -> int:
        if self._error:
            raise self.CUDARuntimeError(self._error)
        return self._count

    def getDeviceProperties(self, _number: int) -> dict[str, int]:
        return {"major": self._capability[0], "minor": self._capability[1]}


@without_gpu
def test_auto_takes_the_cpu_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        evaluator = make_evaluator(Settings(device="auto", threads=1))
    assert isinstance(evaluator, CpuEvaluator)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("evaluating on the CPU: cannot use CUDA: ")
    assert "\n" not in line


@without_gpu
def test_cuda_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fhe_llm_server", "--device", "cuda", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("cannot use CUDA: ")
    assert line.endswith(" Use --device cpu, or mend it.")


@pytest.mark.skipif(not HAS_CUPY, reason="needs CuPy")
@without_gpu
def test_the_real_cupy_without_a_driver_says_so() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"driver|no CUDA device"):
        cupy_device.open_device(PRESET)


def test_a_machine_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        DeviceUnavailableError, match=r"CuPy is not installed; pip install 'fhe-llm\[cuda13\]'"
    ):
        cupy_device.open_device(PRESET)


def test_a_cupy_that_breaks_when_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy.py").write_text(
        "raise RuntimeError('libcudart.so.13: cannot open\\nand a page of advice')"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceUnavailableError) as caught:
        cupy_device.open_device(PRESET)
    assert str(caught.value).startswith(
        "cannot use CUDA: CuPy does not import (libcudart.so.13: cannot open)."
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            FakeRuntime(error="cudaErrorInsufficientDriver: driver version is insufficient"),
            "older than CuPy's CUDA",
        ),
        (FakeRuntime(error="cudaErrorNoDevice: no CUDA-capable device is detected"), "no CUDA device"),
        (FakeRuntime(error="cudaErrorUnknown: unknown error"), "cudaErrorUnknown"),
        (FakeRuntime(count=0), "no CUDA device"),
        (FakeRuntime(capability=(6, 1)), "compute capability is 6.1"),
    ],
)
def test_machines_that_cannot(machine: FakeRuntime, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", machine)
    with pytest.raises(DeviceUnavailableError, match=words):
        cupy_device.open_device(PRESET)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            FakeRuntime.CompileException("kernel.cu(1): error\nmore"),
            r"do not compile \(kernel.cu\(1\): error\)",
        ),
        (RuntimeError("CuPy failed to load libnvrtc.so.13\nmore"), "failed to load libnvrtc"),
        (OSError(""), "cannot use CUDA: OSError"),
    ],
)
def test_kernels_that_cannot_be_compiled(
    failure: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object) -> None:
        raise failure

    monkeypatch.setitem(sys.modules, "cupy", FakeRuntime())
    monkeypatch.setattr(cupy_device, "CupyDevice", fails)
    with pytest.raises(DeviceUnavailableError, match=words):
        cupy_device.open_device(PRESET)


class Small:
    name, memory = "a small GPU", 100 << 20

    def __init__(self, *_arguments: object) -> None:
        pass


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeRuntime())
    monkeypatch.setattr(cupy_device, "CupyDevice", Small)
    with pytest.raises(
        DeviceUnavailableError, match="a small GPU has 100 MiB for us, and 256 MiB are needed"
    ):
        cupy_device.open_device(PRESET)


def test_a_device_that_is_full_at_once_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise DeviceMemoryError("cannot allocate 1 byte: the device is full. Allow more.")

    monkeypatch.setattr(cupy_device, "open_device", Small)
    monkeypatch.setattr("fhe_llm.evaluator.cuda.CudaEvaluator", full)
    assert isinstance(make_evaluator(Settings(device="auto", threads=1)), CpuEvaluator)
    with pytest.raises(DeviceUnavailableError, match="the device is full"):
        make_evaluator(Settings(device="cuda"))


def test_gpu_memory_is_read_with_its_unit() -> None:
    assert Settings(gpu_memory="2GiB").gpu_memory == 2 << 30
    with pytest.raises(ValidationError):
        Settings(gpu_memory="1MB")
