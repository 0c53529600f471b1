"""The planner: how one matrix-vector product is laid out over slots, rotations and products.

A *folded* problem has ``rows`` output rows and ``columns`` input columns. Fold ``input`` packs two inputs into one
complex slot (z_j = x_j + i x_{j+h}, weights W_{o,j} - i W_{o,j+h}; the real part is the answer); fold ``output`` packs
two outputs (weights W_o + i W_{o+h}, real inputs). The columns repeat over all slots, column s mod C in slot s. All
rows stand in several blocks of slots whose starts are spread over the columns, so that each block collects its share
of the columns and one product covers several diagonals; the client adds the blocks together. Where the repetition
breaks, at the end of the slots, some rows miss columns; slots left over answer these rows once more (``placement``).

With slot s holding column c(s) and answering row r(s), rotation by k brings c(s + k) to s: the pair (r(s), c(s + k)) is
covered. Rotations k = giant + baby are the baby-step/giant-step grid (Halevi and Shoup, "Faster homomorphic
linear transformations in HElib", 2018, section 4). Everything here is pure and deterministic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from math import ceil
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.params import Preset, preset

Fold = Literal["input", "output"]

PLAN_VERSION: Final = 2
MAX_FEATURES: Final = 1 << 18
MAX_REPAIRS: Final = 256
"""Rows that may be answered once more; bounds the time a plan takes to check."""
BABY_STEPS: Final = ((192, 16), (1024, 24), (MAX_FEATURES, 64))
"""Up to how many diagonals which number of baby steps. Few numbers, so that giant steps of different layers share keys:
each costs a client 186 KB at N = 4096."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Relative costs of one operation on one ciphertext, in microseconds on two cores.

    Set by hand, not fitted: a rotation and a product near half their thread time on a 2.6 GHz AVX-512 machine
    (docs/adr/0012), a ciphertext each way as it was when the planner was written. ``fhe-llm bench calibrate`` fits a
    machine: docs/results/calibrate.json has 54, 0, 581 and 581 for two cores of AMD EPYC, which would plan the layers
    of SmolLM2 alike (docs/performance.md). Another cost is another plan, and another plan id on both sides.
    """

    rotation: float = 20.0
    product: float = 1.5
    reply: float = 450.0
    request: float = 900.0


@dataclass(frozen=True)
class LinearPlan:
    """Layout and schedule of y = W x for one preset; equal plans have equal ``plan_id``.

    The rotations used are first_rotation ... first_rotation + diagonals - 1, with ``first_rotation`` <= 0. Each of
    ``offsets`` is the first slot of a block of all rows.
    """

    preset_name: str
    in_features: int
    out_features: int
    fold: Fold
    input_ciphertexts: int
    output_ciphertexts: int
    offsets: tuple[int, ...]
    first_rotation: int
    diagonals: int
    baby_steps: int

    @cached_property
    def plan_id(self) -> bytes:
        """SHA-256 of the canonical JSON of the plan; 32 bytes."""
        text = json.dumps({"version": PLAN_VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    @cached_property
    def slots(self) -> int:
        """Complex slots of one ciphertext."""
        return preset(self.preset_name).slots

    @cached_property
    def segments(self) -> int:
        """Slots of one output ciphertext that answer one row, at most."""
        return max(int(np.bincount(rows[rows >= 0]).max()) for rows in self.output_map())

    @property
    def folded_rows(self) -> int:
        """Rows of the folded problem."""
        return ceil(self.out_features / 2) if self.fold == "output" else self.out_features

    @property
    def folded_columns(self) -> int:
        """Columns of the folded problem."""
        return ceil(self.in_features / 2) if self.fold == "input" else self.in_features

    @property
    def rows_per_output(self) -> int:
        """Folded rows one output ciphertext answers."""
        return ceil(self.folded_rows / self.output_ciphertexts)

    @property
    def columns_per_input(self) -> int:
        """Folded columns one input ciphertext holds."""
        return ceil(self.folded_columns / self.input_ciphertexts)

    @cached_property
    def giant_rotations(self) -> tuple[int, ...]:
        """Giant steps, multiples of ``baby_steps``; 0 among them."""
        last = self.first_rotation + self.diagonals - 1
        return tuple(
            self.baby_steps * m
            for m in range(self.first_rotation // self.baby_steps, last // self.baby_steps + 1)
        )

    @property
    def babies(self) -> int:
        """Baby rotations 0 ... babies - 1 that occur."""
        return self.baby_steps if self.first_rotation < 0 else min(self.baby_steps, self.diagonals)

    @cached_property
    def rotations(self) -> tuple[int, ...]:
        """Rotation steps that need a key, 1 ... slots - 1, ascending."""
        steps = set(range(1, self.babies)) | set(self.giant_rotations)
        return tuple(sorted({k % self.slots for k in steps} - {0}))

    @property
    def rotation_count(self) -> int:
        """Key switches one evaluation performs."""
        babies = self.input_ciphertexts * (self.babies - 1)
        turning = sum(1 for step in self.giant_rotations if step % self.slots)  # a whole turn is none
        return babies + self.output_ciphertexts * turning

    @property
    def product_count(self) -> int:
        """Ciphertext-plaintext products one evaluation performs."""
        return self.input_ciphertexts * self.output_ciphertexts * self.diagonals

    def cost(self, model: CostModel) -> float:
        """Estimated microseconds of one evaluation under ``model``."""
        return (
            model.rotation * self.rotation_count
            + model.product * self.product_count
            + model.reply * self.output_ciphertexts
            + model.request * self.input_ciphertexts
        )

    def input_map(self) -> NDArray[np.int32]:
        """[input_ciphertexts, slots]: folded column each slot holds, -1 for zero."""
        column = np.arange(self.slots) % self.columns_per_input
        blocks = np.arange(self.input_ciphertexts)[:, None] * self.columns_per_input + column[None, :]
        return np.where(blocks < self.folded_columns, blocks, -1).astype(np.int32)

    def output_map(self) -> NDArray[np.int32]:
        """[output_ciphertexts, slots]: folded row each slot answers, -1 for none."""
        rows = placement(
            self.slots,
            self.rows_per_output,
            self.columns_per_input,
            self.offsets,
            self.first_rotation,
            self.diagonals,
        )
        if rows is None:
            raise ParameterError(
                "cannot schedule the plan: some weights are not covered. Report this plan as a bug."
            )
        blocks = np.arange(self.output_ciphertexts)[:, None] * self.rows_per_output + rows[None, :]
        return np.where((rows >= 0) & (blocks < self.folded_rows), blocks, -1).astype(np.int32)

    def diagonal_maps(self, source: int, target: int) -> NDArray[np.int32]:
        """[diagonals, slots]: folded column that rotation first_rotation + d makes slot s multiply with; -1 for none.

        Every pair (row, column) of input ``source`` and output ``target`` occurs exactly once over all d and s.
        """
        columns, rows = self.input_map()[source], self.output_map()[target]
        low, width = source * self.columns_per_input, self.columns_per_input
        covered = np.zeros(self.folded_rows * width, dtype=bool)
        out = np.full((self.diagonals, self.slots), -1, dtype=np.int32)
        for d in range(self.diagonals):
            rotated = np.roll(columns, -(self.first_rotation + d))
            wanted = np.flatnonzero((rows >= 0) & (rotated >= 0))
            pairs = rows[wanted].astype(np.int64) * width + rotated[wanted] - low
            fresh = np.flatnonzero(~covered[pairs])
            _, first = np.unique(
                pairs[fresh], return_index=True
            )  # two slots may answer a row with one column
            fresh = fresh[first]
            covered[pairs[fresh]] = True
            out[d, wanted[fresh]] = rotated[wanted[fresh]]
        return out


@lru_cache(maxsize=256)
def placement(
    slots: int, rows: int, columns: int, offsets: tuple[int, ...], first: int, diagonals: int
) -> NDArray[np.int32] | None:
    """[slots]: the row each slot answers, -1 for none; None where rotations first ... first + diagonals - 1 leave a
    pair uncovered.

    Rows that the end of the slots cuts off from some columns are answered once more by slots outside the blocks, each
    taking the row of which it sees most of what is missing.
    """
    answered = np.full(slots, -1, dtype=np.int32)
    seen = np.zeros((rows, columns), dtype=bool)
    reach = np.arange(first, first + diagonals)
    for offset in offsets:
        own = offset + np.arange(rows)
        answered[own] = np.arange(rows)
        seen[np.arange(rows)[:, None], (own[:, None] + reach) % slots % columns] = True
    lacking = np.flatnonzero(~seen.all(axis=1))
    if len(lacking) > MAX_REPAIRS:
        return None
    missing = ~seen[lacking]
    for spare in np.flatnonzero(answered < 0)[::-1]:
        if not missing.any():
            break
        gains = missing[:, (spare + reach) % slots % columns].sum(axis=1)
        best = int(gains.argmax())
        if gains[best]:
            answered[spare] = lacking[best]
            missing[best, (spare + reach) % slots % columns] = False
    return None if missing.any() else answered


@lru_cache(maxsize=512)
def plan_linear(parameters: Preset, out_features: int, in_features: int) -> LinearPlan:
    """The cheapest plan for a product of W [out_features, in_features]; deterministic.

    Raises :class:`ParameterError` for sizes outside 1 ... 2^18.
    """
    check_sizes(out_features, in_features)
    return best_plan(parameters, out_features, in_features, CostModel())


def check_sizes(out_features: int, in_features: int) -> None:
    """Raise :class:`ParameterError` for sizes outside 1 ... 2^18."""
    if not (1 <= out_features <= MAX_FEATURES and 1 <= in_features <= MAX_FEATURES):
        raise ParameterError(
            f"cannot plan a {out_features} x {in_features} product: sizes must be 1 to {MAX_FEATURES}. Split the layer."
        )


def best_plan(parameters: Preset, out_features: int, in_features: int, model: CostModel) -> LinearPlan:
    """The plan that is cheapest under ``model``. For comparing models only: both sides of a round must use
    :func:`plan_linear`."""
    candidates = list(_candidates(parameters, out_features, in_features))
    for plan in sorted(candidates, key=lambda plan: (plan.cost(model), plan.offsets, plan.plan_id)):
        shape = plan.rows_per_output, plan.columns_per_input, plan.offsets
        if placement(plan.slots, *shape, plan.first_rotation, plan.diagonals) is not None:
            return plan
    raise ParameterError(
        f"cannot plan a {out_features} x {in_features} product: no layout covers it. Report this size as a bug."
    )


def _candidates(parameters: Preset, out_features: int, in_features: int) -> Iterable[LinearPlan]:
    slots = parameters.slots
    folds: tuple[Fold, ...] = ("input", "output")
    for fold in folds:
        rows = ceil(out_features / 2) if fold == "output" else out_features
        columns = ceil(in_features / 2) if fold == "input" else in_features
        inputs = ceil(columns / slots)
        for outputs in range(ceil(rows / slots), ceil(rows / slots) + 2):
            for offsets, first, diagonals in _layouts(slots, ceil(rows / outputs), ceil(columns / inputs)):
                yield LinearPlan(
                    preset_name=parameters.name,
                    in_features=in_features,
                    out_features=out_features,
                    fold=fold,
                    input_ciphertexts=inputs,
                    output_ciphertexts=outputs,
                    offsets=offsets,
                    first_rotation=first,
                    diagonals=diagonals,
                    baby_steps=next(baby for most, baby in BABY_STEPS if diagonals <= most),
                )


@lru_cache(maxsize=512)
def _layouts(slots: int, rows: int, columns: int) -> tuple[tuple[tuple[int, ...], int, int], ...]:
    """Block offsets, first rotation and number of diagonals to choose from; not all of them cover every pair.

    One block, with negative rotations for what the end of the slots cuts off (which always works) or without; then for
    more and more blocks the even spacing with the least largest gap between their columns.
    """
    found: list[tuple[tuple[int, ...], int, int]] = []
    overhang = 0 if slots % columns == 0 else max(0, rows + columns - 1 - slots)
    if overhang:
        found.append(((0,), -overhang, min(columns + overhang, slots)))
    found.append(((0,), 0, columns))
    for blocks in range(2, min(slots // rows, columns) + 1):
        steps = np.arange(rows, (slots - rows) // (blocks - 1) + 1)
        starts = np.sort(steps[:, None] * np.arange(blocks) % columns, axis=1)
        gaps = np.diff(starts, axis=1, append=starts[:, :1] + columns).max(axis=1)
        best = int(gaps.argmin())
        if gaps[best] >= found[-1][2]:
            continue
        offsets = tuple(int(steps[best]) * block for block in range(blocks))
        found.append((offsets, 0, int(gaps[best])))
    return tuple(found)
