"""Groups of vectors to complex slots and back, for plans that let many tokens share ciphertexts.

Token t of a group stands in the real parts of slot row t, token t + T in the imaginary parts of the same row (T rows);
answers come back one row earlier. Every vector is divided by its own root mean square, as single ones are.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from fhe_llm.client.packing import Scales, Slots, normalise
from fhe_llm.errors import ModelError
from fhe_llm.evaluator.packed_plan import PackedPlan


def pack_groups(plan: PackedPlan, x: NDArray[np.floating]) -> tuple[Slots, Scales]:
    """x [n, in_features] to slots [groups, input_ciphertexts, slots] and the divisors [n]; places left over hold zeros.

    A row of zeros has divisor 1. Raises :class:`ModelError` for a wrong shape or a value that is not finite.
    """
    groups, width = ceil(len(x) / plan.tokens), plan.width
    padded = np.zeros((groups * plan.tokens, plan.input_ciphertexts * width))
    scale = normalise(x, plan.in_features, padded[: len(x), : plan.in_features])
    split = padded.reshape(groups, 2, plan.rows, plan.input_ciphertexts, width).transpose(0, 1, 3, 2, 4)
    slots = np.empty((groups, plan.input_ciphertexts, plan.rows, width), dtype=np.complex128)
    slots.real, slots.imag = split[:, 0], split[:, 1]
    return slots.reshape(groups, plan.input_ciphertexts, plan.slots), scale


def unpack_groups(plan: PackedPlan, slots: Slots, scale: Scales) -> NDArray[np.float32]:
    """Slots [groups, output_ciphertexts, slots] of the product to y [n, out_features], times the divisors [n].

    Raises :class:`ModelError` for a wrong shape.
    """
    groups = ceil(len(scale) / plan.tokens)
    if slots.shape != (groups, plan.output_ciphertexts, plan.slots):
        raise ModelError(
            f"cannot unpack slots of shape {slots.shape}: the plan answers "
            f"[{groups}, {plan.output_ciphertexts}, {plan.slots}]. Report this as a bug."
        )
    rows = np.roll(slots.reshape(groups, plan.output_ciphertexts, plan.rows, plan.width), 1, axis=2)
    rows = rows.transpose(0, 2, 1, 3).reshape(groups, plan.rows, -1)[..., : plan.out_features]
    y = np.stack([rows.real, rows.imag], axis=1).reshape(-1, plan.out_features)[: len(scale)]
    y *= scale[:, None]
    return y.astype(np.float32)
