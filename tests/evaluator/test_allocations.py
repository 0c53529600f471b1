"""Kernels of a pass allocate nothing: a thread that ran out of memory would leave the others waiting for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys

from fhe_llm.evaluator import keyswitch, linear, packed_encoding, packed_linear, pipeline
from fhe_llm.evaluator.contract import EvaluationKeys, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.packed_plan import layer_plans, plan_elements
from fhe_llm.params import PRESETS

KERNELS = (
    (pipeline, "run"),
    (keyswitch, "decompose_digit"),
    (packed_linear, "baby_steps"),
    (packed_encoding, "encode_rows"),
    (packed_linear, "multiply"),
    (packed_linear, "giant_steps"),
    (linear, "finish"),
)


@pytest.fixture
def counted() -> Iterator[None]:
    """Numba counts its allocations."""
    _nrt_python.memsys_enable_stats()
    yield
    _nrt_python.memsys_disable_stats()


def arrays(value: Any) -> int:
    """Arrays in (nested) arguments: Numba allocates a header for each before the kernel begins, and nothing else."""
    return sum(map(arrays, value)) if isinstance(value, tuple) else isinstance(value, np.ndarray)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_kernels_allocate_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()

    def watched(kernel: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> None:
            before = rtsys.get_allocation_stats()
            run(*arguments)
            after = rtsys.get_allocation_stats()
            assert after.mi_alloc - before.mi_alloc == arrays(arguments), kernel
            assert after.alloc - before.alloc == arrays(arguments), kernel
            called.add(kernel)

        return call

    preset, rng = PRESETS[name], np.random.default_rng()
    plans, primes = layer_plans(preset, 300, 130), np.array(preset.primes)[:, None]
    elements, limbs = plan_elements(preset, plans), len(preset.data_primes)
    words = rng.integers(0, primes, (len(elements), limbs, 2, limbs + 1, preset.ring_degree))
    evaluator = CpuEvaluator(preset, threads=1)
    keys = evaluator.prepare_keys(EvaluationKeys(preset, elements, words.astype(np.uint32)))
    rounds = []
    for plan in plans:
        layer = evaluator.encode("layer", plan, rng.normal(size=(300, 130)).astype(np.float32))
        shape = plan.input_ciphertexts, 2, limbs, preset.ring_degree
        jobs = [Job(keys, rng.integers(0, primes[:limbs], shape).astype(np.uint32)) for _ in range(2)]
        rounds.append((layer, jobs))
        evaluator.evaluate(layer, jobs)  # compiles
    for module, kernel in KERNELS:
        monkeypatch.setattr(module, kernel, watched(kernel, getattr(module, kernel)))
    for layer, jobs in rounds:
        evaluator.evaluate(layer, jobs)
    assert called == {kernel for _, kernel in KERNELS}
    evaluator.close()
