"""What the proxy hands an evaluator and what it gets back: arrays only, no key that decrypts, no text.

Every evaluator (``reference``, ``cpu``, ``cuda``) implements :class:`Evaluator` and passes one contract suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import FheLlmError
from fhe_llm.evaluator.packed_plan import Plan
from fhe_llm.params import Preset

Words = NDArray[np.uint32]


class MissingRotationKeyError(FheLlmError):
    """The evaluation keys lack a rotation that the layer's plan needs."""

    code = "missing_rotation_key"


@dataclass(frozen=True, slots=True)
class EvaluationKeys:
    """Galois keys of one client, as the wire carries them.

    ``words`` has shape [elements, digits, 2, limbs, N]: NTT form in SEAL's order, every residue below its prime;
    ``digits`` is the number of data primes, ``limbs`` counts the special prime too. ``elements`` are the Galois
    elements 3^k mod 2N, ascending.
    """

    preset: Preset
    elements: tuple[int, ...]
    words: Words


@dataclass(frozen=True, slots=True)
class EncodedLayer:
    """One layer's weights in the evaluator's form for one plan: plaintext polynomials in the plan's order, or, for a
    packed plan, what they are made from in passing.

    ``words`` is contiguous and may be a read-only memory map; ``log_weight_scale`` is log2 of their encoding scale.
    """

    name: str
    plan: Plan
    log_weight_scale: int
    words: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One token vector of one client, or one group of them under a packed plan: ``inputs`` is
    [plan.input_ciphertexts, 2, data limbs, N], NTT form."""

    keys: Any
    inputs: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds an evaluation spent in its phases."""

    rotations: float
    products: float
    finish: float


class Evaluator(Protocol):
    """Computes y = W x on ciphertexts. Thread-safe: several threads may call ``evaluate`` at once."""

    preset: Preset

    @property
    def parallel(self) -> int:
        """Evaluations worth running at once: each then has a thread, or whatever else it runs on, to itself."""
        ...

    @property
    def jobs_per_pass(self) -> int:
        """Jobs worth evaluating together; more in one call are evaluated in parts."""
        ...

    def encode(self, name: str, plan: Plan, weights: NDArray[np.float32]) -> EncodedLayer:
        """Encode ``weights`` [out_features, in_features] for ``plan``."""
        ...

    def prepare_keys(self, keys: EvaluationKeys) -> Any:
        """Turn keys into the evaluator's own form; the result goes into :class:`Job`."""
        ...

    def evaluate(self, layer: EncodedLayer, jobs: Sequence[Job]) -> tuple[list[NDArray[Any]], Timings]:
        """One reply per job: [plan.output_ciphertexts, 2, reply limbs, N], coefficient domain, residues < prime.

        Results do not depend on which jobs share a call. Raises ``FheLlmError`` subclasses for a missing rotation
        key, a wrong shape, or a layer's words in another form than :meth:`encode` gives.
        """
        ...
