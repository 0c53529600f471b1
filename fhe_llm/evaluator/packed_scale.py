"""How large the weights' scale of a packed plan may be before a reply wraps around its modulus.

A coefficient is an average over slots, so it is at most the root mean square of the slots (Cauchy-Schwarz). Slot
(t, g) of output block o holds y_o[g] of two tokens, one in each part; every token travels with root mean square one,
hence norm sqrt(in). With sigma the largest singular value of the block's G rows of W, a row of tokens adds at most
2 sigma^2 in to the sum of squares, and T rows over G T slots leave a mean square of at most 2 sigma^2 in / G. The
bound holds for every input and takes the worst block; rows of padding only lower it.
"""

from __future__ import annotations

from math import floor, log2, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.packed_plan import PackedPlan
from fhe_llm.evaluator.scale import MARGIN_BITS, MAX_LOG_WEIGHT_SCALE, singular_value_bound
from fhe_llm.params import Preset

EXACT_SIDE: Final = 128
"""Blocks with a side up to this have their eigenvalues computed; others a bound from power iteration."""
ROUNDING: Final = 1e-6
"""Relative error of an eigenvalue of double-precision sums, generously."""


def packed_log_weight_scale(preset: Preset, plan: PackedPlan, weights: NDArray[np.float32]) -> int:
    """log2 of the largest weight scale at which no reply to vectors of rms one can wrap around.

    Raises :class:`ParameterError` if the weights are so large that too little precision would be left.
    """
    sigma = max(
        _largest_singular_value(weights[first : first + plan.width])
        for first in range(0, plan.out_features, plan.width)
    )
    if sigma == 0.0:
        return preset.log_weight_scale
    log_modulus = sum(log2(q) for q in preset.data_primes)
    largest = floor(log_modulus - 1 - preset.log_input_scale)
    norm = sigma * sqrt(2 * plan.in_features / plan.width)
    spare = log_modulus - MARGIN_BITS - preset.log_input_scale - log2(norm)
    scale = min(floor(spare), largest, MAX_LOG_WEIGHT_SCALE)
    if scale < preset.log_weight_scale - 12:
        raise ParameterError(
            f"cannot encode weights of norm {sigma:.3g}: only {scale} bits of scale are left. Use a wider preset."
        )
    return scale


def _largest_singular_value(block: NDArray[np.float32]) -> float:
    """An upper bound, within a relative 2e-6 for blocks with a short side."""
    if min(block.shape) > EXACT_SIDE:
        return singular_value_bound(block)
    short = (block if block.shape[0] <= block.shape[1] else block.T).astype(np.float64)
    return float(sqrt(max(np.linalg.eigvalsh(short @ short.T)[-1], 0.0))) * (1 + ROUNDING)
