"""Evaluate request: a layer of a model, a key, and one group of ciphertexts per token vector."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.params import Preset
from fhe_llm.wire import seed as seeds_of
from fhe_llm.wire.composed import composable, composed_format, pack_composed, unpack_composed
from fhe_llm.wire.header import (
    Kind,
    Limits,
    Reader,
    check_count,
    check_words,
    pack_fields,
    refuse,
    seal_frame,
)
from fhe_llm.wire.limbs import MAX_DROP, Words, any_transparent, limb_format, pack, unpack

DIGEST_BYTES: Final = 32
MAX_JOBS: Final = 256
_LAYER: Final = re.compile(rb"[a-z0-9._-]{1,64}")
_IDS: Final = struct.Struct("<Q32s32s32sB")
_COUNTS: Final = struct.Struct("<BHBB")
_FULL, _SEEDED = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class EvaluateRequest:
    """One round: ``jobs`` token vectors for one layer.

    ``words`` is uint32 [jobs, n_in, parts, data limbs, N], residues below their primes: c0 and c1 in NTT form; or,
    where ``seeds`` uint8 [jobs, n_in, 32] expand to c1 in NTT form, c0 alone in the coefficient domain. Then ``drop0``
    (0..20) low bits of c0 stay off the wire, rounded (:mod:`fhe_llm.wire.composed` bounds the error), and the receiver
    gets multiples of 2^drop0; it must be 0 where the preset has other than two data primes. Ids and digests
    are 32 bytes; ``layer`` is 1..64 of ``a-z0-9._-``.
    """

    preset: Preset
    request_id: int
    key_id: bytes
    model_digest: bytes
    plan_id: bytes
    layer: str
    words: Words
    seeds: NDArray[np.uint8] | None = None
    drop0: int = 0

    @property
    def jobs(self) -> int:
        """Token vectors in this request."""
        return int(self.words.shape[0])


def encode_request(frame: EvaluateRequest) -> bytes:
    """The frame's bytes; raises :class:`FrameError` for a field that the format cannot carry."""
    preset, words, seeds = frame.preset, frame.words, frame.seeds
    for digest in (frame.key_id, frame.model_digest, frame.plan_id):
        if len(digest) != DIGEST_BYTES:
            raise refuse(f"an id has {len(digest)} bytes, not {DIGEST_BYTES}", "bad_field", verb="encode")
    layer = frame.layer.encode("utf-8", "replace")
    if not _LAYER.fullmatch(layer):
        raise refuse(f"layer {frame.layer!r} is not 1 to 64 of a-z 0-9 . _ -", "bad_field", verb="encode")
    jobs, n_in = words.shape[:2] if words.ndim == 5 else (0, 0)
    _check_payload(frame, jobs, n_in)
    ids = pack_fields(_IDS, frame.request_id, frame.key_id, frame.model_digest, frame.plan_id, len(layer))
    counts = pack_fields(_COUNTS, _FULL if seeds is None else _SEEDED, jobs, n_in, frame.drop0)
    if frame.drop0:
        payload = pack_composed(words.reshape(-1, *words.shape[-2:]), composed_format(preset, frame.drop0))
    else:
        payload = pack(words, limb_format(preset.data_primes))
    if seeds is not None:
        bodies = payload.reshape(jobs * n_in, -1)
        payload = np.concatenate((seeds.reshape(jobs * n_in, -1), bodies), axis=1)
    return seal_frame(Kind.EVALUATE_REQUEST, preset, ids, layer, counts, payload)


