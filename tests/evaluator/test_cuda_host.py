"""The CUDA evaluator with its own kernels and schedule, run on the host: the common contract, and the CPU's bits."""

from __future__ import annotations

from typing import Any

import pytest
from cuda_contract import CudaContract, assert_equals_the_cpu
from host_device import HostDevice, compiler
from test_contract import EvaluatorContract, TestCpu, TestCpuWide
from test_packed_contract import CpuPackedContract, PackedContract, TestPackedCpu

from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan, packed_plans
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

TINY = ((128, 64), (64, 64), (192, 64), (64, 96))
SMOLLM2 = ((960, 576), (576, 576), (3072, 576), (576, 1536))


class OnHost(CudaContract):
    descending = False

    def make_device(self) -> Any:
        contract: Any = self
        return HostDevice(contract.preset, descending=self.descending)


class TestCudaOnHost(OnHost, TestCpu):
    """Single tokens."""


@pytest.mark.slow
class TestCudaOnHostWide(OnHost, TestCpuWide):
    """Three data primes; threads and blocks in descending order, which may not matter."""

    descending = True


class Packed(OnHost):
    def small_plan(self) -> PackedPlan:
        contract: Any = self
        plan: PackedPlan = contract.packed((40, 96))
        return plan

    test_chunks_change_nothing_and_stay_inside_their_arrays = None


@pytest.mark.slow
class TestPackedCudaOnHost(Packed, TestPackedCpu):
    """Groups of tokens."""


def single_plans(shapes: tuple[tuple[int, int], ...], name: str = "default") -> list[Plan]:
    return [plan_linear(PRESETS[name], *shape) for shape in shapes]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("plan", single_plans(TINY), ids=lambda p: f"{p.out_features}x{p.in_features}")
def test_every_layer_of_a_tiny_model_equals_the_cpu(plan: Plan, descending: bool) -> None:
    cuda = CudaEvaluator(HostDevice(PRESETS["default"], descending=descending), PRESETS["default"])
    assert_equals_the_cpu(cuda, plan, jobs=2, clients=2, rounds=3)


@pytest.mark.parametrize("plan", single_plans(SMOLLM2), ids=lambda p: f"{p.out_features}x{p.in_features}")
def test_every_layer_of_smollm2_equals_the_cpu(plan: Plan) -> None:
    cuda = CudaEvaluator(HostDevice(PRESETS["default"]), PRESETS["default"])
    assert_equals_the_cpu(cuda, plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", single_plans(SMOLLM2, "wide"), ids=lambda p: f"{p.out_features}x{p.in_features}"
)
def test_every_layer_of_smollm2_equals_the_cpu_with_three_primes(plan: Plan) -> None:
    cuda = CudaEvaluator(HostDevice(PRESETS["wide"], descending=True), PRESETS["wide"])
    assert_equals_the_cpu(cuda, plan)


@pytest.mark.parametrize("tokens", [16, 32, 64])
def test_a_packed_layer_equals_the_cpu(tokens: int) -> None:
    preset = PRESETS["default"]
    (plan,) = (p for p in packed_plans(preset, 130, 300) if p.tokens == tokens)
    assert_equals_the_cpu(CudaEvaluator(HostDevice(preset), preset), plan, jobs=2, clients=2)


@pytest.mark.slow
def test_a_packed_layer_equals_the_cpu_with_three_primes() -> None:
    preset = PRESETS["wide"]
    assert_equals_the_cpu(
        CudaEvaluator(HostDevice(preset), preset), packed_plans(preset, 130, 300)[-1], jobs=2
    )


@pytest.mark.parametrize("rows", [1, 40])
def test_chunks_of_packed_weights_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from fhe_llm.evaluator import cuda_sequence

    preset = PRESETS["default"]
    plan = packed_plans(preset, 300, 130)[-1]
    cuda_sequence.layout.cache_clear()
    monkeypatch.setattr(cuda_sequence, "CHUNK_BYTES", rows * cuda_sequence.row_bytes(preset, plan))
    try:
        assert_equals_the_cpu(CudaEvaluator(HostDevice(preset), preset), plan)
    finally:
        cuda_sequence.layout.cache_clear()


del (
    EvaluatorContract,
    TestCpu,
    TestCpuWide,
    PackedContract,
    CpuPackedContract,
    TestPackedCpu,
)
