"""What a GPU's bandwidth and multiplier allow for one evaluation: a lower bound on its time, from counts alone.

Bytes are those that must come from or go to memory once: weights, keys, inputs and replies; what kernels hand to each
other may stay in the second-level cache. Multiplications are of 32 bits: three a butterfly (half a word times log2 N
stages), one a product of a weight or key (with its 64-bit accumulation counted as one). Launches cost extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from fhe_llm.evaluator.cuda import LANES
from fhe_llm.evaluator.cuda_sequence import layout, row_bytes, steps_of
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan, plan_elements
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.params import Preset, preset


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes and 32-bit multiplications a second; seconds from one kernel's end to the next one's start in a graph."""

    bandwidth: float
    multiplications: float
    gap: float


H100_SXM = Machine(bandwidth=3.35e12, multiplications=132 * 64 * 1.755e9, gap=1.5e-6)
"""From the data sheet (bandwidth, multiprocessors, boost clock) and the programming guide (64 multiplications a cycle);
the gap is an assumption."""


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of one evaluation of several jobs."""

    bytes: int
    multiplications: int
    kernels: int

    def seconds(self, machine: Machine) -> float:
        """The larger of the two bounds, and the gaps between kernels."""
        bound = max(self.bytes / machine.bandwidth, self.multiplications / machine.multiplications)
        return bound + self.kernels * machine.gap


def work(plan: Plan, jobs: int, clients: int) -> Work:
    """What the kernels do for ``jobs`` jobs of ``clients`` clients; repeated inverse transforms count each time."""
    parameters = preset(plan.preset_name)
    n, limbs, s = parameters.ring_degree, len(parameters.data_primes), steps_of(plan)
    babies = jobs * s.inputs * (s.babies - 1)
    turning = jobs * sum(1 for k in s.giant if k)
    extensions = limbs * limbs * (jobs * s.inputs * (s.babies > 1) + turning)
    transforms = 2 * extensions + babies * 2 * (1 + limbs) + jobs * s.outputs * 2 * (limbs + 1)
    key_products = 2 * limbs * (limbs + 1) * n * (babies + turning)
    products = 2 * limbs * n * plan.product_count * jobs
    pair = 2 * limbs * n * 4
    keys = clients * len(set(s.keys) - {0}) * limbs * 2 * (limbs + 1) * n * 4
    replies = jobs * s.outputs * 2 * parameters.reply_limbs * n * 4
    if isinstance(plan, PackedPlan):
        weights = 4 * plan.in_features * plan.out_features
        chunks = -(-s.groups * row_bytes(parameters, plan) // (32 << 20))
        kernels = 6 + 2 * chunks
    else:
        weights, kernels = 4 * limbs * n * plan.product_count, 7
    return Work(
        bytes=weights + keys + jobs * s.inputs * pair + replies,
        multiplications=int(transforms * 1.5 * n * log2(n)) + key_products + products,
        kernels=kernels,
    )


def products_share(plan: LinearPlan, machine: Machine) -> float:
    """The share of the bandwidth that weights can reach in the products of one job: 1 where nothing else binds."""
    parameters = preset(plan.preset_name)
    words = len(parameters.data_primes) * parameters.ring_degree * plan.product_count
    reading = 4 * words / machine.bandwidth
    return reading / max(reading, 2 * words / machine.multiplications)


def memory_estimate(
    parameters: Preset, positions: Sequence[Sequence[Plan]], layers: int, sessions: int, jobs: int
) -> int:
    """Bytes of ``layers`` layers' weights at each position (as words, and once more for its packed plans), of the keys
    of ``sessions`` clients, and of the scratch memory of lanes that evaluate ``jobs`` single tokens each at once."""
    n, limbs = parameters.ring_degree, len(parameters.data_primes)
    weights = 0
    for single, *packed in positions:
        weights += 4 * limbs * n * single.product_count
        weights += 4 * single.in_features * single.out_features * bool(packed)
    key = limbs * 2 * (limbs + 1) * n * 4
    keys = sessions * key * len(plan_elements(parameters, [plan for plans in positions for plan in plans]))
    scratch = max(layout(parameters, plans[0], max(1, jobs), False).nbytes for plans in positions)
    return layers * weights + keys + LANES * scratch
