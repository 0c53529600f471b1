"""The CUDA sources: which file holds which kernel, and the text that is compiled for a preset.

Includes are put in place here instead of by the compiler, so that a cache of compiled modules that goes by the text, as
CuPy's does, notices every change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from fhe_llm.params import Preset

FOLDER: Final = Path(__file__).parent / "kernels"
KERNELS: Final[Mapping[str, tuple[str, ...]]] = {
    "rotate.cu": ("place_inputs", "rotate_babies", "decompose_sums", "turn_sums"),
    "products.cu": ("multiply_1", "multiply_2", "multiply_4"),
    "finish.cu": ("leave_slots", "rescale"),
    "packed.cu": ("encode_rows", "multiply_rows"),
    "encode.cu": ("encode_plaintexts",),
    "prepare.cu": ("prepare_keys", "compact_weights", "expand_weights"),
}
OPTIONS: Final = ("--std=c++17", "--fmad=false")
"""For NVRTC. Contracting a product and a sum would round otherwise than the CPU does."""
SHARED_WITHOUT_ASKING: Final = 48 * 1024
"""Shared memory that a block may have on every device. Kernels that ask for it ahead of their launch get 64 KB on all
devices we take (compute capability 7.0 and later)."""


def macros(preset: Preset) -> dict[str, int]:
    """What a module is compiled for."""
    return {
        "RING_LOG": preset.ring_degree.bit_length() - 1,
        "LIMBS": len(preset.data_primes),
        "REPLY_LIMBS": preset.reply_limbs,
    }


@cache
def source(file: str) -> str:
    """The text of a source file with our own headers in place of their includes."""
    return expanded((FOLDER / file).read_text(encoding="utf-8"), set())


def expanded(text: str, seen: set[str]) -> str:
    """``text`` with each of our headers in place of its first include; ``seen`` are those that are there already."""

    def header(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return expanded((FOLDER / match[1]).read_text(encoding="utf-8").replace("#pragma once\n", ""), seen)

    return re.sub(r'^#include "(\w+\.cuh)"$', header, text, flags=re.MULTILINE)


def thread_count(preset: Preset) -> int:
    """Threads of a block that transforms a polynomial."""
    return preset.ring_degree // 16


def transform_bytes(preset: Preset) -> int:
    """Shared memory of such a block."""
    return 4 * (preset.ring_degree + preset.ring_degree // 16)


def encode_bytes(preset: Preset) -> int:
    """Shared memory of a block that encodes a plaintext: half a ring of complex numbers in doubles."""
    return 8 * preset.ring_degree


SHARED_BYTES: Final[Mapping[str, Callable[[Preset], int]]] = {"encode_plaintexts": encode_bytes}
"""Kernels that pass 48 KB for some preset."""
