"""Error frame: the proxy's refusal of one request, as a stable code and a sentence for people."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from fhe_llm.wire.header import Kind, Reader, check_count, pack_fields, refuse, seal_frame

MAX_MESSAGE_BYTES: Final = 4096
_CODE: Final = re.compile(rb"[a-z0-9_]{1,64}")
_START: Final = struct.Struct("<QH")
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """``code`` is 1..64 of ``a-z0-9_``; ``message`` is cut to 4096 UTF-8 bytes.

    ``retry_after_ms`` 0 means no hint; ``request_id`` is 0 when the request was too damaged to have one.
    """

    request_id: int
    code: str
    message: str
    retry_after_ms: int = 0


def encode_error(frame: ErrorFrame) -> bytes:
    """The frame's bytes; raises :class:`FrameError` for a field that the format cannot carry."""
    code = frame.code.encode("utf-8", "replace")
    if not _CODE.fullmatch(code):
        raise refuse(f"code {frame.code!r} is not 1 to 64 of a-z 0-9 _", "bad_field", verb="encode")
    message = frame.message.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore").encode()
    return seal_frame(
        Kind.ERROR,
        None,
        pack_fields(_START, frame.request_id, len(code)),
        code,
        _LENGTH.pack(len(message)),
        message,
        pack_fields(_LENGTH, frame.retry_after_ms),
    )


def decode_error(reader: Reader) -> ErrorFrame:
    """Read the body of an error frame; raises :class:`FrameError`."""
    request_id, code_length = reader.fields(_START)
    code = bytes(reader.take(code_length))
    if not _CODE.fullmatch(code):
        raise refuse("the error code is not 1 to 64 of a-z 0-9 _", "bad_field")
    (message_length,) = reader.fields(_LENGTH)
    check_count(message_length + 1, MAX_MESSAGE_BYTES + 1, "message bytes")
    raw = bytes(reader.take(message_length))
    try:
        message = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse("the message is not UTF-8", "bad_field") from error
    (retry_after_ms,) = _LENGTH.unpack(reader.rest(_LENGTH.size).tobytes())
    return ErrorFrame(request_id, code.decode("ascii"), message, retry_after_ms)
