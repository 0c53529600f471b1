"""The CUDA evaluator on a GPU (``make test-gpu``): the contract, the CPU's bits, and what only a device can show."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cuda_contract import CudaContract, assert_equals_the_cpu, random_inputs, random_keys, random_layer
from test_contract import EvaluatorContract, TestCpu, TestCpuWide
from test_packed_contract import CpuPackedContract, PackedContract, TestPackedCpu, TestPackedCpuWide

from fhe_llm.evaluator import cuda as cuda_module
from fhe_llm.evaluator import cuda_encoding, schedule
from fhe_llm.evaluator.contract import Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.cuda_residency import WeightSize, plan_residency
from fhe_llm.evaluator.cupy_device import CupyDevice, open_device
from fhe_llm.evaluator.device import DeviceMemoryError, DeviceUnavailableError
from fhe_llm.evaluator.packed_plan import PackedPlan, layer_plans
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS, Preset

pytestmark = pytest.mark.gpu
MIB = 1 << 20
SMOLLM2 = ((960, 576), (576, 576), (3072, 576), (576, 1536))


@pytest.fixture(scope="module", autouse=True)
def gpu(request: pytest.FixtureRequest) -> None:
    """There is a device, or these tests are skipped; with ``--require-gpu`` they fail instead."""
    try:
        open_device(PRESETS["default"])
    except DeviceUnavailableError as error:
        if request.config.getoption("--require-gpu"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def evaluator_for(preset: Preset, memory: int | None = None, **settings: Any) -> CudaEvaluator:
    return CudaEvaluator(open_device(preset, memory), preset, threads=2, **settings)


class OnGpu(CudaContract):
    def make_device(self) -> Any:
        contract: Any = self
        return open_device(contract.preset)


class TestCudaOnGpu(OnGpu, TestCpu):
    """Single tokens."""


class TestCudaOnGpuWide(OnGpu, TestCpuWide):
    """Three data primes."""


class Packed(OnGpu):
    def small_plan(self) -> PackedPlan:
        contract: Any = self
        plan: PackedPlan = contract.packed((40, 96))
        return plan

    test_chunks_change_nothing_and_stay_inside_their_arrays = None


class TestPackedCudaOnGpu(Packed, TestPackedCpu):
    """Groups of tokens."""


class TestPackedCudaOnGpuWide(Packed, TestPackedCpuWide):
    """Groups of tokens, three data primes."""


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", SMOLLM2)
def test_every_layer_of_smollm2_equals_the_cpu_in_every_plan(shape: tuple[int, int], preset: str) -> None:
    cuda = evaluator_for(PRESETS[preset])
    for plan in layer_plans(PRESETS[preset], *shape):
        assert_equals_the_cpu(cuda, plan, jobs=2, clients=2, rounds=3)


@pytest.mark.parametrize("bits", [None, 46])
@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_encoded_on_the_device_to_the_cpus_words(
    preset: str, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 46 bits of scale the last bit of every operation counts."""
    parameters, rng = PRESETS[preset], np.random.default_rng()
    if bits:
        for module in (cuda_encoding, schedule):
            monkeypatch.setattr(module, "log_weight_scale", lambda *_: bits)
    cuda, cpu = evaluator_for(parameters), CpuEvaluator(parameters, threads=2)
    for shape in SMOLLM2:
        plan = plan_linear(parameters, *shape)
        weights = rng.normal(scale=0.05, size=shape).astype(np.float32)
        found = cuda._encoder.encode("layer", plan, weights)
        assert found is not None
        np.testing.assert_array_equal(found.words, cpu.encode("layer", plan, weights).words)


@pytest.mark.parametrize("jobs", [7, 64, 100])
def test_large_batches_equal_the_cpu(jobs: int) -> None:
    assert_equals_the_cpu(
        evaluator_for(PRESETS["default"]), plan_linear(PRESETS["default"], 576, 576), jobs, 5
    )


def test_graphs_are_captured_and_replayed(caplog: pytest.LogCaptureFixture) -> None:
    preset = PRESETS["default"]
    cuda = evaluator_for(preset, lanes=1)
    with caplog.at_level(logging.WARNING):
        assert_equals_the_cpu(cuda, plan_linear(preset, 500, 400), jobs=2, clients=2, rounds=6)
    assert not caplog.records  # an evaluator that cannot capture says so
    (captured,) = cuda._runners[0]._captured.values()
    assert captured._replay is not None
    assert captured._replay.__qualname__.endswith("replay")


