"""The GPU benchmark runs to its end, on a stand-in for CuPy, and every target has a row; figures mean nothing there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu
import gpu_targets
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


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_every_figure_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert all(entry["share_estimate"] == 1 for entry in found["products"])
    assert found["memory"]["keys_held"] == found["memory"]["sessions"] == 2
    weights_and_keys = found["memory"]["weights"] + found["memory"]["keys"]
    assert weights_and_keys < found["memory"]["estimate"] < 1.5 * weights_and_keys
    found["conversations"]["count"], found["memory"]["sessions"] = 64, 100
    assert_every_target_has_a_row(
        {"gpu": json.loads(json.dumps(found)), **RECORDS}, tmp_path, monkeypatch, capsys
    )


MILLISECONDS = dict.fromkeys(("encrypt", "wire", "queue", "decrypt", "model"), 0.001)
RECORDS: dict[str, Any] = {
    "gpu-decode": {
        "device": {"gpu": "a GPU"},
        "plaintext_device": "cuda",
        "plaintext_backend": "transformers",
        "plaintext_seconds_per_token": 0.005,
        "ratio_to_plaintext": 3.0,
        "split_seconds_per_token": {**MILLISECONDS, "rotations": 9, "products": 9, "finish": 9},
    },
    "gpu-prefill": {
        "prompt_tokens": 512,
        "nothing_cached": {"seconds_to_first_token": 0.5, "split_seconds": {**MILLISECONDS, "products": 9}},
    },
}
ISSUE = (
    ("arithmetic per decoded token at the proxy, batch 1", "≤ 30 ms", "≤ 8 ms"),
    (
        "whole encrypted token, client on the same machine, over plaintext transformers on the same GPU",
        "≤ 8 x",
        "≤ 4 x",
    ),
    ("64 conversations at once: rounds per second over batch 1", "≥ 10 x", "≥ 30 x"),
    ("100 concurrent sessions: GPU memory", "≤ 8 GB", "≤ 4 GB"),
    ("prefill of 512 tokens", "≤ 3 s", "≤ 0.7 s"),
    ("fraction of memory bandwidth reached by the multiply-accumulate kernel", "≥ 50 %", "≥ 80 %"),
)


def written(records: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    monkeypatch.setattr(sys, "argv", ["gpu_targets.py", str(folder)])
    return gpu_targets.main()


def assert_every_target_has_a_row(
    records: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(records, folder, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    for what, must, aim in ISSUE:
        found = [line for line in lines if what in line]
        assert found, what
        for line in found:
            assert f"| {must} | {aim} |" in line
            measured, estimate, verdict = (cell.strip() for cell in line.split("|")[4:7])
            assert float(measured.split()[0]) > 0
            assert float(estimate.split()[0]) > 0
            assert verdict in ("aim", "must", "missed")
    kept = json.loads((folder / "gpu-targets.json").read_text())["targets"]
    assert len(kept) == len(lines)
    assert all(row["roofline_estimate"] is not None for row in kept)


def test_the_whole_tokens_estimate_puts_arithmetic_at_its_bound() -> None:
    records = {**RECORDS, "gpu": {"token": {"roofline_estimate": 0.002}}}
    assert gpu_targets._whole_token_estimate(records) == pytest.approx((5 * 0.001 + 0.002) / 0.005)


def test_what_was_not_measured_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = {**RECORDS["gpu-decode"], "plaintext_device": "cpu", "plaintext_backend": "numpy, CPU"}
    prefill = {**RECORDS["gpu-prefill"], "prompt_tokens": 45}
    assert written({"gpu-decode": decode, "gpu-prefill": prefill}, tmp_path, monkeypatch) == 1
    out = capsys.readouterr().out
    assert "| – | – | not measured: the plaintext ran on numpy, CPU |" in out
    assert "not measured: gpu-prefill.json is of 45 prompt tokens" in out
    assert out.count("not measured: no gpu.json") == 5


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
