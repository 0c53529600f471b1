"""What one evaluation of a plan costs by count: the figures that do not depend on a machine or its load.

The transforms are those of :mod:`fhe_llm.evaluator.keyswitch` and :mod:`fhe_llm.evaluator.linear`, whose docstrings
give them per step; L data primes, M = L + 1 with the special one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.params import preset


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of one evaluation, or of several added up. A transform works on one limb of N words."""

    rotations: int = 0
    products: int = 0
    ntts: int = 0
    input_ciphertexts: int = 0
    output_ciphertexts: int = 0
    weight_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


def counts(plan: LinearPlan) -> Counts:
    """The counts of one evaluation of ``plan``."""
    parameters = preset(plan.preset_name)
    words = plan.product_count * len(parameters.data_primes) * parameters.ring_degree
    return Counts(
        rotations=plan.rotation_count,
        products=plan.product_count,
        ntts=ntt_count(plan),
        input_ciphertexts=plan.input_ciphertexts,
        output_ciphertexts=plan.output_ciphertexts,
        weight_bytes=4 * words,
    )


def ntt_count(plan: LinearPlan) -> int:
    """Transforms, forward and inverse, of one limb each.

    Hoisting decomposes every input once: L inverse and L (M - 1) forward. A baby rotation divides two components by
    the special prime: 2 inverse, 2 L forward. A giant rotation decomposes anew and is divided lazily, once an output:
    2 M inverse at the end, where the reply leaves the domain.
    """
    limbs = len(preset(plan.preset_name).data_primes)
    decompose = limbs + limbs * limbs
    babies = plan.input_ciphertexts * (plan.babies - 1)
    giants = plan.rotation_count - babies
    hoisted = plan.input_ciphertexts * decompose if plan.babies > 1 else 0
    return hoisted + babies * 2 * (1 + limbs) + giants * decompose + plan.output_ciphertexts * 2 * (limbs + 1)
