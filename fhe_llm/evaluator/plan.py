"""The planner: how one matrix-vector product is laid out over slots, rotations and products.

A *folded* problem has ``rows`` output rows and ``columns`` input columns. Fold ``input`` packs two inputs into one
complex slot (z_j = x_j + i x_{j+h}, weights W_{o,j} - i W_{o,j+h}; the real part is the answer); fold ``output`` packs
two outputs (weights W_o + i W_{o+h}, real inputs). Slots are cut into segments; each repeats the columns periodically
from its own offset and collects every row over its own share of the columns, so that one product covers
several diagonals; the client adds the segments together.

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

PLAN_VERSION: Final = 1
MAX_FEATURES: Final = 1 << 18
BABY_STEPS: Final = (16, 64)
"""Few choices, so that the giant steps of different layers coincide and share keys."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Relative costs of one operation on one ciphertext, in microseconds on two cores."""

    rotation: float = 25.0
    product: float = 3.5
    reply: float = 450.0
    request: float = 900.0


@dataclass(frozen=True)
class LinearPlan:
    """Layout and schedule of y = W x for one preset; equal plans have equal ``plan_id``.

    The rotations used are first_rotation ... first_rotation + diagonals - 1, with ``first_rotation`` <= 0.
    """

    preset_name: str
    in_features: int
    out_features: int
    fold: Fold
    input_ciphertexts: int
    output_ciphertexts: int
    segments: int
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
        return babies + self.output_ciphertexts * (len(self.giant_rotations) - 1)

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
        slot = np.arange(self.slots)
        width = self.slots // self.segments
        segment = np.minimum(slot // width, self.segments - 1)
        column = (slot - segment * width + segment * self._share) % self.columns_per_input
        blocks = np.arange(self.input_ciphertexts)[:, None] * self.columns_per_input + column[None, :]
        return np.where(blocks < self.folded_columns, blocks, -1).astype(np.int32)

    def output_map(self) -> NDArray[np.int32]:
        """[output_ciphertexts, slots]: folded row each slot answers, -1 for none."""
        out = np.full((self.output_ciphertexts, self.slots), -1, dtype=np.int32)
        width = self.slots // self.segments
        for block in range(self.output_ciphertexts):
            first = block * self.rows_per_output
            count = min(self.rows_per_output, self.folded_rows - first)
            for segment in range(self.segments):
                out[block, segment * width : segment * width + count] = np.arange(first, first + count)
        return out

    def diagonal_maps(self, source: int, target: int) -> NDArray[np.int32]:
        """[diagonals, slots]: folded column that rotation first_rotation + d makes slot s multiply with; -1 for none.

        Every pair (row, column) of input ``source`` and output ``target`` occurs exactly once over all d and s.
        """
        columns, rows = self.input_map()[source], self.output_map()[target]
        low = source * self.columns_per_input
        covered = np.zeros((self.folded_rows, self.columns_per_input), dtype=bool)
        out = np.full((self.diagonals, self.slots), -1, dtype=np.int32)
        width = self.slots // self.segments
        used = [np.arange(g * width, (g + 1) * width) for g in range(self.segments)]
        used = [slots[rows[slots] >= 0] for slots in used]
        for d in range(self.diagonals):
            rotated = np.roll(columns, -(self.first_rotation + d))
            for slots in used:  # within one segment every row occurs once
                wanted = slots[rotated[slots] >= 0]
                r, c = rows[wanted], rotated[wanted]
                fresh = ~covered[r, c - low]
                covered[r[fresh], c[fresh] - low] = True
                out[d, wanted[fresh]] = c[fresh]
        held = np.unique(columns[columns >= 0]) - low
        if not covered[np.unique(rows[rows >= 0])][:, held].all():
            raise ParameterError(
                "cannot schedule the plan: some weights are not covered. Report this plan as a bug."
            )
        return out

    @property
    def _share(self) -> int:
        """Columns one segment covers."""
        return ceil(self.columns_per_input / self.segments)


@lru_cache(maxsize=512)
def plan_linear(parameters: Preset, out_features: int, in_features: int) -> LinearPlan:
    """The cheapest plan for a product of W [out_features, in_features]; deterministic.

    Raises :class:`ParameterError` for sizes outside 1 ... 2^18.
    """
    if not (1 <= out_features <= MAX_FEATURES and 1 <= in_features <= MAX_FEATURES):
        raise ParameterError(
            f"cannot plan a {out_features} x {in_features} product: sizes must be 1 to {MAX_FEATURES}. Split the layer."
        )
    return best_plan(parameters, out_features, in_features, CostModel())


def best_plan(parameters: Preset, out_features: int, in_features: int, model: CostModel) -> LinearPlan:
    """The plan that is cheapest under ``model``. For comparing models only: both sides of a round must use
    :func:`plan_linear`."""
    candidates = _candidates(parameters, out_features, in_features)
    return min(candidates, key=lambda plan: (plan.cost(model), plan.baby_steps, plan.plan_id))


def galois_elements(parameters: Preset, plans: Iterable[LinearPlan]) -> tuple[int, ...]:
    """Galois elements 3^k mod 2N that the plans' rotations need, ascending."""
    steps = {k for plan in plans for k in plan.rotations}
    return tuple(sorted(pow(3, k, 2 * parameters.ring_degree) for k in steps))


def _candidates(parameters: Preset, out_features: int, in_features: int) -> Iterable[LinearPlan]:
    slots = parameters.slots
    folds: tuple[Fold, ...] = ("input", "output")
    for fold in folds:
        rows = ceil(out_features / 2) if fold == "output" else out_features
        columns = ceil(in_features / 2) if fold == "input" else in_features
        inputs = ceil(columns / slots)
        for outputs in range(ceil(rows / slots), ceil(rows / slots) + 2):
            for segments in range(1, ceil(columns / inputs) + 1):
                shape = _fit(slots, ceil(rows / outputs), ceil(columns / inputs), segments)
                if shape is None:
                    break
                first, diagonals = shape
                for baby in BABY_STEPS:
                    yield LinearPlan(
                        preset_name=parameters.name,
                        in_features=in_features,
                        out_features=out_features,
                        fold=fold,
                        input_ciphertexts=inputs,
                        output_ciphertexts=outputs,
                        segments=segments,
                        first_rotation=first,
                        diagonals=diagonals,
                        baby_steps=baby,
                    )


def _fit(slots: int, rows: int, columns: int, segments: int) -> tuple[int, int] | None:
    """First rotation and number of diagonals, or None where the segments are too narrow.

    One segment may read past the end of the slots: the columns that the wrap spoils are reached by negative rotations
    instead, one for every slot of overhang, as long as these do not wrap themselves.
    """
    width = slots // segments
    share = ceil(columns / segments)
    overhang = rows + share - 1 - width
    if overhang <= 0 or (segments == 1 and slots % columns == 0):
        return (0, share)
    return (-overhang, share + overhang) if segments == 1 else None
