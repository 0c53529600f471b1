"""What all frames share: the 16-byte header, a receiver's limits, a reader that checks before it takes."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import FrameError
from fhe_llm.params import PRESETS, Preset
from fhe_llm.wire.limbs import Words

Reason = Literal[
    "truncated",
    "oversized",
    "bad_magic",
    "bad_version",
    "bad_kind",
    "bad_preset",
    "bad_field",
    "residue_out_of_range",
    "transparent",
]
REASONS: Final[tuple[str, ...]] = get_args(Reason)

MAGIC: Final = b"FHEL"
VERSION: Final = 2
NO_PRESET: Final = 0
_HEADER: Final = struct.Struct("<4sBBBBQ")
HEADER_BYTES: Final = _HEADER.size


class Kind(IntEnum):
    """The kinds of frames, by their byte on the wire."""

    EVALUATE_REQUEST = 1
    EVALUATE_REPLY = 2
    EVALUATION_KEYS = 3
    ERROR = 4


ALL_KINDS: Final = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver takes at most; arrays are at most 4.8 times a frame's bytes (seeds expanded).

    ``max_frame_bytes`` bounds any frame; ``max_jobs`` (1..256) bounds the token vectors of one request or
    reply.
    """

    max_frame_bytes: int = 64 << 20
    max_jobs: int = 256


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header; ``preset`` is None for error frames only."""

    kind: Kind
    preset: Preset | None


def refuse(cause: str, reason: Reason, *, verb: str = "decode") -> FrameError:
    """The error for a frame that is not as docs/wire-format.md describes; the caller raises it."""
    advice = "Send a frame as docs/wire-format.md describes." if verb == "decode" else "Correct the field."
    return FrameError(f"cannot {verb} frame: {cause}. {advice}", reason=reason)


def seal_frame(kind: Kind, preset: Preset | None, *parts: bytes | NDArray[np.uint8]) -> bytes:
    """Header and ``parts`` joined to one frame."""
    views = [part if isinstance(part, bytes) else np.ascontiguousarray(part).data for part in parts]
    total = HEADER_BYTES + sum(len(part) if isinstance(part, bytes) else part.nbytes for part in views)
    wire_id = NO_PRESET if preset is None else preset.wire_id
    return b"".join((_HEADER.pack(MAGIC, VERSION, kind, wire_id, 0, total), *views))


def read_header(data: memoryview, expect: Collection[Kind], limits: Limits) -> Header:
    """Check the header and the length of ``data``; raises :class:`FrameError` with the first reason found."""
    if len(data) > limits.max_frame_bytes:
        raise refuse(f"{len(data)} bytes are more than the {limits.max_frame_bytes} allowed", "oversized")
    if len(data) < HEADER_BYTES:
        raise refuse(f"{len(data)} bytes are less than a header", "truncated")
    magic, version, kind, wire_id, flags, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise refuse("it does not begin with FHEL", "bad_magic")
    if version != VERSION:
        raise refuse(f"it has version {version}, and this side speaks {VERSION}", "bad_version")
    if kind not in ALL_KINDS or kind not in expect:
        raise refuse(f"kind {kind} is not expected here", "bad_kind")
    if flags != 0:
        raise refuse(f"flags are {flags}, not 0", "bad_field")
    preset = next((p for p in PRESETS.values() if p.wire_id == wire_id), None)
    if (preset is None) != (kind == Kind.ERROR) or (kind == Kind.ERROR and wire_id != NO_PRESET):
        raise refuse(f"there is no preset {wire_id} for kind {kind}", "bad_preset")
    if length > limits.max_frame_bytes:
        raise refuse(f"it claims {length} bytes, more than the {limits.max_frame_bytes} allowed", "oversized")
    if length != len(data):
        reason: Reason = "truncated" if length > len(data) else "oversized"
        raise refuse(f"it claims {length} bytes and has {len(data)}", reason)
    return Header(Kind(kind), preset)


class Reader:
    """Takes fields off the front of a frame's body; every take checks that the bytes are there."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = HEADER_BYTES

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes; raises :class:`FrameError` (``truncated``)."""
        end = self._at + size
        if end > len(self._data):
            raise refuse(f"a field of {size} bytes ends after the frame", "truncated")
        taken, self._at = self._data[self._at : end], end
        return taken

    def fields(self, form: struct.Struct) -> tuple[Any, ...]:
        """The next fixed fields."""
        return form.unpack(self.take(form.size))

    def rest(self, size: int) -> NDArray[np.uint8]:
        """The remaining bytes, which must be exactly ``size``: uint8 [size], a view."""
        left = len(self._data) - self._at
        if left != size:
            reason: Reason = "truncated" if left < size else "oversized"
            raise refuse(f"its fields call for {size} bytes of payload, and there are {left}", reason)
        return np.frombuffer(self.take(size), dtype=np.uint8)


def check_count(count: int, largest: int, what: str, *, verb: str = "decode") -> None:
    """Raise :class:`FrameError` unless 1 <= count <= largest: ``bad_field`` below, ``oversized`` above."""
    if count < 1:
        raise refuse(f"it has no {what}", "bad_field", verb=verb)
    if count > largest:
        raise refuse(f"{count} {what} are more than the {largest} allowed", "oversized", verb=verb)


def check_words(words: Words, shape: tuple[int, ...], axes: str) -> None:
    """Raise :class:`FrameError` unless ``words`` is uint32 of ``shape``, before encoding."""
    if words.dtype != np.uint32 or words.shape != shape:
        raise refuse(
            f"words are {words.dtype} {list(words.shape)}, not uint32 {axes} = {list(shape)}",
            "bad_field",
            verb="encode",
        )


def pack_fields(form: struct.Struct, *values: Any) -> bytes:
    """``form.pack`` that raises :class:`FrameError` when a number does not fit its field."""
    try:
        return form.pack(*values)
    except struct.error as error:
        raise refuse(f"a field is out of range ({error})", "bad_field", verb="encode") from error
