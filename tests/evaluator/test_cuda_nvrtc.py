"""Every kernel compiles with NVRTC, which needs no GPU: old, current and newest architecture, warnings as errors."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fhe_llm.evaluator.cuda_kernels import FOLDER, KERNELS, OPTIONS, macros, source
from fhe_llm.params import PRESETS, Preset

cupy_cuda = pytest.importorskip("cupy.cuda", reason="needs CuPy (pip install 'fhe-llm[dev]')")
nvrtc: Any = cupy_cuda.nvrtc
ADDED_BY_CUPY = ("-ftz=true", "--device-as-default-execution-space")


def compile_for(architecture: int, file: str, preset: Preset) -> tuple[bytes, str]:
    """Machine code and everything the compiler had to say."""
    defines = [f"-D{name}={value}" for name, value in macros(preset).items()]
    options = (*OPTIONS, *defines, *ADDED_BY_CUPY, f"-arch=sm_{architecture}", "--ptxas-options=-v")
    program = nvrtc.createProgram(source(file), file, (), ())
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


TARGETS = [(80, "default"), (90, "wide"), (0, "default")]
"""Architecture, 0 for the newest there is, and preset."""


@pytest.mark.parametrize(("architecture", "preset"), TARGETS)
@pytest.mark.parametrize("file", KERNELS)
def test_kernels_compile_without_a_warning_or_a_spill(file: str, architecture: int, preset: str) -> None:
    wanted = architecture or max(nvrtc.getSupportedArchs())
    code, log = compile_for(wanted, file, PRESETS[preset])
    lines = [line.strip() for line in log.replace("\0", "").splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith("ptxas") or "warning" in line.lower()] == []
    for name in KERNELS[file]:
        assert name.encode() in code
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(frames) == len(KERNELS[file])
    assert set(frames) == {("0", "0", "0")}


def test_every_source_is_compiled() -> None:
    assert set(KERNELS) == {path.name for path in FOLDER.glob("*.cu")}
    for file, kernels in KERNELS.items():
        text = source(file)
        assert '#include "' not in text.replace('#include "host_platform.hpp"', "")
        declared = set(re.findall(r"^FHE_KERNEL void FHE_BLOCK\([^)]*\) (\w+)\(", text, re.MULTILINE))
        declared |= {f"multiply_{jobs}" for jobs in re.findall(r"^FHE_MULTIPLY\((\d)\)", text, re.MULTILINE)}
        assert declared == set(kernels)
