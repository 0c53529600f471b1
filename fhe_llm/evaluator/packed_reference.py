"""Packed plans by their definition, on plain slots: what the kernels must agree with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.packed_plan import PackedPlan


def band(plan: PackedPlan, weights: NDArray[np.float32], output: int, source: int) -> NDArray[np.float64]:
    """One period of every plaintext of an (output, input) pair: [rotations, G], before the giant steps' turn.

    Rotation r stands for offset r - G: entry g is W[output G + g, source G + g + r - G] where that lies in the block.
    """
    width = plan.width
    padded = np.zeros((width, width))
    block = weights[output * width : (output + 1) * width, source * width : (source + 1) * width]
    padded[: block.shape[0], : block.shape[1]] = block
    out = np.zeros((2 * width + plan.babies, width))  # the last giant step may reach past 2 G
    g = np.arange(width)
    for r in range(2 * width):
        column = g + r - width
        inside = (column >= 0) & (column < width)
        out[r, inside] = padded[g[inside], column[inside]]
    return out


def packed_product(
    plan: PackedPlan, weights: NDArray[np.float32], inputs: NDArray[np.complex128]
) -> NDArray[np.complex128]:
    """Slots [output_ciphertexts, slots] from [input_ciphertexts, slots], in the order of the encrypted schedule."""
    reply = np.zeros((plan.output_ciphertexts, plan.slots), dtype=np.complex128)
    turned = [[np.roll(x, -k) for k in range(plan.babies)] for x in inputs]
    for output in range(plan.output_ciphertexts):
        bands = [band(plan, weights, output, source) for source in range(plan.input_ciphertexts)]
        for giant in plan.giant_rotations:
            total = np.zeros(plan.slots, dtype=np.complex128)
            for source in range(plan.input_ciphertexts):
                for baby in range(plan.babies):
                    period = np.roll(bands[source][giant + baby], giant)
                    total += np.tile(period, plan.rows) * turned[source][baby]
            reply[output] += np.roll(total, -giant)
    return reply