def decode_request(reader: Reader, preset: Preset, limits: Limits) -> EvaluateRequest:
    """Read the body of a request; raises :class:`FrameError` before any large allocation."""
    request_id, key_id, model_digest, plan_id, name_length = reader.fields(_IDS)
    layer = bytes(reader.take(name_length))
    if not _LAYER.fullmatch(layer):
        raise refuse("the layer name is not 1 to 64 of a-z 0-9 . _ -", "bad_field")
    encoding, jobs, n_in, drop0 = reader.fields(_COUNTS)
    if encoding not in (_FULL, _SEEDED):
        raise refuse(f"encoding {encoding} is neither 0 (full) nor 1 (seeded)", "bad_field")
    _check_drop(preset, drop0, seeded=encoding == _SEEDED)
    check_count(jobs, min(limits.max_jobs, MAX_JOBS), "jobs")
    check_count(n_in, 255, "ciphertexts per job")

    parts = 1 if encoding == _SEEDED else 2
    head = seeds_of.SEED_BYTES if encoding == _SEEDED else 0
    each = head + ciphertext_bytes(preset, parts, drop0)
    payload = reader.rest(jobs * n_in * each).reshape(jobs * n_in, each)
    shape = (jobs, n_in, parts, len(preset.data_primes), preset.ring_degree)
    if drop0:
        rows = (jobs * n_in, *shape[-2:])
        words = unpack_composed(payload[:, head:], rows, composed_format(preset, drop0)).reshape(shape)
    else:
        words = unpack(payload[:, head:], shape, limb_format(preset.data_primes))
    seeds = payload[:, :head].reshape(jobs, n_in, head).copy() if encoding == _SEEDED else None
    if seeds is None and any_transparent(words):
        raise refuse("a ciphertext has c1 = 0", "transparent")
    if seeds is not None and _repeats(seeds):
        raise refuse("two ciphertexts share a seed", "bad_field")
    return EvaluateRequest(
        preset, request_id, key_id, model_digest, plan_id, layer.decode("ascii"), words, seeds, drop0
    )


def ciphertext_bytes(preset: Preset, parts: int, drop0: int) -> int:
    """Bytes of one ciphertext's polynomials in a request, without its seed."""
    if drop0:
        return composed_format(preset, drop0).row_bytes(preset.ring_degree)
    return parts * limb_format(preset.data_primes).row_bytes(preset.ring_degree)


def _check_payload(frame: EvaluateRequest, jobs: int, n_in: int) -> None:
    """Raise :class:`FrameError` unless the arrays have the shapes of the format."""
    preset, seeds = frame.preset, frame.seeds
    parts = 2 if seeds is None else 1
    axes = "[jobs, n_in, parts, data limbs, N]"
    _check_drop(preset, frame.drop0, seeded=seeds is not None, verb="encode")
    check_words(frame.words, (jobs, n_in, parts, len(preset.data_primes), preset.ring_degree), axes)
    check_count(jobs, MAX_JOBS, "jobs", verb="encode")
    check_count(n_in, 255, "ciphertexts per job", verb="encode")
    if seeds is None and any_transparent(np.ascontiguousarray(frame.words)):
        raise refuse("a ciphertext has c1 = 0", "transparent", verb="encode")
    if seeds is not None and (seeds.dtype != np.uint8 or seeds.shape != (jobs, n_in, seeds_of.SEED_BYTES)):
        raise refuse("seeds are not uint8 [jobs, n_in, 32]", "bad_field", verb="encode")
    if seeds is not None and _repeats(seeds):
        raise refuse("two ciphertexts share a seed", "bad_field", verb="encode")


def _check_drop(preset: Preset, drop0: int, *, seeded: bool, verb: str = "decode") -> None:
    """Raise :class:`FrameError` (``bad_field``) for dropped bits outside the format."""
    if not 0 <= drop0 <= MAX_DROP:
        raise refuse(f"dropped bits {drop0} are not 0 to {MAX_DROP}", "bad_field", verb=verb)
    if drop0 and not (seeded and composable(preset)):
        raise refuse("bits are dropped from what cannot be composed", "bad_field", verb=verb)


def _repeats(seeds: NDArray[np.uint8]) -> bool:
    """Whether two of uint8 [jobs, n_in, 32] are equal: that gives away a difference of plaintexts."""
    rows = seeds.reshape(-1, seeds.shape[-1])
    if len(rows) == 1:
        return False
    return len({row.tobytes() for row in rows}) < len(rows)
