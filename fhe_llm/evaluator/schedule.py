"""From a plan to an order of products, and from weights to the plaintexts of that order."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator.contract import EncodedLayer
from fhe_llm.evaluator.encoding import coefficients_to_words, slots_to_coefficients
from fhe_llm.evaluator.keyswitch import to_montgomery
from fhe_llm.evaluator.linear import BLOCK
from fhe_llm.evaluator.packed_plan import Plan
from fhe_llm.evaluator.plan import LinearPlan
from fhe_llm.evaluator.rns import ring_tables, to_slot_order_ntt
from fhe_llm.evaluator.scale import log_weight_scale
from fhe_llm.params import Preset

DiagonalMaps = dict[tuple[int, int], NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Products of one plan, grouped by (output ciphertext, giant step).

    ``source`` [P] is the rotated input (input ciphertext * babies + baby step) of each product, ``diagonal`` [P] its
    diagonal; group g covers products groups[g] ... groups[g + 1] - 1, belongs to output ``target[g]`` and is then
    rotated by ``giant[g]`` slots (0 ... slots - 1).
    """

    source: NDArray[np.int32]
    diagonal: NDArray[np.int32]
    groups: NDArray[np.int32]
    target: NDArray[np.int32]
    giant: NDArray[np.int32]


@lru_cache(maxsize=256)
def schedule(plan: LinearPlan) -> Schedule:
    """The order of products of ``plan``."""
    source, diagonal, groups, target, giant = [], [], [0], [], []
    for out in range(plan.output_ciphertexts):
        for step in plan.giant_rotations:
            for block in range(plan.input_ciphertexts):
                for baby in range(plan.babies):
                    d = step + baby - plan.first_rotation
                    if 0 <= d < plan.diagonals:
                        source.append(block * plan.babies + baby)
                        diagonal.append(d)
            groups.append(len(source))
            target.append(out)
            giant.append(step % plan.slots)
    return Schedule(
        *(np.array(values, dtype=np.int32) for values in (source, diagonal, groups, target, giant))
    )


def encoded_shape(preset: Preset, plan: LinearPlan) -> tuple[int, int, int, int]:
    """Shape of a layer's stored words: [L, N / BLOCK, products, BLOCK]."""
    return (len(preset.data_primes), preset.ring_degree // BLOCK, plan.product_count, BLOCK)


def encode_layer(
    preset: Preset, name: str, plan: LinearPlan, weights: NDArray[np.float32], pool: Executor
) -> EncodedLayer:
    """Encode ``weights`` [out_features, in_features] into the plan's plaintexts; raises :class:`ParameterError`."""
    folded = fold_weights(name, plan, weights)
    log_scale = log_weight_scale(preset, plan, weights)
    maps = diagonal_maps(plan)
    words = np.empty(encoded_shape(preset, plan), dtype=np.uint32)
    groups = range(len(schedule(plan).giant))
    list(pool.map(lambda g: encode_group(preset, plan, folded, log_scale, maps, g, words), groups))
    return EncodedLayer(name=name, plan=plan, log_weight_scale=log_scale, words=words)


def encode_group(
    preset: Preset,
    plan: LinearPlan,
    folded: NDArray[np.complex128],
    log_scale: int,
    maps: DiagonalMaps,
    g: int,
    words: NDArray[np.uint32],
) -> None:
    """Write the plaintexts of group ``g`` to their places in ``words``."""
    todo, tables = schedule(plan), ring_tables(preset.ring_degree, preset.data_primes)
    slots = _group_slots(plan, folded, todo, maps, g)
    residues = coefficients_to_words(slots_to_coefficients(slots, 2.0**log_scale), preset.data_primes)
    stored = to_montgomery(to_slot_order_ntt(residues, tables), preset.data_primes)
    blocks = stored.reshape(len(slots), len(preset.data_primes), -1, BLOCK)
    words[:, :, todo.groups[g] : todo.groups[g + 1], :] = blocks.transpose(1, 2, 0, 3)


def plaintext_slots(plan: LinearPlan, weights: NDArray[np.float32]) -> NDArray[np.complex128]:
    """Slots of every plaintext in the schedule's order, [products, slots]."""
    folded, todo, maps = fold_weights("the weights", plan, weights), schedule(plan), diagonal_maps(plan)
    return np.concatenate([_group_slots(plan, folded, todo, maps, g) for g in range(len(todo.giant))])


def check_weights(name: str, plan: Plan, weights: NDArray[np.float32]) -> None:
    """Raise :class:`ParameterError` unless the weights are finite and of the plan's shape."""
    if weights.shape != (plan.out_features, plan.in_features):
        raise ParameterError(
            f"cannot encode {name}: weights are {weights.shape}, the plan is for "
            f"{(plan.out_features, plan.in_features)}. Plan this layer anew."
        )
    if not np.isfinite(weights).all():
        raise ParameterError(f"cannot encode {name}: some weights are not finite. Check the model file.")


def fold_weights(name: str, plan: LinearPlan, weights: NDArray[np.float32]) -> NDArray[np.complex128]:
    """Complex weights of the folded problem, [folded_rows, folded_columns]; raises :class:`ParameterError`."""
    check_weights(name, plan, weights)
    if plan.fold == "input":
        padded = np.zeros((plan.out_features, 2 * plan.folded_columns))
        padded[:, : plan.in_features] = weights
        return padded[:, : plan.folded_columns] - 1j * padded[:, plan.folded_columns :]
    padded = np.zeros((2 * plan.folded_rows, plan.in_features))
    padded[: plan.out_features] = weights
    return padded[: plan.folded_rows] + 1j * padded[plan.folded_rows :]


def diagonal_maps(plan: LinearPlan) -> DiagonalMaps:
    """:meth:`LinearPlan.diagonal_maps` of every (output, input)."""
    return {
        (out, block): plan.diagonal_maps(block, out)
        for out in range(plan.output_ciphertexts)
        for block in range(plan.input_ciphertexts)
    }


def _group_slots(
    plan: LinearPlan,
    folded: NDArray[np.complex128],
    todo: Schedule,
    maps: DiagonalMaps,
    g: int,
) -> NDArray[np.complex128]:
    """Slots of one group's plaintexts, [products of the group, slots]."""
    out, first, last = int(todo.target[g]), int(todo.groups[g]), int(todo.groups[g + 1])
    rows = plan.output_map()[out]
    slots = np.zeros((last - first, plan.slots), dtype=np.complex128)
    for i, p in enumerate(range(first, last)):
        columns = maps[out, int(todo.source[p]) // plan.babies][todo.diagonal[p]]
        used = np.flatnonzero(columns >= 0)
        slots[i, used] = folded[rows[used], columns[used]]
    # the product happens before the giant rotation brings slot s + giant to s
    return np.roll(slots, int(todo.giant[g]), axis=-1)
