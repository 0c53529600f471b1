"""One encrypted product y = W x: this engine against TenSEAL's ``mm`` on the same matrix in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.cli.bench.record import plain, record, timed, usable_cores
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.packing import pack, unpack
from fhe_llm.errors import FrameError
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.plan import LinearPlan, galois_elements, plan_linear
from fhe_llm.params import Preset
from fhe_llm.params import preset as find_preset
from fhe_llm.wire import frame as wire

SHAPES: Final = ((768, 768), (1536, 576))
"""Rows and columns measured where none are asked for: the first one's figures stand at the top of the record."""
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
    first, *others = [_compare(preset, rows, columns, repeats, threads) for rows, columns in shapes]
    return record("product", preset, {"threads": threads, **first, "others": others})


def _compare(preset: Preset, rows: int, columns: int, repeats: int, threads: int) -> dict[str, Any]:
    """Both on one matrix, one after the other."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)
    x = rng.standard_normal((1, columns)).astype(np.float32)
    with KeyRing.generate(preset) as ring:
        ours = measure_ours(prepare(ring, weights, threads), x, weights, repeats)
    theirs = _measure_tenseal(x[0], weights, max(1, repeats // 5))
    return {
        "shape": {"out_features": rows, "in_features": columns},
        "fhe_llm": ours,
        "tenseal_mm": theirs,
        "ratio_to_tenseal": theirs["product"]["median"] / ours["product"]["median"],
    }


def default_threads() -> int:
    """One thread per usable core."""
    return usable_cores()


def prepare(ring: KeyRing, weights: NDArray[np.float32], threads: int) -> Parts:
    """Plan, keys and encoded weights for one matrix."""
    plan = plan_linear(ring.preset, *weights.shape)
    frame = wire.decode(ring.evaluation_keys(galois_elements(ring.preset, [plan]) or (3,)).frame)
    if not isinstance(frame, wire.KeyFrame):
        raise FrameError("cannot use the evaluation keys: they are not a key frame. Report this as a bug.")
    evaluator = CpuEvaluator(ring.preset, threads)
    keys = evaluator.prepare_keys(EvaluationKeys(ring.preset, frame.elements, frame.words))
    return Parts(plan, Cipher(ring), evaluator, evaluator.encode("bench", plan, weights), keys)


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
    slots, scale = pack(parts.plan, x)
    job = Job(parts.keys, parts.cipher.encrypt(slots[0]))
    log_scale = reply_log_scale(parts.cipher.preset, parts.layer.log_weight_scale)

    def product() -> NDArray[np.uint32]:
        reply: NDArray[np.uint32] = parts.evaluator.evaluate(parts.layer, [job])[0][0]
        return reply

    def decrypt() -> NDArray[np.float32]:
        return unpack(parts.plan, parts.cipher.decrypt(reply, log_scale)[None], scale)

    reply = product()
    phases = []
    for _ in range(repeats):
        before()
        phases.append(parts.evaluator.evaluate(parts.layer, [job])[1])
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


def _measure_tenseal(x: NDArray[np.float32], weights: NDArray[np.float32], repeats: int) -> dict[str, Any]:
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
    return {
        "ring_degree": TENSEAL_RING_DEGREE,
        "prime_bits": list(TENSEAL_PRIME_BITS),
        "encrypt": plain(timed(lambda: ts.ckks_vector(context, values), repeats)),
        "product": plain(timed(product, repeats)),
        "decrypt": plain(timed(result.decrypt, repeats)),
        "log2_error": math.log2(error),
    }


def reply_log_scale(preset: Preset, log_weight_scale: float) -> float:
    """log2 of the scale of a reply's plaintext: both scales, less the primes that rescaling dropped."""
    dropped = preset.data_primes[preset.reply_limbs :]
    return preset.log_input_scale + log_weight_scale - sum(math.log2(p) for p in dropped)


def _relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest error relative to the largest output."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
