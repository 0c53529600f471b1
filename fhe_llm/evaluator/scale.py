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
MARGIN_BITS: Final = 1.25
"""One bit for the sign, a quarter for noise and rounding."""


def singular_value_bound(weights: NDArray[np.float32]) -> float:
    """An upper bound on the largest singular value of ``weights`` [out, in], at most d^(1/16) too large.

    sigma^2 <= |G^8|_F^(1/8) for the Gram matrix G of the shorter side d; 4 d^3 products.
    """
    short = weights if weights.shape[0] <= weights.shape[1] else weights.T
    gram = short.astype(np.float64) @ short.T.astype(np.float64)
    log_norm, power = 0.0, 1
    for _ in range(3):
        norm = float(np.linalg.norm(gram))
        if norm == 0.0:
            return 0.0
        gram = (gram / norm) @ (gram / norm)
        log_norm, power = 2 * (log_norm + log2(norm)), 2 * power
    norm = float(np.linalg.norm(gram))
    return float(2.0 ** ((log_norm + log2(norm)) / power / 2)) if norm else 0.0


def log_weight_scale(preset: Preset, plan: LinearPlan, weights: NDArray[np.float32]) -> int:
    """log2 of the largest weight scale at which no reply to an input of rms one can wrap around.

    Raises :class:`ParameterError` if the weights are so large that too little precision would be left.
    """
    sigma = singular_value_bound(weights)
    if sigma == 0.0:
        return preset.log_weight_scale
    norm = sigma * sqrt(plan.in_features) * (sqrt(2) if plan.fold == "input" else 1.0)
    log_modulus = sum(log2(q) for q in preset.data_primes)
    spare = log_modulus - MARGIN_BITS - preset.log_input_scale - log2(norm / sqrt(plan.slots))
    scale = min(floor(spare), MAX_LOG_WEIGHT_SCALE)
    if scale < preset.log_weight_scale - 12:
        raise ParameterError(
            f"cannot encode weights of norm {sigma:.3g}: only {scale} bits of scale are left. Use a wider preset."
        )
    return scale
