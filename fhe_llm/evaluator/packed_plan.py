"""Plans for many tokens in one ciphertext: token-major layout, one weight polynomial for all tokens.

A ciphertext holds G features of T rows of tokens, G T = N/2: slot t G + f belongs to feature f of row t. A row
carries two tokens, t in the real parts and t + T in the imaginary ones; weights are real, so the two never mix.
Output block o of G features is y_o = sum over inputs i and offsets -G < k < G of u (.) rot(x_i, k + G) with

    u[g] = W[o G + g, i G + g + k] where 0 <= g + k < G, and 0 elsewhere.

The added G keeps every rotation positive (one set of keys for all plans) and moves token t's answer to row t - 1. Slot
vectors of period G are polynomials in X^{N/2G}: G distinct words per prime whatever T is, hence plaintexts can be
made when they are needed. The zeros double the products, but a rotation serves all tokens and the
products run at the multiplier's speed. Why not the other folds: filling the imaginary parts with a second token keeps
every slot busy in both directions (folding features leaves half of one side empty), so fewest ciphertexts travel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.plan import MAX_FEATURES, LinearPlan, check_sizes, plan_linear
from fhe_llm.params import Preset, preset

PACKED_VERSION: Final = 1
GROUP_TOKENS: Final = (16, 32, 64)
"""Tokens that may share ciphertexts. Smaller groups need more rotations than a plan for single tokens."""
BABY_STEPS: Final = ((64, 16), (MAX_FEATURES, 24))
"""Up to this width, this many baby steps: those of the plans for single tokens, so that both need the same keys."""
MAX_CIPHERTEXTS: Final = 255
"""What the wire carries each way for one group."""


@dataclass(frozen=True, slots=True)
class PackedCostModel:
    """Microseconds on two cores of one operation; ``product`` is a ciphertext times a plaintext.

    ``encode`` is what making a plaintext costs for each of its G words, ``streamed`` a product with stored weights.
    ``reply`` and ``request`` are all that a ciphertext costs outside the evaluator. Set by hand at N = 4096 on the kind
    of machine that docs/performance.md names; no record of that is kept, and ``fhe-llm bench calibrate`` does not fit
    them. They choose how a client groups its tokens; plans and their ids do not depend on them.
    """

    rotation: float = 36.0
    product: float = 0.42
    encode: float = 0.0043
    streamed: float = 1.75
    reply: float = 250.0
    request: float = 250.0
    round: float = 2000.0


@dataclass(frozen=True)
class PackedPlan:
    """Layout and schedule of y = W x for up to ``tokens`` vectors x at once; equal plans have equal ``plan_id``."""

    preset_name: str
    in_features: int
    out_features: int
    tokens: int
    baby_steps: int

    @cached_property
    def plan_id(self) -> bytes:
        """SHA-256 of the canonical JSON of the plan; 32 bytes."""
        fields = {"packed_version": PACKED_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).digest()

    @cached_property
    def slots(self) -> int:
        """Complex slots of one ciphertext."""
        return preset(self.preset_name).slots

    @property
    def rows(self) -> int:
        """Rows of tokens, T; each carries two."""
        return self.tokens // 2

    @cached_property
    def width(self) -> int:
        """Features per ciphertext, G."""
        return self.slots // self.rows

    @property
    def input_ciphertexts(self) -> int:
        """Ciphertexts a group sends."""
        return ceil(self.in_features / self.width)

    @property
    def output_ciphertexts(self) -> int:
        """Ciphertexts a group gets back."""
        return ceil(self.out_features / self.width)

    @property
    def babies(self) -> int:
        """Baby rotations 0 ... babies - 1."""
        return self.baby_steps

    @cached_property
    def giant_rotations(self) -> tuple[int, ...]:
        """Giant steps: the multiples of ``baby_steps`` below 2 G that offsets of a block of this shape need."""
        lowest = self.width - min(self.width, self.out_features) + 1
        highest = self.width + min(self.width, self.in_features) - 1
        return tuple(range(lowest // self.baby_steps * self.baby_steps, highest + 1, self.baby_steps))

    @cached_property
    def rotations(self) -> tuple[int, ...]:
        """Rotation steps that need a key, ascending."""
        return tuple(sorted({*range(1, self.babies), *self.giant_rotations} - {0}))

    @property
    def rotation_count(self) -> int:
        """Key switches one evaluation performs."""
        babies = self.input_ciphertexts * (self.babies - 1)
        giants = sum(step != 0 for step in self.giant_rotations)
        return babies + self.output_ciphertexts * giants

    @property
    def product_count(self) -> int:
        """Ciphertext-plaintext products one evaluation performs, those with all-zero plaintexts among them."""
        offsets = len(self.giant_rotations) * self.babies
        return self.input_ciphertexts * self.output_ciphertexts * offsets

    def cost(self, model: PackedCostModel) -> float:
        """Estimated microseconds of one evaluation under ``model``."""
        return (
            model.rotation * self.rotation_count
            + (model.product + model.encode * self.width) * self.product_count
            + model.reply * self.output_ciphertexts
            + model.request * self.input_ciphertexts
            + model.round
        )

    def input_map(self) -> NDArray[np.int32]:
        """[input_ciphertexts, T, G]: feature each slot holds, -1 for none; the same in every row."""
        return self._features(self.input_ciphertexts, self.in_features)

    def output_map(self) -> NDArray[np.int32]:
        """[output_ciphertexts, T, G]: feature each slot answers, -1 for none; row r answers the tokens of row r + 1."""
        return self._features(self.output_ciphertexts, self.out_features)

    def _features(self, ciphertexts: int, features: int) -> NDArray[np.int32]:
        f = np.arange(ciphertexts * self.width).reshape(ciphertexts, 1, self.width)
        used = np.where(f < features, f, -1).astype(np.int32)
        return np.repeat(used, self.rows, axis=1)


Plan = LinearPlan | PackedPlan


@lru_cache(maxsize=512)
def packed_plans(parameters: Preset, out_features: int, in_features: int) -> tuple[PackedPlan, ...]:
    """The groups a layer of shape [out_features, in_features] can be evaluated in, smallest first; deterministic.

    Empty where no group fits the wire. Raises :class:`ParameterError` for sizes outside 1 ... 2^18.
    """
    check_sizes(out_features, in_features)
    plans = [
        PackedPlan(parameters.name, in_features, out_features, tokens, _baby_steps(parameters, tokens))
        for tokens in GROUP_TOKENS
    ]
    return tuple(p for p in plans if max(p.input_ciphertexts, p.output_ciphertexts) <= MAX_CIPHERTEXTS)


def _baby_steps(parameters: Preset, tokens: int) -> int:
    width = 2 * parameters.slots // tokens
    return next(babies for most, babies in BABY_STEPS if width <= most)


def split_tokens(
    single: LinearPlan, packed: Sequence[PackedPlan], count: int
) -> tuple[tuple[Plan, int], ...]:
    """The cheapest way to evaluate ``count`` vectors: (plan, vectors) in order, at most one entry for each plan.

    A packed entry may stand for several groups; the last may be short. Deterministic.
    """
    if not packed or count <= 1:
        return ((single, count),) if count else ()
    largest = packed[-1]
    whole, rest = divmod(count, largest.tokens)
    uses = dict(_cheapest(single, tuple(packed), rest)[1])
    if whole:
        uses[largest] = uses.get(largest, 0) + whole * largest.tokens
    order: list[Plan] = [*reversed(packed), single]
    return tuple((plan, uses[plan]) for plan in order if uses.get(plan))


@lru_cache(maxsize=65536)
def _cheapest(
    single: LinearPlan, packed: tuple[PackedPlan, ...], count: int
) -> tuple[float, tuple[tuple[Plan, int], ...]]:
    """Least cost of ``count`` vectors, fewer than the largest group, and the vectors each plan gets."""
    if count == 0:
        return (0.0, ())
    model = PackedCostModel()
    choices: list[tuple[float, tuple[tuple[Plan, int], ...]]] = [
        (model.round + count * _single_cost(single, model), ((single, count),))
    ]
    for plan in packed:
        taken = min(plan.tokens, count)
        rest = _cheapest(single, tuple(p for p in packed if p.tokens < plan.tokens), count - taken)
        choices.append((plan.cost(model) + rest[0], ((plan, taken), *rest[1])))
    return min(choices, key=lambda choice: choice[0])


def _single_cost(plan: LinearPlan, model: PackedCostModel) -> float:
    return (
        model.rotation * plan.rotation_count
        + model.streamed * plan.product_count
        + model.reply * plan.output_ciphertexts
        + model.request * plan.input_ciphertexts
    )


def layer_plans(parameters: Preset, out_features: int, in_features: int) -> tuple[Plan, ...]:
    """Every plan a layer is offered in: the one for single tokens, then the packed ones, smallest first."""
    return (
        plan_linear(parameters, out_features, in_features),
        *packed_plans(parameters, out_features, in_features),
    )


def plan_elements(parameters: Preset, plans: Iterable[Plan]) -> tuple[int, ...]:
    """Galois elements 3^k mod 2N that the plans' rotations need, ascending."""
    steps = {k for plan in plans for k in plan.rotations}
    return tuple(sorted(pow(3, k, 2 * parameters.ring_degree) for k in steps))
