"""The one way in and out of bytes: :func:`encode` and :func:`decode`, over the four kinds of frames.

``docs/wire-format.md`` is the specification. ``decode`` accepts exactly the bytes that ``encode`` can write.
"""

from __future__ import annotations

from collections.abc import Collection

from fhe_llm.wire.error import ErrorFrame, decode_error, encode_error
from fhe_llm.wire.header import (
    ALL_KINDS,
    DEFAULT_LIMITS,
    HEADER_BYTES,
    REASONS,
    Kind,
    Limits,
    Reader,
    read_header,
)
from fhe_llm.wire.keys import KeyFrame, decode_keys, encode_keys, key_id
from fhe_llm.wire.limbs import Buffer
from fhe_llm.wire.reply import EvaluateReply, PhaseMicroseconds, decode_reply, encode_reply
from fhe_llm.wire.request import EvaluateRequest, decode_request, encode_request

__all__ = [
    "ALL_KINDS",
    "DEFAULT_LIMITS",
    "HEADER_BYTES",
    "REASONS",
    "ErrorFrame",
    "EvaluateReply",
    "EvaluateRequest",
    "Frame",
    "KeyFrame",
    "Kind",
    "Limits",
    "PhaseMicroseconds",
    "decode",
    "encode",
    "key_id",
]

Frame = EvaluateRequest | EvaluateReply | KeyFrame | ErrorFrame


def encode(frame: Frame) -> bytes:
    """The bytes of a frame; raises :class:`FrameError` for a field that the format cannot carry."""
    match frame:
        case EvaluateRequest():
            return encode_request(frame)
        case EvaluateReply():
            return encode_reply(frame)
        case KeyFrame():
            return encode_keys(frame)
        case ErrorFrame():
            return encode_error(frame)


def decode(data: Buffer, *, expect: Collection[Kind] = ALL_KINDS, limits: Limits = DEFAULT_LIMITS) -> Frame:
    """The frame in ``data``; safe on hostile bytes, and the arrays in it are its own.

    Raises :class:`FrameError` whose ``reason`` is one of ``REASONS``; ``bad_kind`` covers kinds not in
    ``expect``.
    """
    view = memoryview(data).cast("B")
    header = read_header(view, expect, limits)
    reader, preset = Reader(view), header.preset
    if preset is None:
        return decode_error(reader)
    if header.kind is Kind.EVALUATE_REQUEST:
        return decode_request(reader, preset, limits)
    if header.kind is Kind.EVALUATE_REPLY:
        return decode_reply(reader, preset, limits)
    return decode_keys(reader, preset)
