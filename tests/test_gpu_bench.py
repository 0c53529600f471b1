"""The GPU benchmark runs to its end, on a stand-in for CuPy; its figures mean nothing there."""

from __future__ import annotations

import json
import sys

import gpu
import pytest
from fake_cupy import FakeCupy
from gpu_roofline import H100_SXM, work
from host_device import compiler

from fhe_llm.evaluator.counts import ntt_count
from fhe_llm.evaluator.cupy_device import open_device
from fhe_llm.evaluator.packed_plan import layer_plans
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

PRESET = PRESETS["default"]


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_every_figure_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(PRESET))
    monkeypatch.setattr(gpu, "measured_machine", lambda _device: H100_SXM)
    monkeypatch.setattr(gpu, "LAYERS", 1)
    monkeypatch.setattr(gpu, "SHAPES", ((64, 64),))
    monkeypatch.setattr(gpu, "LARGE", (96, 64))
    found = gpu.figures(gpu.Subject(open_device(PRESET), PRESET), repeats=1, sessions=2, conversations=2)
    assert set(found) == {"machine", "token", "conversations", "prefill", "products", "memory"}
    for name in ("token", "conversations", "prefill"):
        assert found[name]["wall"]["median"] > 0
        assert found[name]["roofline_estimate"] > 0
    assert all(0 < entry["share"] < 1 for entry in found["products"])
    assert found["memory"]["keys_held"] >= 2
    json.dumps(found)


def test_work_counts_what_the_cpu_counts_and_the_repeats() -> None:
    plan = plan_linear(PRESET, 576, 1536)
    limbs, s = len(PRESET.data_primes), plan.rotation_count
    repeated = (limbs * limbs - limbs) * (1 + s - (plan.babies - 1))  # inverse transforms of extensions
    one = work(plan, 1, 1)
    products = 2 * limbs * PRESET.ring_degree * plan.product_count
    keys = 2 * limbs * (limbs + 1) * PRESET.ring_degree * s
    butterflies = 1.5 * PRESET.ring_degree * 12
    assert one.multiplications == (ntt_count(plan) + repeated) * butterflies + products + keys
    assert work(plan, 3, 1).multiplications == 3 * one.multiplications


def test_bounds_grow_with_the_work() -> None:
    for plan in layer_plans(PRESET, 576, 576):
        assert work(plan, 8, 8).seconds(H100_SXM) > work(plan, 1, 1).seconds(H100_SXM) > 0
