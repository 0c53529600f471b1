"""What an encrypted evaluator refuses before it computes: kernels trust shapes and would read past the end."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job, MissingRotationKeyError
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.rns import GALOIS_GENERATOR
from fhe_llm.evaluator.schedule import encoded_shape
from fhe_llm.params import Preset


class _Indexed(Protocol):
    index: dict[int, int]


def check_keys(preset: Preset, keys: EvaluationKeys) -> None:
    """Raise :class:`ParameterError` for another preset's keys, or words that are not those of their elements."""
    if keys.preset != preset:
        raise ParameterError(
            f"cannot use keys of preset {keys.preset.name!r}: this evaluator runs {preset.name!r}. "
            "Make a key ring for that preset."
        )
    limbs = len(preset.primes)
    wanted = (len(keys.elements), limbs - 1, 2, limbs, preset.ring_degree)
    if keys.words.dtype != np.uint32 or keys.words.shape != wanted:
        raise ParameterError(
            f"cannot use these keys: their words are {keys.words.dtype} {keys.words.shape}, not uint32 {wanted}. "
            "Export them anew."
        )


def check_layer(preset: Preset, layer: EncodedLayer) -> None:
    """Raise :class:`ParameterError` for words that are not the plan's."""
    plan, words = layer.plan, layer.words
    if isinstance(plan, PackedPlan):
        kind: np.dtype[Any] = np.dtype(np.float32)
        shape: tuple[int, ...] = (plan.out_features, plan.in_features)
    else:
        kind, shape = np.dtype(np.uint32), encoded_shape(preset, plan)
    if words.dtype != kind or words.shape != shape:
        raise ParameterError(
            f"cannot evaluate {layer.name}: its words are {words.dtype} {words.shape}, not {kind} {shape}. "
            "Encode it anew."
        )
    if not words.flags.c_contiguous:
        raise ParameterError(
            f"cannot evaluate {layer.name}: its words are not contiguous in memory. Copy them or encode it anew."
        )


def check_job(preset: Preset, plan: Plan, job: Job) -> None:
    """Raise :class:`ParameterError` for a wrong shape, :class:`MissingRotationKeyError` where keys lack a rotation."""
    expected = (plan.input_ciphertexts, 2, len(preset.data_primes), preset.ring_degree)
    if job.inputs.shape != expected:
        raise ParameterError(
            f"cannot evaluate a job of shape {job.inputs.shape}: the plan takes {expected}. Pack it with this plan."
        )
    keys: _Indexed = job.keys
    missing = [k for k in plan.rotations if k not in keys.index]
    if missing:
        raise MissingRotationKeyError(
            f"cannot rotate by {missing[0]}: {len(missing)} rotation keys are missing. "
            "Upload evaluation keys made for this model's plans."
        )


def steps_of_elements(ring_degree: int) -> dict[int, int]:
    """Galois element 3^k mod 2N to the rotation k it stands for."""
    steps, value = {}, 1
    for k in range(ring_degree // 2):
        steps[value] = k
        value = value * GALOIS_GENERATOR % (2 * ring_degree)
    return steps
