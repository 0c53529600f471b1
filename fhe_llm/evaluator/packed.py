"""Packed plans on the CPU: baby steps for all tokens, weights encoded in passing, products, giant steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator import keyswitch, linear, packed_encoding, packed_linear
from fhe_llm.evaluator.arena import Arena
from fhe_llm.evaluator.contract import EncodedLayer, Job, Words
from fhe_llm.evaluator.crew import Crew, Scratch
from fhe_llm.evaluator.packed_plan import PackedPlan
from fhe_llm.evaluator.packed_scale import packed_log_weight_scale
from fhe_llm.evaluator.packed_tile import TILE_COLUMNS, TILE_ROWS
from fhe_llm.evaluator.rns import ring_tables
from fhe_llm.evaluator.schedule import check_weights
from fhe_llm.params import Preset

GROUPS_PER_PASS: Final = 2
"""Groups of tokens that share one encoding of the weights; bounds their rotated inputs (25 MB each, 1536 features)."""
LINE_WORDS: Final = 16
SHARES: Final = 6
"""Shares of a phase for each thread."""
CHUNK_BYTES: Final = 8 << 20
"""Encoded weights that exist at a time: they stay in the cache until they are used."""


def encode_packed(preset: Preset, name: str, plan: PackedPlan, weights: NDArray[np.float32]) -> EncodedLayer:
    """The layer as float weights [out_features, in_features] (not copied); raises :class:`ParameterError`."""
    check_weights(name, plan, weights)
    log_scale = packed_log_weight_scale(preset, plan, weights)
    packed_encoding.check_scale(preset, name, log_scale, weights)
    return EncodedLayer(name, plan, log_scale, np.ascontiguousarray(weights, dtype=np.float32))


class PackedEngine:
    """Evaluates packed layers with the threads of ``crew``; thread-safe. Jobs hold words in SEAL order."""

    def __init__(
        self, preset: Preset, tables: keyswitch.EngineTables, special_mod: NDArray[np.uint32], crew: Crew
    ) -> None:
        self._preset = preset
        self._tables = tables
        self._ring = ring_tables(preset.ring_degree, preset.primes)
        self._special_mod = special_mod
        self._crew = crew

    def evaluate(
        self, layer: EncodedLayer, jobs: Sequence[Job], arena: Arena, spent: NDArray[np.float64]
    ) -> list[NDArray[np.uint32]]:
        """One reply [output_ciphertexts, 2, reply limbs, N] for each of at most ``GROUPS_PER_PASS`` jobs.

        To be called within an evaluation of the crew, with its arena. Adds the seconds of its phases to ``spent``.
        Exact: which jobs share a call changes no bit.
        """
        plan = _packed(layer)
        started = perf_counter()
        limbs, n = len(self._preset.data_primes), self._preset.ring_degree
        units, columns = limbs * plan.width, 4 * plan.rows * len(jobs)
        depth = plan.input_ciphertexts * plan.babies
        x = arena.array(np.int32, units, columns // TILE_COLUMNS, depth, TILE_COLUMNS)
        inputs = arena.words(plan.input_ciphertexts, 2, limbs, n)
        digits = arena.words(plan.input_ciphertexts, limbs, limbs + 1, n)
        for j, job in enumerate(jobs):
            self._baby_steps(plan, job, x, 4 * plan.rows * j, inputs, digits)
        turned = perf_counter()
        # the last chunk begins at any row and is written in whole tiles
        rows = plan.output_ciphertexts * len(plan.giant_rotations) + TILE_ROWS - 1
        products = arena.words(rows, units * columns + LINE_WORDS)
        self._products(layer, x, products, arena)
        multiplied = perf_counter()
        replies = self._giant_steps(plan, jobs, products)
        spent += (turned - started, multiplied - turned, perf_counter() - multiplied)
        return replies

    def _baby_steps(
        self,
        plan: PackedPlan,
        job: Job,
        x: NDArray[np.int32],
        first_column: int,
        inputs: Words,
        digits: Words,
    ) -> None:
        limbs, n = len(self._preset.data_primes), self._preset.ring_degree
        rows, starts = _key_rows(job, range(plan.babies)), np.arange(0, n, plan.width, dtype=np.int32)

        def decompose(first: int, last: int, s: Scratch) -> None:
            for task in range(first, last):
                i, digit = divmod(task, limbs)
                keyswitch.decompose_digit(inputs[i, 1], digit, digits[i, digit], s.workspace, self._tables)

        def turn(first: int, last: int, s: Scratch) -> None:
            keys, turned, w = job.keys.words, s.ciphertexts[0], s.workspace
            packed_linear.baby_steps(
                inputs, digits, keys, rows, starts, x, first_column, first, last, turned, w, self._tables
            )

        np.take(job.inputs, self._ring.slot_from_seal, axis=-1, out=inputs)
        self._split(len(inputs) * limbs, decompose)
        self._split(len(inputs) * plan.babies, turn)

    def _products(
        self, layer: EncodedLayer, x: NDArray[np.int32], products: NDArray[np.uint32], arena: Arena
    ) -> None:
        """Encode some rows of weights, multiply them with every column, go on. Chunks are whole tiles of rows."""
        plan = _packed(layer)
        tables = packed_encoding.packed_tables(plan.preset_name, plan.width)
        depth, units = x.shape[2], x.shape[0]
        scale, steps = 2.0**layer.log_weight_scale, packed_encoding.giant_steps(plan)
        total = plan.output_ciphertexts * len(plan.giant_rotations)
        most = max(1, CHUNK_BYTES // (4 * units * depth * TILE_ROWS)) * TILE_ROWS
        room = arena.array(np.int32, _whole_tiles(min(most, total)), units * depth + LINE_WORDS)
        for base in range(0, total, most):
            rows = min(most, total - base)
            v = room[: _whole_tiles(rows)]

            def encode(first: int, last: int, s: Scratch, base: int = base, v: NDArray[np.int32] = v) -> None:
                packed_encoding.encode_rows(
                    layer.words, scale, plan.babies, steps, base, v, first, last, s.reals, s.lanes, tables
                )

            def multiply(
                first: int, last: int, _: Scratch, base: int = base, v: NDArray[np.int32] = v
            ) -> None:
                packed_linear.multiply(v, x, products, base, first, last, tables)

            self._split(rows, encode)
            self._split(units, multiply)

    def _giant_steps(
        self, plan: PackedPlan, jobs: Sequence[Job], products: NDArray[np.uint32]
    ) -> list[NDArray[np.uint32]]:
        outputs = plan.output_ciphertexts
        shape = len(jobs), outputs, 2, self._preset.reply_limbs, self._preset.ring_degree
        replies = np.empty(shape, dtype=np.uint32)
        steps, columns = packed_encoding.giant_steps(plan), 4 * plan.rows * len(jobs)
        starts = np.arange(plan.width, dtype=np.int32) * np.int32(columns)
        key_rows = [_key_rows(job, plan.giant_rotations) for job in jobs]

        def turn(first: int, last: int, s: Scratch) -> None:
            (collected, direct), w = s.ciphertexts, s.workspace
            for task in range(first, last):
                j, output = divmod(task, outputs)
                packed_linear.giant_steps(
                    products[output * len(steps) : (output + 1) * len(steps)],
                    4 * plan.rows * j,
                    columns,
                    starts,
                    jobs[j].keys.words,
                    key_rows[j],
                    steps,
                    collected,
                    direct,
                    w,
                    self._tables,
                )
                for c in range(2):
                    linear.finish(
                        w.switched[c], direct[c], replies[j, output, c], self._special_mod, w, self._tables
                    )

        self._split(len(jobs) * outputs, turn)
        return list(replies)

    def _split(self, count: int, work: Callable[[int, int, Scratch], None]) -> None:
        """Run ``work(first, last, scratch)`` over 0 ... count: threads take one small share after another, so that none
        waits long for a last one."""
        size = max(1, count // (SHARES * self._crew.threads))
        starts = iter(range(0, count, size))
        lock = threading.Lock()

        def take_shares(scratch: Scratch) -> None:
            while True:
                with lock:
                    first = next(starts, None)
                if first is None:
                    return
                work(first, min(first + size, count), scratch)

        self._crew.run(take_shares)


def _packed(layer: EncodedLayer) -> PackedPlan:
    assert isinstance(layer.plan, PackedPlan)  # noqa: S101  the evaluator's dispatch
    return layer.plan


def _whole_tiles(rows: int) -> int:
    """Rows of a buffer that whole tiles fill; what the surplus ones hold is never read."""
    return -(-rows // TILE_ROWS) * TILE_ROWS


def _key_rows(job: Job, steps: Sequence[int]) -> NDArray[np.int64]:
    """Rows of the job's keys for rotations by ``steps``; 0 needs none."""
    return np.array([job.keys.index[k] if k else -1 for k in steps], dtype=np.int64)
