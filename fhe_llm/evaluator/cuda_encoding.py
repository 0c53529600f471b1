"""Encoding of linear layers on the device: the host's operations in the host's order, so the host's words."""

from __future__ import annotations

import threading
from collections import OrderedDict
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
from fhe_llm.evaluator.schedule import DiagonalMaps, check_weights, diagonal_maps, encoded_shape, schedule
from fhe_llm.params import Preset

MOST_SHARED_BYTES: Final = 64 * 1024
MOST_BITS: Final = 50
"""Of a coefficient, for the kernel's reduction modulo a prime in doubles."""
PLANS_KEPT: Final = 8


class DeviceEncoder:
    """Thread-safe; one layer at a time."""

    def __init__(self, device: Device, preset: Preset, loader: Loader) -> None:
        self._device, self._preset, self._loader = device, preset, loader
        self._lane = device.lane()
        self._lock = threading.Lock()
        self._plans: OrderedDict[bytes, Buffer] = OrderedDict()
        self._tables: tuple[Buffer, Buffer] | None = None

    def encode(self, name: str, plan: LinearPlan, weights: NDArray[np.float32]) -> EncodedLayer | None:
        """The layer, or None where the device cannot encode it; raises :class:`ParameterError` as the host does."""
        if encode_bytes(self._preset) > MOST_SHARED_BYTES or plan.folded_rows * plan.folded_columns >= 1 << 30:
            return None
        check_weights(name, plan, weights)
        log_scale = log_weight_scale(self._preset, plan, weights)
        # a coefficient is a mean over slots, and no slot is larger than two weights, one of them imaginary
        if 2.0 * float(np.abs(weights).max(initial=0.0)) * 2.0**log_scale >= 2.0**MOST_BITS:
            return None
        try:
            with self._lock:
                words = self._run(plan, weights, log_scale)
        except DeviceMemoryError:
            return None
        return EncodedLayer(name, plan, log_scale, words)

    def release(self) -> None:
        """Give back what is kept from one layer to the next; it is made again when it is needed."""
        with self._lock:
            self._plans.clear()
            self._tables = None

    def _run(self, plan: LinearPlan, weights: NDArray[np.float32], log_scale: int) -> NDArray[np.uint32]:
        index = self._index(plan)
        if self._tables is None:
            tables = encoding_tables(self._preset.ring_degree)
            self._tables = self._loader.upload(tables.roots), self._loader.upload(tables.untwist)
        words = np.empty(encoded_shape(self._preset, plan), dtype=np.uint32)
        scaling = np.array([2.0**log_scale / self._preset.slots])
        given = [
            self._loader.upload(array) for array in (scaling, np.ascontiguousarray(weights, dtype=np.float32))
        ]
        made = self._device.allocate(words.nbytes)
        buffers = (self._loader.tables, index, *self._tables, *given, made)
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
            self._lane.copy_out(words, addresses[-1])
            self._lane.wait()
        return words

    def _index(self, plan: LinearPlan) -> Buffer:
        known = self._plans.get(plan.plan_id)
        if known is None:
            known = self._plans[plan.plan_id] = self._loader.upload(weight_index(plan, diagonal_maps(plan)))
        self._plans.move_to_end(plan.plan_id)
        if len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return known


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
