"""The launches of one evaluation, in order. They depend on the plan and the number of jobs alone, never on what a round
holds: its addresses lie in the ``round`` array (``kernels/tables.cuh``), so a sequence can be captured and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.cuda_kernels import thread_count, transform_bytes
from fhe_llm.evaluator.device import Address, Argument, Grid, Lane
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.evaluator.schedule import encoded_shape, schedule
from fhe_llm.params import Preset

WARP: Final = 32
TEAMS: Final = 8
TILE: Final = 4 * WARP
ROWS: Final = 4
ROUND_HEAD: Final = 2
STAMPS: Final = 4
"""Start, products, giant steps, rescaling: when each began, in nanoseconds of the device's clock."""
CHUNK_BYTES: Final = 32 << 20
"""Packed weights that are encoded at a time: they stay in the second-level cache until they are multiplied."""
_ALIGNMENT: Final = 256


@dataclass(frozen=True, slots=True)
class Steps:
    """What linear and packed plans have in common: groups of products, each turned by a giant step.

    ``keys`` are the rotations whose keys a job's part of the round holds: baby steps, then a giant step a group.
    """

    inputs: int
    outputs: int
    babies: int
    giant: NDArray[np.int32]
    keys: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Sums that are turned and added."""
        return len(self.giant)


@lru_cache(maxsize=256)
def steps_of(plan: Plan) -> Steps:
    """The steps of a plan; the groups of an output are neighbours."""
    if isinstance(plan, PackedPlan):
        giant = np.tile(np.array(plan.giant_rotations, dtype=np.int32), plan.output_ciphertexts)
    else:
        giant = schedule(plan).giant
    keys = (*range(plan.babies), *giant.tolist())
    return Steps(plan.input_ciphertexts, plan.output_ciphertexts, plan.babies, giant, keys)


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets of a sequence's arrays in one block of memory; what goes in lies together, what goes out too."""

    offsets: dict[str, int]
    sizes: dict[str, int]
    nbytes: int

    def span(self, first: str, last: str) -> tuple[int, int]:
        """(offset, bytes) from the start of one array to the end of another."""
        start = self.offsets[first]
        return start, self.offsets[last] + self.sizes[last] - start


