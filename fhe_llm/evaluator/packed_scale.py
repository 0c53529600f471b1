"""How large the weights' scale of a packed plan may be before a reply wraps around its modulus.

Slot s = t G + g of an output block answers y_t[g] + i y'_t[g] for the two tokens of row t. Coefficient n of the reply
is

    c_n = 2/N sum over s of (y_s cos(a_s n) + y'_s sin(a_s n)),   a_s = pi 3^s / N,

and y_t = B x_t for the block B of G rows of W. Every token travels with root mean square one, hence norm sqrt(in),
so the sum over g is at most sqrt(in) |B^T cos(a n)|, and alike for the sines. Row t only turns n into n 3^{tG},
therefore

    |c_n| <= 2/N sqrt(in) sum over t of F(n 3^{tG}),   F(n) = |B^T cos(a n)| + |B^T sin(a n)|  (g = 0 ... G - 1 only),

with equality for the worst tokens. All F(n) come from one transform: with K = B B^T, 2 |B^T cos|^2 = D + P and
2 |B^T sin|^2 = D - P, where D and P collect K[g, h] at the frequencies 3^g - 3^h and 3^g + 3^h. The bound holds for
every input; it takes the worst coefficient of the worst block. Rows of padding only lower it.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.packed_plan import PackedPlan
from fhe_llm.evaluator.rns import GALOIS_GENERATOR, slot_exponents
from fhe_llm.evaluator.scale import largest_scale
from fhe_llm.params import Preset

ROUNDING: Final = 1e-12
"""Error of the double-precision transform relative to the sum of its inputs, generously."""


def packed_log_weight_scale(preset: Preset, plan: PackedPlan, weights: NDArray[np.float32]) -> int:
    """log2 of the largest weight scale at which no reply to vectors of rms one can wrap around.

    Raises :class:`ParameterError` if the weights are so large that too little precision would be left.
    """
    largest = largest_coefficient(preset, plan, weights)
    if largest == 0.0:
        return preset.log_weight_scale
    return largest_scale(preset, largest, f"whose replies reach {largest:.3g}")


def largest_coefficient(preset: Preset, plan: PackedPlan, weights: NDArray[np.float32]) -> float:
    """The largest coefficient, at scale one, of a reply to tokens of rms one. About 1 ms a block for G = 256."""
    blocks = [weights[first : first + plan.width] for first in range(0, plan.out_features, plan.width)]
    return max(_block_bound(preset.ring_degree, plan, block.astype(np.float64)) for block in blocks)


def _block_bound(n: int, plan: PackedPlan, block: NDArray[np.float64]) -> float:
    gram = block @ block.T
    exponents = slot_exponents(n)[: len(block)]
    spare = ROUNDING * float(np.abs(gram).sum())

    def collected(frequencies: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of gram * cos(pi frequency m / N) for m = 0 ... 2 N - 1."""
        counts = np.bincount((frequencies % (2 * n)).ravel(), weights=gram.ravel(), minlength=2 * n)
        return np.fft.fft(counts).real

    difference = collected(exponents[:, None] - exponents[None, :])
    total = collected(exponents[:, None] + exponents[None, :])
    squares = [np.maximum(difference + sign * total, 0.0) / 2 + spare for sign in (1, -1)]
    sums = np.sqrt(squares[0]) + np.sqrt(squares[1])  # [2 N]: F
    index, step = np.arange(2 * n), pow(GALOIS_GENERATOR, plan.width, 2 * n)
    for _ in range(plan.rows.bit_length() - 1):  # doubling: the sum over the first 1, 2, 4 ... T rows
        sums = sums + sums[index * step % (2 * n)]
        step = step * step % (2 * n)
    return float(2 / n * sqrt(plan.in_features) * sums.max())
