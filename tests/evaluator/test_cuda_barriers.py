"""The host's build notices a missing barrier: without any one of them some result changes with the order of threads."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import host_device
import numpy as np
import pytest
from cuda_contract import assert_equals_the_cpu, random_inputs, random_keys
from host_device import HostDevice, compiler

from fhe_llm.evaluator import cuda, cuda_kernels
from fhe_llm.evaluator.contract import Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.packed_plan import packed_plans
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")]
PRESET = PRESETS["default"]
KERNELS = cuda_kernels.FOLDER
BARRIER = re.compile(r"^ +barrier\(\);", re.MULTILINE)
UNUSED = {("ntt.cuh", 0), ("ntt.cuh", 5)}
"""Ahead of the first forward pass and behind the last inverse one a thread meets its own words again with every caller
there is: these two keep the transforms safe for others."""


def everything_equals_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel that has a barrier, in both orders; one multiprocessor, so that slices serve all limbs."""
    plan = plan_linear(PRESET, 64, 64)
    for descending in (False, True):
        device = HostDevice(PRESET, descending=descending)
        device.multiprocessors = 1
        evaluator = CudaEvaluator(device, PRESET, threads=2, lanes=1)
        assert_equals_the_cpu(evaluator, plan_linear(PRESET, 500, 400))
        assert_equals_the_cpu(evaluator, packed_plans(PRESET, 96, 40)[-1])
        rng, cpu = np.random.default_rng(), CpuEvaluator(PRESET, threads=2)
        weights = rng.normal(size=(64, 64)).astype(np.float32)
        layer, keys = cpu.encode("layer", plan, weights), random_keys(rng, PRESET, [plan])
        np.testing.assert_array_equal(evaluator.encode("layer", plan, weights).words, layer.words)
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "plan_residency", lambda sizes, _: {size.name: "compact" for size in sizes})
            evaluator.hold([layer])
        assert evaluator._held[id(layer)].expanded
        (inputs,) = random_inputs(rng, PRESET, plan, 1)
        (expected,), _ = cpu.evaluate(layer, [Job(cpu.prepare_keys(keys), inputs)])
        (reply,), _ = evaluator.evaluate(layer, [Job(evaluator.prepare_keys(keys), inputs)])
        np.testing.assert_array_equal(reply, expected)
        cpu.close()


def barriers() -> list[tuple[str, int]]:
    """(file, number) of every barrier in the kernels."""
    found = {path.name: len(BARRIER.findall(path.read_text())) for path in sorted(KERNELS.glob("*.cu*"))}
    return [(name, number) for name, count in found.items() for number in range(count)]


@pytest.mark.parametrize("where", [None, *barriers()], ids=str)
def test_without_a_barrier_something_differs(
    where: tuple[str, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(KERNELS, folder)
    if where:
        file = folder / where[0]
        text = file.read_text()
        spot = list(BARRIER.finditer(text))[where[1]]
        file.write_text(text[: spot.start()] + text[spot.end() :])
    monkeypatch.setattr(cuda_kernels, "FOLDER", folder)
    cuda_kernels.source.cache_clear()
    host_device._libraries.cache_clear()
    try:
        if where is None or where in UNUSED:
            everything_equals_the_cpu(monkeypatch)
        else:
            with pytest.raises(AssertionError):
                everything_equals_the_cpu(monkeypatch)
    finally:
        cuda_kernels.source.cache_clear()
        host_device._libraries.cache_clear()
