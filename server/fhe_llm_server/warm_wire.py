"""The wire's kernels compile on first use; this uses them before a client does."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fhe_llm.params import Preset
from fhe_llm.wire import frame as wire
from fhe_llm.wire.composed import composable
from fhe_llm_server.inputs import ciphertexts


def warm_wire(preset: Preset) -> None:
    """Encode and decode one frame of each kind, so that no client waits for kernels to compile."""
    rng = np.random.default_rng(0)
    limbs, degree = len(preset.data_primes), preset.ring_degree

    def words(*shape: int) -> NDArray[np.uint32]:
        return rng.integers(1, 1 << 20, shape, dtype=np.uint32)

    seed = hashlib.sha256(b"warm").digest()
    request = (preset, 0, seed, seed, seed, "warm")
    drop0 = 1 if composable(preset) else 0
    seeds = np.frombuffer(seed, np.uint8).reshape(1, 1, 32)
    frames: tuple[wire.Frame, ...] = (
        wire.EvaluateRequest(*request, words(1, 1, 2, limbs, degree)),
        wire.EvaluateRequest(*request, words(1, 1, 1, limbs, degree), seeds, drop0),
        wire.EvaluateReply(preset, 0, words(1, 1, 2, preset.reply_limbs, degree)),
        wire.KeyFrame(preset, (3,), words(1, limbs, 2, limbs + 1, degree)),
    )
    for frame in frames:
        decoded = wire.decode(wire.encode(frame))
        if isinstance(decoded, wire.EvaluateRequest):
            ciphertexts(decoded)
