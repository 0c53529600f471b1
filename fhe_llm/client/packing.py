"""Vectors to complex slots and back, from a plan's maps alone.

Fold ``input``: z_j = x_j + i x_{j+h} with h = ceil(in/2); y_o is the sum of Re over the slots that answer row o.
Fold ``output``: z_j = x_j; with h = ceil(out/2), y_r is the sum of Re and y_{r+h} the sum of Im.
Every vector is divided by its own root mean square before it is packed, and multiplied back after: the proxy's weight
scale is chosen so that no product of such a vector can wrap around (``evaluator/scale``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ModelError, ParameterError
from fhe_llm.evaluator.plan import LinearPlan

Slots = NDArray[np.complex128]
Scales = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PackingIndex:
    """Gather indices of one plan. ``real`` and ``imag`` [n_in * slots] index x with one zero column appended
    (``imag`` is None where the slots are real); ``order`` lists the answering slots sorted by folded row, and row r
    owns ``order[starts[r]:starts[r + 1]]``."""

    real: NDArray[np.intp]
    imag: NDArray[np.intp] | None
    order: NDArray[np.intp]
    starts: NDArray[np.intp]


@lru_cache(maxsize=1024)
def packing_index(plan: LinearPlan) -> PackingIndex:
    """The index of a plan, built once. Raises :class:`ParameterError` where the plan's maps do not fit its shape."""
    held = plan.input_map().astype(np.intp).ravel()
    answered = plan.output_map().astype(np.intp).ravel()
    zero = plan.in_features
    if held.max(initial=-1) >= plan.folded_columns or answered.max(initial=-1) >= plan.folded_rows:
        raise _bad_plan("a slot points outside the matrix")
    imag = None
    if plan.fold == "input":
        upper = held + plan.folded_columns
        imag = np.where((held < 0) | (upper >= plan.in_features), zero, upper)
    used = np.flatnonzero(answered >= 0)
    order = used[np.argsort(answered[used], kind="stable")]
    rows, starts = np.unique(answered[order], return_index=True)
    if len(rows) != plan.folded_rows:
        raise _bad_plan("some rows have no slot")
    return PackingIndex(np.where(held < 0, zero, held), imag, order, starts)


def pack(plan: LinearPlan, x: NDArray[np.floating]) -> tuple[Slots, Scales]:
    """x [T, in_features] to slots [T, input_ciphertexts, slots] of root mean square at most sqrt(2) over the entries
    of x, and the divisors [T].

    A row of zeros has divisor 1. Raises :class:`ModelError` for a wrong shape or a value that is not finite.
    """
    index = packing_index(plan)
    padded = np.zeros((len(x), plan.in_features + 1))
    scale = normalise(x, plan.in_features, padded[:, :-1])
    slots = np.empty((len(x), len(index.real)), dtype=np.complex128)
    slots.real = padded[:, index.real]
    slots.imag = 0.0 if index.imag is None else padded[:, index.imag]
    return slots.reshape(len(x), plan.input_ciphertexts, plan.slots), scale


def normalise(x: NDArray[np.floating], in_features: int, out: NDArray[np.float64]) -> Scales:
    """Every row of x [T, in_features] over its root mean square, into ``out``; returns the divisors [T], 1 for zeros.

    Raises :class:`ModelError` for a wrong shape or a value that is not finite.
    """
    if x.ndim != 2 or x.shape[1] != in_features:
        raise ModelError(
            f"cannot pack a vector of shape {x.shape}: the layer takes [T, {in_features}]. "
            "Use the client half that belongs to this model."
        )
    # the largest is taken out first: squares may overflow
    largest: Scales = np.abs(x).max(axis=1, initial=0.0).astype(np.float64)
    if not np.isfinite(largest).all():
        raise ModelError("cannot pack activations: some are not finite. Check the model's files.")
    largest[largest == 0] = 1.0
    np.divide(x, largest[:, None], out=out)
    rms = np.sqrt(np.einsum("ti,ti->t", out, out) / in_features)
    rms[rms == 0] = 1.0
    out /= rms[:, None]
    largest *= rms
    return largest


def unpack(plan: LinearPlan, slots: Slots, scale: Scales) -> NDArray[np.float32]:
    """Slots [T, output_ciphertexts, slots] of the product to y [T, out_features], times the divisors [T].

    Cost: one gather and one segmented sum over the answering slots. Raises :class:`ModelError` for a wrong shape.
    """
    if (
        slots.ndim != 3
        or slots.shape[1:] != (plan.output_ciphertexts, plan.slots)
        or len(slots) != len(scale)
    ):
        raise ModelError(
            f"cannot unpack slots of shape {slots.shape}: the plan answers "
            f"[{len(scale)}, {plan.output_ciphertexts}, {plan.slots}]. Report this as a bug."
        )
    index = packing_index(plan)
    answers = slots.reshape(len(slots), -1)[:, index.order]
    y = np.empty((len(slots), plan.out_features))
    if plan.fold == "input":
        y[:] = np.add.reduceat(answers.real, index.starts, axis=1)
    else:
        sums = np.add.reduceat(answers, index.starts, axis=1)  # [T, h]
        y[:, : plan.folded_rows] = sums.real
        y[:, plan.folded_rows :] = sums.imag[:, : plan.out_features - plan.folded_rows]
    y *= scale[:, None]
    return y.astype(np.float32)


def _bad_plan(cause: str) -> ParameterError:
    return ParameterError(f"cannot use the plan: {cause}. Report this plan as a bug.")
