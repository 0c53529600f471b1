"""Brings tables, keys and weights to the device, on a lane of its own."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.contract import EncodedLayer
from fhe_llm.evaluator.cuda_kernels import thread_count, transform_bytes
from fhe_llm.evaluator.cuda_residency import Form
from fhe_llm.evaluator.cuda_sequence import Constants, steps_of
from fhe_llm.evaluator.cuda_store import DeviceStore, Item
from fhe_llm.evaluator.cuda_tables import kernel_tables, packed_words
from fhe_llm.evaluator.device import Address, Buffer, Device
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.schedule import schedule
from fhe_llm.params import Preset

_numbers = itertools.count()


class CudaKeys:
    """One client's Galois keys: ``words`` [elements, L, 2, M, N], SEAL's order, at the host; ``index``: step to row."""

    def __init__(self, words: NDArray[np.uint32], index: dict[int, int]) -> None:
        self.words = words
        self.index = index
        self.number = next(_numbers)
        self.watched = False
        self._offsets: dict[bytes, NDArray[np.uint64]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes at the host, and as many on the device."""
        return self.words.nbytes

    def offsets(self, plan: Plan) -> NDArray[np.uint64]:
        """Where the keys of the plan's steps lie in ours; arbitrary for steps that turn nothing."""
        known = self._offsets.get(plan.plan_id)
        if known is None:
            size = self.words[0].nbytes if len(self.words) else 0
            rows = [self.index.get(k, 0) * size for k in steps_of(plan).keys]
            known = self._offsets[plan.plan_id] = np.array(rows, dtype=np.uint64)
        return known


class NotCompactError(Exception):
    """A plaintext whose coefficients do not fit one word; the evaluator keeps its words then."""


class Loader:
    """Thread-safe; one thing at a time."""

    def __init__(self, device: Device, preset: Preset) -> None:
        self._device = device
        self._preset = preset
        self._lane = device.lane()
        self._lock = threading.RLock()
        self._plans: dict[bytes, tuple[Constants, list[Buffer]]] = {}
        self._packed: dict[int, tuple[Buffer, Buffer]] = {}
        self.tables = self.upload(kernel_tables(preset))

    def constants(self, plan: Plan) -> Constants:
        """The addresses a sequence of ``plan`` takes; uploaded once."""
        with self._lock:
            known = self._plans.get(plan.plan_id)
            if known is None:
                known = self._plans[plan.plan_id] = self._constants(plan)
            return known[0]

    def keys(self, keys: CudaKeys, store: DeviceStore) -> Item:
        """The item for a client's keys; ``store`` lets go of them when nobody has them any more."""
        if not keys.watched:
            keys.watched = True
            weakref.finalize(keys, store.forget, keys.number)
        words = keys.words
        return Item(keys.number, max(words.nbytes, 1), lambda buffer: self._load_keys(words, buffer))

    def weights(self, layer: EncodedLayer, form: Form) -> Item:
        """The item for a layer's weights; plans that share an array share the item."""
        words = layer.words
        load: Callable[[Buffer], None] = lambda buffer: self._load(words, buffer)  # noqa: E731
        nbytes = words.nbytes
        if form == "compact":
            nbytes //= len(self._preset.data_primes)
            load = lambda buffer: self._load_compact(layer, buffer)  # noqa: E731
        return Item((words.ctypes.data, words.nbytes, form == "compact"), nbytes, load, source=words)

    def _constants(self, plan: Plan) -> tuple[Constants, list[Buffer]]:
        giant = self.upload(steps_of(plan).giant)
        if isinstance(plan, PackedPlan):
            if plan.width not in self._packed:
                words, turns = packed_words(self._preset, plan.width)
                self._packed[plan.width] = self.upload(words), self.upload(turns)
            steps = self.upload(np.array(plan.giant_rotations, dtype=np.int32))
            own = [giant, *self._packed[plan.width], steps]
        else:
            todo = schedule(plan)
            own = [giant, self.upload(todo.source), self.upload(todo.groups)]
        addresses = [Address(buffer.address) for buffer in own]
        return Constants(Address(self.tables.address), addresses[0], tuple(addresses[1:])), own

    def upload(self, array: NDArray[Any]) -> Buffer:
        """A buffer that holds ``array``."""
        buffer = self._device.allocate(array.nbytes)
        self._load(array, buffer)
        return buffer

    def _load(self, array: NDArray[Any], buffer: Buffer) -> None:
        whole = np.ascontiguousarray(array)  # lives until the copy is done
        with self._lock, self._lane.active():
            self._lane.copy_in(Address(buffer.address), whole)
            self._lane.wait()

    def _load_keys(self, words: NDArray[np.uint32], buffer: Buffer) -> None:
        """Upload and prepare one element at a time: its raw words need room only meanwhile."""
        if not words.size:
            return
        words = np.ascontiguousarray(words)
        n, primes, polynomials = self._preset.ring_degree, len(self._preset.primes), words[0].size
        polynomials //= n * primes
        raw = self._device.allocate(words[0].nbytes)
        with self._lock, self._lane.active():
            for i, element in enumerate(words):
                target = Address(buffer.address + i * words[0].nbytes)
                self._lane.copy_in(Address(raw.address), element)
                arguments = (Address(self.tables.address), Address(raw.address), target)
                grid = (n // 256, primes, polynomials)
                self._lane.launch("prepare_keys", grid, (256, 1, 1), 0, *arguments)
            self._lane.wait()

    def _load_compact(self, layer: EncodedLayer, buffer: Buffer) -> None:
        products = layer.words.shape[2]
        raw, failed = self._device.allocate(layer.words.nbytes), self.upload(np.zeros(1, dtype=np.int32))
        outcome, words = np.zeros(1, dtype=np.int32), np.ascontiguousarray(layer.words)
        with self._lock, self._lane.active():
            self._lane.copy_in(Address(raw.address), words)
            arguments = (Address(self.tables.address), Address(raw.address), Address(buffer.address))
            threads = (thread_count(self._preset), 1, 1)
            shared = transform_bytes(self._preset)
            failure = Address(failed.address)
            self._lane.launch("compact_weights", (products, 1, 1), threads, shared, *arguments, failure)
            self._lane.copy_out(outcome, failure)
            self._lane.wait()
        if outcome[0]:
            raise NotCompactError(layer.name)
