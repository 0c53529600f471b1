"""What every benchmark record carries beside its figures: where, when and with what it was measured."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fhe_llm.errors import FheLlmError
from fhe_llm.evaluator.cupy_device import device_name
from fhe_llm.evaluator.device import DeviceUnavailableError
from fhe_llm.params import Preset


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of repeated runs."""

    median: float
    minimum: float
    maximum: float
    runs: int


def spread(seconds: Sequence[float]) -> Spread:
    """Median and range of at least one run."""
    return Spread(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def timed(run: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None) -> Spread:
    """Time ``run`` after one warm-up call; ``before`` comes ahead of each run and is not timed."""
    run()
    return spread(clocked(run, repeats, before))


def clocked(
    run: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None
) -> list[float]:
    """Seconds of each of ``repeats`` runs."""
    seconds = []
    for _ in range(repeats):
        before()
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return seconds


def record(name: str, preset: Preset | None, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with commit, parameters (None where nothing is encrypted), device and date.

    The load average is that of the last minute, the benchmark's own work included: one far above the cores means
    that others were at work, and that absolute times are theirs too.
    """
    return {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": _version("fhe-llm"),
        "commit": _commit(),
        "device": {
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "machine": platform.machine(),
            "gpu": gpu_name(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "software": {
            "python": platform.python_version(),
            **{p: _version(p) for p in ("numpy", "numba", "tenseal")},
        },
        **({"preset": _parameters(preset)} if preset else {}),
        **figures,
    }


def _parameters(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "ring_degree": preset.ring_degree,
        "prime_bits": list(preset.prime_bits),
        "log_input_scale": preset.log_input_scale,
        "security_bits": preset.security_bits,
    }


def keep(result: dict[str, Any], path: Path) -> None:
    """Write a record where the documentation's figures are made from; raises :class:`FheLlmError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise FheLlmError(f"cannot write {path}: {error.strerror}. Choose another --output.") from None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of at least one value do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def plain(value: Spread) -> dict[str, Any]:
    """A spread as plain data."""
    return asdict(value)


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def gpu_name() -> str | None:
    """The GPU that a proxy started here evaluates on; None where ``FHE_LLM_DEVICE`` leaves it on the CPU."""
    if os.environ.get("FHE_LLM_DEVICE", "cpu") == "cpu":
        return None
    try:
        return device_name()
    except DeviceUnavailableError:
        return None


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree this module lies in, ``-dirty`` where its sources differ; None for an installed
    package. Records and the pages made from them do not count: measuring writes them."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    made = (f":(top,exclude){path}" for path in ("docs/results", "docs/performance.md", "docs/identifiers.md"))
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *made)
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