@lru_cache(maxsize=512)
def layout(preset: Preset, plan: Plan, jobs: int, expanded: bool) -> Layout:
    """Where the arrays of ``jobs`` jobs lie; ``expanded`` makes room for weights expanded in passing."""
    s, n, limbs = steps_of(plan), preset.ring_degree, len(preset.data_primes)
    word, pair, wide = 4 * n, 8 * limbs * n, limbs * (limbs + 1) * 4 * n
    sizes = {
        "round": 8 * (ROUND_HEAD + jobs * len(s.keys)),
        "inputs": jobs * s.inputs * pair,
        "rotated": jobs * s.inputs * s.babies * pair,
        "digits": jobs * max(s.inputs, s.groups) * wide,
        "sums": jobs * s.groups * pair,
        "totals": jobs * s.outputs * 2 * (limbs + 1) * word,
        "weights": 0,
        "replies": jobs * s.outputs * 2 * preset.reply_limbs * word,
        "stamps": 8 * STAMPS,
    }
    if isinstance(plan, PackedPlan):
        sizes["weights"] = chunk_rows(preset, plan) * row_bytes(preset, plan)
    elif expanded:
        sizes["weights"] = 4 * int(np.prod(encoded_shape(preset, plan)))
    offsets, at = {}, 0
    for name, size in sizes.items():
        offsets[name] = at
        at += -(-size // _ALIGNMENT) * _ALIGNMENT
    return Layout(offsets, sizes, at)


def row_bytes(preset: Preset, plan: PackedPlan) -> int:
    """Bytes of the plaintext words of one (output, giant step) of a packed plan."""
    return 4 * len(preset.data_primes) * plan.input_ciphertexts * plan.babies * plan.width


def chunk_rows(preset: Preset, plan: PackedPlan) -> int:
    """Rows that are encoded at a time, a multiple of what a block multiplies unless there are fewer."""
    most = max(1, CHUNK_BYTES // (row_bytes(preset, plan) * ROWS * TEAMS)) * ROWS * TEAMS
    return min(most, steps_of(plan).groups)


@dataclass(frozen=True, slots=True)
class Constants:
    """Addresses of a preset's tables and of one plan's."""

    tables: Address
    giant: Address
    products: tuple[Address, ...]
    """Linear plans: source, bounds. Packed ones: words, turns, giant steps."""


class Sequence:
    """One evaluation of ``jobs`` jobs of ``plan`` in the block of memory that starts at ``base``."""

    def __init__(
        self,
        preset: Preset,
        plan: Plan,
        jobs: int,
        expanded: bool,
        multiprocessors: int,
        constants: Constants,
        base: int,
    ) -> None:
        self._preset, self._plan, self._jobs, self._expanded = preset, plan, jobs, expanded
        self._multiprocessors = multiprocessors
        self._constants = constants
        self._steps = steps_of(plan)
        where = layout(preset, plan, jobs, expanded)
        self._at = {name: Address(base + offset) for name, offset in where.offsets.items()}

    def launch(self, lane: Lane) -> None:
        """Ask ``lane`` for everything between the copies."""
        self._rotate_inputs(lane)
        if isinstance(self._plan, PackedPlan):
            self._multiply_packed(lane, self._plan)
        else:
            self._multiply(lane, self._plan)
        self._turn_and_finish(lane)

    def _rotate_inputs(self, lane: Lane) -> None:
        s, at, limbs = self._steps, self._at, len(self._preset.data_primes)
        count = self._jobs * s.inputs
        self._transform(
            lane,
            "place_inputs",
            (limbs * limbs + limbs, count, 1),
            *(self._constants.tables, at["inputs"], at["rotated"], at["digits"], s.babies, at["stamps"]),
        )
        if s.babies > 1:
            blocks = 2 * (s.babies - 1) * count
            slices = limbs if blocks < 2 * self._multiprocessors else 1  # short of blocks: rather wait less
            self._transform(
                lane,
                "rotate_babies",
                (2 * (s.babies - 1), count, slices),
                *(self._constants.tables, at["round"], at["digits"], at["rotated"]),
                *(s.inputs, s.babies, len(s.keys), limbs // slices),
            )

    def _multiply(self, lane: Lane, plan: LinearPlan) -> None:
        s, at, jobs = self._steps, self._at, self._jobs
        n, limbs, products = self._preset.ring_degree, len(self._preset.data_primes), plan.product_count
        source, bounds = self._constants.products
        weights = Address(0)
        if self._expanded:
            weights = at["weights"]
            arguments = (self._constants.tables, at["round"], weights)
            self._transform(lane, "expand_weights", (products, limbs, 1), *arguments)
        together = 4 if jobs > 2 else jobs
        lane.launch(
            f"multiply_{together}",
            (-(-jobs // together), limbs * n // TILE, -(-s.groups // TEAMS)),
            (WARP, TEAMS, 1),
            0,
            *(self._constants.tables, at["round"], weights, source, bounds, at["rotated"], at["sums"]),
            *(jobs, s.inputs * s.babies, s.groups, products, at["stamps"]),
        )

    def _multiply_packed(self, lane: Lane, plan: PackedPlan) -> None:
        s, at, n, limbs = self._steps, self._at, self._preset.ring_degree, len(self._preset.data_primes)
        packed, turns, giant_steps = self._constants.products
        inner, most = s.inputs * s.babies, chunk_rows(self._preset, plan)
        for base in range(0, s.groups, most):
            rows = min(most, s.groups - base)
            lane.launch(
                "encode_rows",
                (8 * -(-inner // 16), rows, 1),
                (plan.width // 2, 1, 1),
                16 * plan.width,
                *(self._constants.tables, at["round"], packed, turns, at["weights"], giant_steps),
                *(len(plan.giant_rotations), s.babies, plan.width, plan.out_features, plan.in_features, base),
            )
            lane.launch(
                "multiply_rows",
                (limbs * n // TILE, -(-rows // (ROWS * TEAMS)), self._jobs),
                (WARP, TEAMS, 1),
                0,
                *(self._constants.tables, at["weights"], at["rotated"], at["sums"]),
                *(rows, s.groups, base, inner, plan.width, at["stamps"]),
            )

    def _turn_and_finish(self, lane: Lane) -> None:
        s, at, jobs = self._steps, self._at, self._jobs
        n, limbs, polynomials = self._preset.ring_degree, len(self._preset.data_primes), 2 * jobs * s.outputs
        tables, giant = self._constants.tables, self._constants.giant
        self._transform(
            lane,
            "decompose_sums",
            (limbs * limbs, s.groups, jobs),
            *(tables, at["sums"], giant, at["digits"], s.groups, at["stamps"]),
        )
        lane.launch(
            "turn_sums",
            ((limbs + 1) * n // TILE, s.outputs, jobs),
            (WARP, TEAMS, 1),
            4 * 2 * TILE * TEAMS,
            *(tables, at["round"], at["sums"], at["digits"], giant, at["totals"], s.babies, s.groups),
        )
        self._transform(lane, "leave_slots", (limbs + 1, polynomials, 1), tables, at["totals"])
        lane.launch(
            "rescale",
            (n // 256, polynomials, 1),
            (256, 1, 1),
            0,
            *(tables, at["totals"], at["replies"], at["stamps"]),
        )

    def _transform(self, lane: Lane, kernel: str, grid: Grid, *arguments: Argument) -> None:
        threads = (thread_count(self._preset), 1, 1)
        lane.launch(kernel, grid, threads, transform_bytes(self._preset), *arguments)
