"""How large the weights' encoding scale may be before a reply wraps around its modulus.

The client sends inputs of root mean square one. A reply's coefficient is an average over slots, so it is at most
the root mean square of the slots (Cauchy-Schwarz), and the slots of all segments together have squared norm at most
2 sigma^2 |x|^2 with sigma the largest singular value of W (the factor 2 only for fold ``input``, whose imaginary
parts are unused). This makes the bound rigorous for every input, and tight to a few bits on real layers.
"""

from __future__ import annotations

from math import floor, log2, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.params import Preset

MAX_LOG_WEIGHT_SCALE: Final = 40
LANCZOS_STEPS: Final = 33
UNDERESTIMATE: Final = 0.3
MARGIN_BITS: Final = 1.25
"""One bit for the sign, a quarter for noise and rounding."""


def singular_value_bound(weights: NDArray[np.float32]) -> float:
    """An upper bound on the largest singular value of ``weights`` [out, in], at most 20 % too large.

    Lanczos iteration on the Gram matrix of the shorter side d, never formed, from a random start. After k steps the
    largest eigenvalue is underestimated by more than a factor 1 - e with probability at most
    1.648 sqrt(d) exp(-sqrt(e) (2 k - 1)) (Kuczynski and Wozniakowski, "Estimating the largest eigenvalue by the power
    and Lanczos algorithms", 1992, theorem 4.2); dividing by 1 - e makes it a bound that fails with probability below
    10^-12 for d up to 2^18. The start is seeded, so equal weights give equal bounds. 4 k in out operations.
    """
    largest = float(np.abs(weights).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    short = np.ascontiguousarray(weights if weights.shape[0] <= weights.shape[1] else weights.T)
    return float(largest * sqrt(_largest_eigenvalue(short / np.float32(largest)) / (1 - UNDERESTIMATE)))


def _largest_eigenvalue(short: NDArray[np.float32]) -> float:
    """Of ``short`` [d, D] times its transpose, as Lanczos iteration sees it; products in single precision."""
    vector = np.random.default_rng(0).normal(size=len(short))
    vector /= np.linalg.norm(vector)
    before, beta = np.zeros_like(vector), 0.0
    diagonal, beside = list[float](), list[float]()
    for _ in range(min(LANCZOS_STEPS, len(short))):
        image = short @ (vector.astype(np.float32) @ short) - beta * before
        diagonal.append(float(image @ vector))
        image -= diagonal[-1] * vector
        beta = float(np.linalg.norm(image))
        if beta <= 1e-6 * diagonal[-1]:  # nothing is left but what single precision rounds off
            break
        beside.append(beta)
        before, vector = vector, image / beta
    beside = beside[: len(diagonal) - 1]
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))[-1])


def log_weight_scale(preset: Preset, plan: LinearPlan, weights: NDArray[np.float32]) -> int:
    """log2 of the largest weight scale at which no reply to an input of rms one can wrap around.

    Raises :class:`ParameterError` if the weights are so large that too little precision would be left.
    """
    sigma = singular_value_bound(weights)
    if sigma == 0.0:
        return preset.log_weight_scale
    norm = sigma * sqrt(plan.in_features) * (sqrt(2) if plan.fold == "input" else 1.0)
    return largest_scale(preset, norm / sqrt(plan.slots), f"of norm {sigma:.3g}")


def largest_scale(preset: Preset, coefficient: float, weights: str) -> int:
    """log2 of the largest weight scale at which a reply's ``coefficient`` at scale one does not wrap around.

    Raises :class:`ParameterError` for weights, described by ``weights``, that leave too little precision.
    """
    log_modulus = sum(log2(q) for q in preset.data_primes)
    spare = log_modulus - MARGIN_BITS - preset.log_input_scale - log2(coefficient)
    # SEAL takes no scale as large as the modulus, however small the values
    largest = floor(log_modulus - 1 - preset.log_input_scale)
    scale = min(floor(spare), largest, MAX_LOG_WEIGHT_SCALE)
    if scale < preset.log_weight_scale - 12:
        raise ParameterError(
            f"cannot encode weights {weights}: only {scale} bits of scale are left. Use a wider preset."
        )
    return scale
