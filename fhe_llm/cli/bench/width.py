"""Square products for models of several widths, and how much of the memory's bandwidth the weights reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import get_num_threads, njit, prange, set_num_threads
from numpy.typing import NDArray

from fhe_llm.cli.bench.product import measure_ours, prepare
from fhe_llm.cli.bench.record import record, timed
from fhe_llm.client.keys import KeyRing
from fhe_llm.params import preset as find_preset

STREAM_BYTES: Final = 512 << 20
"""Far more than any cache holds."""
STREAM_RUNS: Final = 7


def bench_width(widths: Sequence[int], preset_name: str, repeats: int, threads: int) -> dict[str, Any]:
    """The record of one width x width product per width, each on weights that no cache holds when it begins."""
    preset = find_preset(preset_name)
    stream = np.ones(STREAM_BYTES // 8, np.uint64)
    bandwidth = read_bandwidth(stream, threads)
    found = []
    for width in widths:
        rng = np.random.default_rng(width)
        weights = (rng.standard_normal((width, width)) / math.sqrt(width)).astype(np.float32)
        x = rng.standard_normal((1, width)).astype(np.float32)
        with KeyRing.generate(preset) as ring:
            ours = measure_ours(
                prepare(ring, weights, threads), x, weights, repeats, before=lambda: _stream(stream)
            )
        reached = ours["weight_bytes"] / ours["split_seconds"]["products"]
        found.append(
            {"width": width, **ours, "weight_bytes_per_second": reached, "share": reached / bandwidth}
        )
    figures = {"threads": threads, "read_bytes_per_second": bandwidth, "widths": found}
    return record("width", preset, figures)


def read_bandwidth(stream: NDArray[np.uint64], threads: int) -> float:
    """Bytes per second at which ``threads`` threads add up an array larger than the caches; the best of a few runs."""
    before = get_num_threads()
    set_num_threads(min(threads, before))
    try:
        return float(stream.nbytes / timed(lambda: _stream(stream), STREAM_RUNS).minimum)
    finally:
        set_num_threads(before)


@njit(parallel=True, cache=True)
def _stream(values):  # type: ignore[no-untyped-def]
    """The sum of ``values``, read once, in order, by all threads."""
    total = np.uint64(0)
    for i in prange(values.shape[0]):
        total += values[i]
    return total
