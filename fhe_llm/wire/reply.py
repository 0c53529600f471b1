"""Evaluate reply: the rescaled products in coefficient domain, low bits dropped, and where the time went."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from fhe_llm.params import Preset
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
from fhe_llm.wire.limbs import (
    MAX_DROP,
    LimbFormat,
    Words,
    any_transparent,
    limb_format,
    pack,
    unpack,
)
from fhe_llm.wire.request import MAX_JOBS

_FIELDS: Final = struct.Struct("<QHBBBB5I")


@dataclass(frozen=True, slots=True)
class PhaseMicroseconds:
    """Time the proxy spent on a request, in microseconds, each below 2^32."""

    queue: int = 0
    rotations: int = 0
    products: int = 0
    finish: int = 0
    total: int = 0

    def fields(self) -> tuple[int, int, int, int, int]:
        """In the frame's order; ``astuple`` would copy deeply, which takes longer than packing."""
        return self.queue, self.rotations, self.products, self.finish, self.total


@dataclass(frozen=True, slots=True, eq=False)
class EvaluateReply:
    """The answer to one request.

    ``words`` is uint32 [jobs, n_out, 2, reply limbs, N], coefficient domain, residues below the first data
    primes. ``drop0`` and ``drop1`` (0..20) low bits of c0 and c1 stay off the wire, rounded; the receiver
    gets multiples of 2^drop. They must be 0 unless there is one limb: rounding two residues of one number
    apart would spoil it.
    """

    preset: Preset
    request_id: int
    words: Words
    timings: PhaseMicroseconds = PhaseMicroseconds()
    drop0: int = 0
    drop1: int = 0

    @property
    def jobs(self) -> int:
        """Token vectors in this reply."""
        return int(self.words.shape[0])


def encode_reply(frame: EvaluateReply) -> bytes:
    """The frame's bytes; raises :class:`FrameError` for a field that the format cannot carry."""
    preset, words = frame.preset, frame.words
    jobs, n_out, _, limbs, _ = words.shape if words.ndim == 5 else (0, 0, 0, 1, 0)
    axes = "[jobs, n_out, 2, reply limbs, N]"
    check_words(words, (jobs, n_out, 2, limbs, preset.ring_degree), axes)
    check_count(jobs, MAX_JOBS, "jobs", verb="encode")
    check_count(n_out, 255, "ciphertexts per job", verb="encode")
    _check_limbs(preset, limbs, frame.drop0, frame.drop1, verb="encode")
    if any_transparent(np.ascontiguousarray(words)):
        raise refuse("a ciphertext has c1 = 0", "transparent", verb="encode")
    drops = (frame.drop0, frame.drop1)
    fields = pack_fields(_FIELDS, frame.request_id, jobs, n_out, limbs, *drops, *frame.timings.fields())
    return seal_frame(Kind.EVALUATE_REPLY, preset, fields, pack(words, _format(preset, limbs, *drops)))


def decode_reply(reader: Reader, preset: Preset, limits: Limits) -> EvaluateReply:
    """Read the body of a reply; raises :class:`FrameError` before any large allocation."""
    request_id, jobs, n_out, limbs, drop0, drop1, *phases = reader.fields(_FIELDS)
    check_count(jobs, min(limits.max_jobs, MAX_JOBS), "jobs")
    check_count(n_out, 255, "ciphertexts per job")
    _check_limbs(preset, limbs, drop0, drop1)
    payload = reader.rest(jobs * n_out * reply_bytes(preset, limbs, drop0, drop1))
    form = _format(preset, limbs, drop0, drop1)
    words = unpack(payload, (jobs, n_out, 2, limbs, preset.ring_degree), form)
    if any_transparent(words):
        raise refuse("a ciphertext has c1 = 0", "transparent")
    return EvaluateReply(preset, request_id, words, PhaseMicroseconds(*phases), drop0, drop1)


def reply_bytes(preset: Preset, limbs: int, drop0: int = 0, drop1: int = 0) -> int:
    """Bytes of one ciphertext in a reply."""
    return _format(preset, limbs, drop0, drop1).row_bytes(preset.ring_degree)


def _format(preset: Preset, limbs: int, drop0: int, drop1: int) -> LimbFormat:
    """Rows of one ciphertext: the limbs of c0, then those of c1."""
    return limb_format(preset.data_primes[:limbs] * 2, (drop0,) * limbs + (drop1,) * limbs)


def _check_limbs(preset: Preset, limbs: int, drop0: int, drop1: int, *, verb: str = "decode") -> None:
    """Raise :class:`FrameError` (``bad_field``) for a number of limbs or dropped bits outside the format."""
    if not 1 <= limbs <= len(preset.data_primes):
        raise refuse(f"{limbs} reply limbs are not 1 to {len(preset.data_primes)}", "bad_field", verb=verb)
    if not (0 <= drop0 <= MAX_DROP and 0 <= drop1 <= MAX_DROP):
        raise refuse(f"dropped bits {drop0} and {drop1} are not 0 to {MAX_DROP}", "bad_field", verb=verb)
    if limbs > 1 and (drop0 or drop1):
        raise refuse("bits are dropped from residues of more than one limb", "bad_field", verb=verb)
