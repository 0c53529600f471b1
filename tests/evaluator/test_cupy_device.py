"""The code around CuPy, on a stand-in for CuPy: contexts, arguments, graphs, memory and its errors."""

from __future__ import annotations

import sys
from typing import Any

import fake_cupy
import pytest
from cuda_contract import assert_equals_the_cpu
from host_device import compiler

from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.cupy_device import CupyDevice, open_device
from fhe_llm.evaluator.device import DeviceLostError, DeviceMemoryError
from fhe_llm.evaluator.packed_plan import packed_plans
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
PRESET = PRESETS["default"]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> fake_cupy.FakeCupy:
    fake = fake_cupy.FakeCupy(PRESET)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_evaluations_equal_the_cpu(cupy: fake_cupy.FakeCupy) -> None:
    cuda = CudaEvaluator(open_device(PRESET), PRESET, lanes=1, threads=2)
    assert_equals_the_cpu(cuda, plan_linear(PRESET, 500, 400), jobs=3, clients=2, rounds=3)
    assert_equals_the_cpu(cuda, packed_plans(PRESET, 96, 40)[-1], rounds=3)
    replays = [captured._replay for captured in cuda._runners[0]._captured.values()]
    assert all(replay is not None and replay.__qualname__.endswith("replay") for replay in replays)


def test_memory_is_nine_tenths_of_what_is_free_or_less(cupy: fake_cupy.FakeCupy) -> None:
    assert open_device(PRESET).memory == int(0.9 * (1 << 30))
    assert open_device(PRESET, 300 << 20).memory == 300 << 20
    assert cupy.host.memory == 300 << 20


def test_a_driver_that_does_not_capture_costs_speed_only(
    cupy: fake_cupy.FakeCupy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    end = fake_cupy.Stream.end_capture

    def refused(stream: Any) -> None:
        end(stream)
        raise fake_cupy.CUDARuntimeError("cudaErrorStreamCaptureUnsupported")

    monkeypatch.setattr(fake_cupy.Stream, "end_capture", refused)
    cuda = CudaEvaluator(open_device(PRESET), PRESET, lanes=1, threads=2)
    assert_equals_the_cpu(cuda, plan_linear(PRESET, 64, 64), rounds=4)
    assert [record.getMessage()[:29] for record in caplog.records] == ["launches are not captured: cu"]


def test_launches_that_may_not_be_captured_are_launched(
    cupy: fake_cupy.FakeCupy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memcpy = cupy.runtime.memcpyAsync

    def refused(target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        if fake_cupy.Stream.streams[stream].capturing is not None:
            raise fake_cupy.CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        memcpy(target, source, nbytes, kind, stream)

    monkeypatch.setattr(cupy.runtime, "memcpyAsync", refused)
    cuda = CudaEvaluator(open_device(PRESET), PRESET, lanes=1, threads=2)
    assert_equals_the_cpu(cuda, plan_linear(PRESET, 64, 64), rounds=4)
    assert [record.getMessage()[:29] for record in caplog.records] == ["launches are not captured: cu"]


def test_a_failure_while_capturing_leaves_the_stream_usable(cupy: fake_cupy.FakeCupy) -> None:
    lane = open_device(PRESET).lane()

    def fails() -> None:
        raise ValueError("stop")

    with lane.active():
        with pytest.raises(ValueError, match="stop"):
            lane.capture(fails)
        lane.wait()


def test_what_was_asked_is_done_before_an_error_leaves_a_lane(
    cupy: fake_cupy.FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is given back then, and others would write where kernels still do."""
    lane, done = open_device(PRESET).lane(), list[bool]()
    monkeypatch.setattr(fake_cupy.Stream, "synchronize", lambda _: done.append(True))
    with pytest.raises(DeviceMemoryError), lane.active():
        raise DeviceMemoryError("full")
    assert done
    with lane.active():
        done.clear()
    assert not done


def test_trimming_reaches_what_a_cycle_holds(cupy: fake_cupy.FakeCupy) -> None:
    device = open_device(PRESET)
    error = DeviceMemoryError("full")
    error.args = (error, device.allocate(1 << 20))  # as the frames of an error do that were handled elsewhere
    del error
    device.trim()
    assert device.used() == 0


def test_full_memory_is_our_error(cupy: fake_cupy.FakeCupy) -> None:
    device = open_device(PRESET, 300 << 20)
    kept = device.allocate(200 << 20)
    assert device.used() == device.reserved() == 200 << 20
    with pytest.raises(DeviceMemoryError, match="cannot allocate on a fake GPU"):
        device.allocate(200 << 20)
    del kept
    assert device.used() == 0


@pytest.mark.parametrize("failure", [fake_cupy.CUDARuntimeError, fake_cupy.CUDADriverError])
@pytest.mark.parametrize(("status", "kind"), [(2, DeviceMemoryError), (700, DeviceLostError)])
def test_a_full_device_is_one_thing_and_a_lost_one_another(
    cupy: fake_cupy.FakeCupy,
    status: int,
    kind: type[Exception],
    failure: type[fake_cupy.CUDARuntimeError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = open_device(PRESET)

    def fails(*_arguments: object) -> None:
        error = failure("cudaError")
        error.status = status
        raise error

    monkeypatch.setattr(device._pool, "malloc", fails)
    with pytest.raises(kind):
        device.allocate(1)
    lane = device.lane()
    with pytest.raises(kind), lane.active():
        fails()


def test_a_device_is_one(cupy: fake_cupy.FakeCupy) -> None:
    device = open_device(PRESET)
    assert isinstance(device, CupyDevice)
    assert (device.name, device.multiprocessors) == ("a fake GPU", 16)
