"""Deterministic frames that any language can build from docs/wire-format.md: no random generator involved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fhe_llm.params import PRESETS, Preset
from fhe_llm.wire.frame import ErrorFrame, EvaluateReply, EvaluateRequest, Frame, KeyFrame, PhaseMicroseconds

GOLDEN = Path(__file__).parent / "golden"
KEY_ID, MODEL_DIGEST, PLAN_ID = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
LAYER = "layers.0.qkv"
KNUTH = 2654435761


def counted_words(shape: tuple[int, ...], primes: tuple[int, ...]) -> NDArray[np.uint32]:
    """uint32 [*shape, len(primes), N]: word i from 1 on is (i·2654435761 mod 2^32) mod prime."""
    *outer, degree = shape
    size = int(np.prod(outer)) * len(primes) * degree
    counted = (np.arange(1, size + 1, dtype=np.uint64) * np.uint64(KNUTH) & np.uint64(0xFFFFFFFF)).reshape(
        *outer, len(primes), degree
    )
    return (counted % np.array(primes, dtype=np.uint64)[:, None]).astype(np.uint32)


def request(
    preset: Preset, *, jobs: int = 1, n_in: int = 1, seeded: bool = False, request_id: int = 7, drop0: int = 0
) -> EvaluateRequest:
    """A request whose seeds, if any, are the bytes 0, 1, 2, … in order."""
    parts = 1 if seeded else 2
    words = counted_words((jobs, n_in, parts, preset.ring_degree), preset.data_primes)
    seeds = (np.arange(jobs * n_in * 32) % 251).astype(np.uint8).reshape(jobs, n_in, 32) if seeded else None
    return EvaluateRequest(preset, request_id, KEY_ID, MODEL_DIGEST, PLAN_ID, LAYER, words, seeds, drop0)


def reply(
    preset: Preset, *, jobs: int = 1, n_out: int = 1, limbs: int = 1, drop0: int = 0, drop1: int = 0
) -> EvaluateReply:
    """A reply that spent 1, 2, 3, 4 and 10 microseconds in its phases."""
    words = counted_words((jobs, n_out, 2, preset.ring_degree), preset.data_primes[:limbs])
    return EvaluateReply(preset, 7, words, PhaseMicroseconds(1, 2, 3, 4, 10), drop0, drop1)


def keys(preset: Preset, elements: tuple[int, ...] = (3,)) -> KeyFrame:
    """Keys for a few elements."""
    shape = (len(elements), len(preset.data_primes), 2, preset.ring_degree)
    return KeyFrame(preset, elements, counted_words(shape, preset.primes))


def golden_frames() -> dict[str, Frame]:
    """The frames behind ``golden/*.bin``, by file stem."""
    preset = PRESETS["default"]
    return {
        "request_full": request(preset),
        "request_seeded": request(preset, seeded=True),
        "request_trimmed": request(preset, seeded=True, drop0=5),
        "reply": reply(preset, drop0=4, drop1=1),
        "keys": keys(preset),
        "error": ErrorFrame(7, "unknown_key", "cannot find key: it was evicted. Upload it again.", 250),
    }
