"""Encoding of linear layers on the device, with the host's outcome to the bit.

Both transforms err, each in its own way, by far less than the half that rounding decides at. The device says which
plaintexts have a coefficient so close to a half that the two might be rounded apart; their groups are encoded at the
host.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from math import log2, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.contract import EncodedLayer
from fhe_llm.evaluator.cuda_kernels import encode_bytes, thread_count
from fhe_llm.evaluator.cuda_loader import Loader
from fhe_llm.evaluator.device import Address, Buffer, Device, DeviceMemoryError
from fhe_llm.evaluator.encoding import encoding_tables
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.evaluator.rns import slot_exponents
from fhe_llm.evaluator.scale import log_weight_scale
from fhe_llm.evaluator.schedule import (
    DiagonalMaps,
    diagonal_maps,
    encode_group,
    encoded_shape,
    fold_weights,
    schedule,
)
from fhe_llm.params import Preset

ERROR_CONSTANT: Final = 16.0
"""The relative error, in the 2-norm, of a Fourier transform of n points in doubles (unit u) is below log2(n)
(4 sqrt(2) u + m) with m the error of its twiddles (Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
theorem 24.2): 8 u log2(n) for m up to 2 u. Twice that, for the host's transform and ours."""
LARGEST_MARGIN: Final = 2.0**-12
"""From here on most plaintexts would be uncertain."""
MOST_SHARED_BYTES: Final = 64 * 1024
PLANS_KEPT: Final = 8


class DeviceEncoder:
    """Thread-safe; one layer at a time."""

    def __init__(self, device: Device, preset: Preset, loader: Loader) -> None:
        self._device, self._preset, self._loader = device, preset, loader
        self._lane = device.lane()
        self._lock = threading.Lock()
        self._plans: OrderedDict[bytes, tuple[Buffer, DiagonalMaps]] = OrderedDict()
        self._tables: tuple[Buffer, Buffer] | None = None

    def encode(self, name: str, plan: LinearPlan, weights: NDArray[np.float32]) -> EncodedLayer | None:
        """The layer, or None where the device cannot encode it; raises :class:`ParameterError` as the host does."""
        if encode_bytes(self._preset) > MOST_SHARED_BYTES or plan.folded_rows * plan.folded_columns >= 1 << 30:
            return None
        folded = fold_weights(name, plan, weights)
        log_scale = log_weight_scale(self._preset, plan, weights)
        margin = rounding_margin(plan, folded, log_scale)
        if margin > LARGEST_MARGIN or float(np.abs(weights).max(initial=0.0)) * 2.0**log_scale >= 2.0**50:
            return None
        try:
            with self._lock:
                words, uncertain, maps = self._run(plan, weights, log_scale, margin)
        except DeviceMemoryError:
            return None
        todo = schedule(plan)
        for g in np.unique(np.searchsorted(todo.groups, np.flatnonzero(uncertain), side="right") - 1):
            encode_group(self._preset, plan, folded, log_scale, maps, int(g), words)
        return EncodedLayer(name, plan, log_scale, words)

    def _run(
        self, plan: LinearPlan, weights: NDArray[np.float32], log_scale: int, margin: float
    ) -> tuple[NDArray[np.uint32], NDArray[np.int32], DiagonalMaps]:
        index, maps = self._plan(plan)
        if self._tables is None:
            roots, twists = transform_tables(self._preset.ring_degree)
            self._tables = self._loader.upload(roots), self._loader.upload(twists)
        words = np.empty(encoded_shape(self._preset, plan), dtype=np.uint32)
        uncertain = np.zeros(plan.product_count, dtype=np.int32)
        scaling = np.array([2.0**log_scale / self._preset.slots, margin])
        given = [
            self._loader.upload(array) for array in (scaling, np.ascontiguousarray(weights, dtype=np.float32))
        ]
        made = self._device.allocate(words.nbytes), self._loader.upload(uncertain)
        buffers = (self._loader.tables, index, *self._tables, *given, *made)
        addresses = [Address(buffer.address) for buffer in buffers]
        with self._lane.active():
            self._lane.launch(
                "encode_plaintexts",
                (plan.product_count, 1, 1),
                (thread_count(self._preset), 1, 1),
                encode_bytes(self._preset),
                *addresses,
                *(plan.in_features, plan.out_features, plan.folded_rows, plan.folded_columns),
            )
            self._lane.copy_out(words, addresses[-2])
            self._lane.copy_out(uncertain, addresses[-1])
            self._lane.wait()
        return words, uncertain, maps

    def _plan(self, plan: LinearPlan) -> tuple[Buffer, DiagonalMaps]:
        known = self._plans.get(plan.plan_id)
        if known is None:
            maps = diagonal_maps(plan)
            known = self._plans[plan.plan_id] = self._loader.upload(weight_index(plan, maps)), maps
        self._plans.move_to_end(plan.plan_id)
        if len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return known


def rounding_margin(plan: LinearPlan, folded: NDArray[np.complex128], log_scale: int) -> float:
    """How far apart the two sides' unrounded coefficients may be.

    A plaintext's slots hold every folded weight at most once, at most |z|_2 = min(|W|_F, max |W| sqrt(slots)); a
    coefficient is scale / slots times an entry of a transform whose 2-norm is sqrt(slots) |z|_2.
    """
    slots = plan.slots
    norm = min(float(np.linalg.norm(folded)), float(np.abs(folded).max(initial=0.0)) * sqrt(slots))
    return float(ERROR_CONSTANT * 2.0**-53 * (log2(slots) + 2) * norm / sqrt(slots) * 2.0**log_scale)


def weight_index(plan: LinearPlan, maps: DiagonalMaps) -> NDArray[np.int32]:
    """[products, slots]: which entry of the folded weights the transform takes where; see ``kernels/encode.cu``."""
    todo, slots, columns = schedule(plan), plan.slots, plan.folded_columns
    rows, exponents = plan.output_map(), slot_exponents(2 * slots)[:slots]
    conjugated = exponents % 4 == 3
    position = encoding_tables(2 * slots).position
    out = np.empty((plan.product_count, slots), dtype=np.int32)
    for g, giant in enumerate(todo.giant.tolist()):
        target = int(todo.target[g])
        for p in range(todo.groups[g], todo.groups[g + 1]):
            column = maps[target, int(todo.source[p]) // plan.babies][todo.diagonal[p]]
            flat = np.where(column >= 0, rows[target].astype(np.int64) * columns + column, -1)
            flat = np.roll(flat, giant)
            out[p, position] = np.where(flat >= 0, 2 * flat + conjugated, -1)
    return out


def transform_tables(ring_degree: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """exp(-2 pi i k / (N/2)) for k < N/4 and exp(-pi i k / N) for k < N/2; [.., 2]."""
    half = ring_degree // 2
    roots = np.exp(-2j * np.pi * np.arange(half // 2) / half)
    twists = np.exp(-1j * np.pi * np.arange(half) / ring_degree)
    return roots.view(np.float64), twists.view(np.float64)
