"""One encrypted product y = W x: this engine against TenSEAL's ``mm`` on the same matrix in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.cli.bench.record import clocked, plain, record, spread, timed, usable_cores
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.packing import pack, unpack
from fhe_llm.errors import FrameError
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job, Timings
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.packed_plan import plan_elements
from fhe_llm.evaluator.plan import LinearPlan, plan_linear
from fhe_llm.params import Preset
from fhe_llm.params import preset as find_preset
from fhe_llm.wire import frame as wire

SHAPES: Final = ((768, 768), (1536, 576))
"""Rows and columns measured where none are asked for: the first one's figures stand at the top of the record."""
TURN: Final = 5
"""Products of ours to one of theirs, which takes a thousand times longer."""
TENSEAL_RING_DEGREE: Final = 8192
TENSEAL_PRIME_BITS: Final = (60, 40, 40, 60)


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything one product of ours needs."""

    plan: LinearPlan
    cipher: Cipher
    evaluator: CpuEvaluator
    layer: EncodedLayer
    keys: Any


def bench_product(
    shapes: Sequence[tuple[int, int]], preset_name: str, repeats: int, threads: int
) -> dict[str, Any]:
    """The record of one product per shape; ``ratio_to_tenseal`` is how many times longer TenSEAL's ``mm`` takes."""
    preset = find_preset(preset_name)
    first, *others = [compare_product(preset, rows, columns, repeats, threads) for rows, columns in shapes]
    return record("product", preset, {"threads": threads, **first, "others": others})


def compare_product(preset: Preset, rows: int, columns: int, repeats: int, threads: int) -> dict[str, Any]:
    """Both on one matrix, in turns: one product of theirs after every few of ours."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)
    x = rng.standard_normal((1, columns)).astype(np.float32)
    with KeyRing.generate(preset) as ring:
        parts = prepare(ring, weights, threads)
        ours, run = measure_ours(parts, x, weights, repeats), product_of(parts, x)
        theirs, their_run = _measure_tenseal(x[0], weights, repeats)
        turns = [(clocked(run, TURN), clocked(their_run, 1)) for _ in range(math.ceil(repeats / TURN))]
        parts.evaluator.close()
    return {
        "shape": {"out_features": rows, "in_features": columns},
        "fhe_llm": {**ours, "product": plain(spread([second for turn, _ in turns for second in turn]))},
        "tenseal_mm": {**theirs, "product": plain(spread([second for _, turn in turns for second in turn]))},
        "ratio_to_tenseal": spread([turn[0] / spread(mine).median for mine, turn in turns]).median,
    }


def prepare(ring: KeyRing, weights: NDArray[np.float32], threads: int) -> Parts:
    """Plan, keys and encoded weights for one matrix."""
    plan = plan_linear(ring.preset, *weights.shape)
    frame = wire.decode(ring.evaluation_keys(plan_elements(ring.preset, [plan]) or (3,)).frame)
    if not isinstance(frame, wire.KeyFrame):
        raise FrameError("cannot use the evaluation keys: they are not a key frame. Report this as a bug.")
    evaluator = CpuEvaluator(ring.preset, threads)
    keys = evaluator.prepare_keys(EvaluationKeys(ring.preset, frame.elements, frame.words))
    return Parts(plan, Cipher(ring), evaluator, evaluator.encode("bench", plan, weights), keys)


def product_of(parts: Parts, x: NDArray[np.float32]) -> Callable[[], tuple[NDArray[np.uint32], Timings]]:
    """One evaluation of the same ciphertext, again at every call: its reply and its phases."""
    job = Job(parts.keys, parts.cipher.encrypt(pack(parts.plan, x)[0][0]))

    def product() -> tuple[NDArray[np.uint32], Timings]:
        replies, timings = parts.evaluator.evaluate(parts.layer, [job])
        return replies[0], timings

    return product


def measure_ours(
    parts: Parts,
    x: NDArray[np.float32],
    weights: NDArray[np.float32],
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Seconds of each step and phase of y = W x for ``x`` [1, in_features], its error and its counts.

    ``before`` runs untimed ahead of every product: to empty the caches, say.
    """
    scale, product = pack(parts.plan, x)[1], product_of(parts, x)
    log_scale = parts.cipher.preset.log_reply_scale(parts.layer.log_weight_scale)

    def decrypt() -> NDArray[np.float32]:
        return unpack(parts.plan, parts.cipher.decrypt(reply, log_scale)[None], scale)

    reply = product()[0]
    phases = []
    for _ in range(repeats):
        before()
        phases.append(product()[1])
    error = _relative_error(decrypt()[0], weights @ x[0])
    return {
        "encrypt": plain(timed(lambda: parts.cipher.encrypt(pack(parts.plan, x)[0][0]), repeats)),
        "product": plain(timed(product, repeats, before)),
        "decrypt": plain(timed(decrypt, repeats)),
        "split_seconds": {
            name: float(np.median([getattr(timings, name) for timings in phases]))
            for name in ("rotations", "products", "finish")
        },
        "log2_error": math.log2(error),
        "rotations": parts.plan.rotation_count,
        "products": parts.plan.product_count,
        "weight_bytes": parts.layer.words.nbytes,
    }


def _measure_tenseal(
    x: NDArray[np.float32], weights: NDArray[np.float32], repeats: int
) -> tuple[dict[str, Any], Callable[[], object]]:
    """Figures of the cheap steps, and the product itself, run once already."""
    import tenseal as ts

    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        TENSEAL_RING_DEGREE,
        coeff_mod_bit_sizes=list(TENSEAL_PRIME_BITS),
        n_threads=usable_cores(),
    )
    context.global_scale = 2.0**40
    context.generate_galois_keys()
    values, matrix = x.tolist(), weights.T.tolist()
    vector = ts.ckks_vector(context, values)
    product: Callable[[], Any] = lambda: vector.mm(matrix)  # noqa: E731
    result = product()
    error = _relative_error(np.array(result.decrypt()), weights @ x)
    figures = {
        "ring_degree": TENSEAL_RING_DEGREE,
        "prime_bits": list(TENSEAL_PRIME_BITS),
        "encrypt": plain(timed(lambda: ts.ckks_vector(context, values), repeats)),
        "decrypt": plain(timed(result.decrypt, repeats)),
        "log2_error": math.log2(error),
    }
    return figures, product


def _relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest error relative to the largest output."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