def test_lanes_work_side_by_side_for_different_layers_and_clients() -> None:
    preset, rng = PRESETS["default"], np.random.default_rng()
    cuda, cpu = evaluator_for(preset, lanes=3), CpuEvaluator(preset, threads=2)
    plans = [plan_linear(preset, *shape) for shape in ((960, 576), (576, 576), (500, 400))]
    plans += [layer_plans(preset, 96, 40)[-1]]  # type: ignore[list-item]
    layers = [random_layer(rng, cpu, plan) for plan in plans]
    clients = [random_keys(rng, preset, plans) for _ in range(2)]
    cases = []
    for layer in layers:
        for keys in clients:
            (inputs,) = random_inputs(rng, preset, layer.plan, 1)
            ((expected,), _) = cpu.evaluate(layer, [Job(cpu.prepare_keys(keys), inputs)])
            cases.append((layer, cuda.prepare_keys(keys), inputs, expected))
    begin = threading.Barrier(4)

    def walk(start: int) -> None:
        begin.wait()
        for i in range(40):
            layer, keys, inputs, expected = cases[(start + i) % len(cases)]
            np.testing.assert_array_equal(cuda.evaluate(layer, [Job(keys, inputs)])[0][0], expected)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(walk, range(4)))


def test_the_cap_on_memory_holds() -> None:
    preset, cap = PRESETS["default"], 400 * MIB
    cuda = evaluator_for(preset, cap)
    device = cuda.device
    assert isinstance(device, CupyDevice)
    for shape in ((960, 576), (576, 576)):
        for plan in layer_plans(preset, *shape):
            assert_equals_the_cpu(cuda, plan, jobs=8, clients=8)
            assert device.reserved() <= cap


@pytest.mark.parametrize("room", [0.7, 0.01])
def test_weights_that_do_not_fit_give_the_same_replies(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    preset, rng = PRESETS["default"], np.random.default_rng()

    def short(sizes: list[WeightSize], _room: int) -> dict[str, str]:
        return plan_residency(sizes, int(room * sum(size.words for size in sizes)))  # type: ignore[return-value]

    monkeypatch.setattr(cuda_module, "plan_residency", short)
    cuda, cpu = evaluator_for(preset), CpuEvaluator(preset, threads=2)
    plans = [*layer_plans(preset, 576, 576), *layer_plans(preset, 500, 400)]
    layers = [random_layer(rng, cpu, plan) for plan in plans]
    cuda.hold(layers)
    keys = random_keys(rng, preset, plans)
    for _ in range(3):
        for layer in layers:
            (inputs,) = random_inputs(rng, preset, layer.plan, 1)
            ((expected,), _) = cpu.evaluate(layer, [Job(cpu.prepare_keys(keys), inputs)])
            ((reply,), _) = cuda.evaluate(layer, [Job(cuda.prepare_keys(keys), inputs)])
            np.testing.assert_array_equal(reply, expected)


def test_evaluations_recover_from_a_full_device() -> None:
    preset = PRESETS["default"]
    cuda = evaluator_for(preset, lanes=1)
    device = cuda.device
    assert isinstance(device, CupyDevice)
    plan = plan_linear(preset, 576, 576)
    assert_equals_the_cpu(cuda, plan)
    with device.cuda_device:
        device._pool.set_limit(size=device.reserved() + 8 * MIB)
    assert_equals_the_cpu(cuda, plan, jobs=16, clients=4)
    device.trim()
    with device.cuda_device:
        device._pool.set_limit(size=1)
    cuda._recover(everything=True)
    with pytest.raises(DeviceMemoryError):
        assert_equals_the_cpu(cuda, plan)
    with device.cuda_device:
        device._pool.set_limit(size=device.memory)
    assert_equals_the_cpu(cuda, plan, jobs=16, clients=4)


def test_more_clients_than_their_share_of_keys_holds_take_turns() -> None:
    preset = PRESETS["default"]
    cuda = evaluator_for(preset, 512 * MIB)
    device = cuda.device
    assert isinstance(device, CupyDevice)
    assert_equals_the_cpu(cuda, plan_linear(preset, 576, 576), jobs=40, clients=20)
    assert device.reserved() <= 512 * MIB


def test_kernels_keep_everything_in_registers() -> None:
    for preset in PRESETS.values():
        device = open_device(preset)
        for name, kernel in device._kernels.items():
            assert kernel.attributes["local_size_bytes"] == 0, name


del (
    EvaluatorContract,
    TestCpu,
    TestCpuWide,
    PackedContract,
    CpuPackedContract,
    TestPackedCpu,
    TestPackedCpuWide,
)
