"""Conversations with the proxy, without I/O: retries, refusals, key upload, listings.

A failure of the connection is answered by sending *the same bytes* again: a fresh encryption of the same values, or
anything computed from a reply, would tell the proxy more than the first attempt did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fhe_llm.client.listing import Listing, parse_listing
from fhe_llm.client.transport.operations import (
    Answer,
    HttpCall,
    Operation,
    Pause,
    Round,
    Routine,
    TimedOut,
    Unreachable,
)
from fhe_llm.errors import FrameError, ProxyError, ProxyTimeoutError, ReplyError, TransportError
from fhe_llm.progress import Progress, silent
from fhe_llm.wire import frame as wire
from fhe_llm.wire.header import MAGIC

_PASSING: Final = {"busy", "not_ready", "request_timeout"}
_PASSING_STATUS: Final = {408, 429, 502, 503, 504}
_KEY_CHUNK_BYTES: Final = 4 << 20
_MAX_JSON_BYTES: Final = 8 << 20
_KIND_AT: Final = 5
_UPLOAD_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on: connection attempts with doubling pauses, and seconds to wait for a busy proxy."""

    attempts: int = 6
    first_pause: float = 0.1
    longest_pause: float = 5.0
    busy_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class KeyUpload:
    """An evaluation key frame, made only when the proxy asks for it."""

    key_id: bytes
    frame: Callable[[], bytes]
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class Refusal:
    """The proxy's own words: a stable code, a message, and when to come back."""

    code: str
    message: str
    status: int
    retry_after: float | None = None

    def error(self) -> ProxyError:
        """The exception a caller sees."""
        return ProxyError(self.message, proxy_code=self.code, status=self.status)


def exchange(
    frame: bytes,
    keys: KeyUpload,
    *,
    meanwhile: Callable[[], None] | None = None,
    spare: Callable[[], bool] | None = None,
    patience: Patience | None = None,
) -> Routine[bytes]:
    """Send a request frame until there is a reply frame; returns its bytes, unchecked except for the kind.

    An unknown key is uploaded, once, and the same bytes go again. Raises :class:`TransportError`,
    :class:`ProxyError`, and :class:`ReplyError` for bytes that are no frame.
    """
    uploaded = False
    while True:
        answer = yield from settled(Round(frame, meanwhile, spare), patience)
        refusal = _frame_refusal(answer)
        if refusal is None:
            return answer.body
        if refusal.code != "unknown_key" or uploaded:
            raise refusal.error()
        yield from upload_keys(keys, patience=patience)
        uploaded, meanwhile = True, None


def upload_keys(keys: KeyUpload, *, patience: Patience | None = None) -> Routine[bool]:
    """Make sure the proxy holds the evaluation keys; True where they had to travel.

    Raises :class:`TransportError` and :class:`ProxyError`.
    """
    path = f"/v1/keys/{keys.key_id.hex()}"
    found = yield from settled(HttpCall("HEAD", path), patience)
    if found.status == 200:
        return False
    for attempt in range(_UPLOAD_ATTEMPTS):
        answer = yield from _upload_from_start(path, keys, patience)
        if answer.status in (200, 201, 204):
            return True
        refusal = http_refusal(answer)
        if refusal.code != "upload_conflict" or attempt == _UPLOAD_ATTEMPTS - 1:
            break  # a conflict: the proxy restarted and forgot the first chunks
    raise refusal.error()


def _upload_from_start(path: str, keys: KeyUpload, patience: Patience | None) -> Routine[Answer]:
    """All chunks in turn; the answer to the last one sent."""
    frame = memoryview(keys.frame())
    for first in range(0, len(frame), _KEY_CHUNK_BYTES):
        chunk = frame[first : first + _KEY_CHUNK_BYTES]
        span = f"bytes {first}-{first + len(chunk) - 1}/{len(frame)}"
        headers = {"content-range": span, "content-type": "application/octet-stream"}
        answer = yield from settled(HttpCall("PUT", path, headers, chunk), patience)
        if answer.status not in (200, 201, 202, 204):
            break
        keys.progress("Uploading evaluation keys", first + len(chunk), len(frame))
        if answer.status != 202:
            break
    return answer


def list_models(*, patience: Patience | None = None) -> Routine[Listing]:
    """What the proxy serves; raises :class:`TransportError`, :class:`ProxyError`."""
    call = HttpCall("GET", "/v1/models", max_answer_bytes=_MAX_JSON_BYTES)
    answer = yield from settled(call, patience)
    if answer.status != 200:
        raise http_refusal(answer).error()
    return parse_listing(answer.body)


def settled(operation: Operation, patience: Patience | None = None) -> Routine[Answer]:
    """Repeat one operation until it has an answer that waiting will not change.

    Raises :class:`TransportError` when the connection keeps failing; a proxy that stays busy is handed back as is.
    """
    patience = patience or Patience()
    failures, pause, waited = 0, patience.first_pause, 0.0
    while True:
        try:
            answer = yield operation
        except Unreachable as error:
            failures += 1
            if failures >= patience.attempts:
                kind = ProxyTimeoutError if isinstance(error, TimedOut) else TransportError
                raise kind(
                    f"cannot reach the proxy: {error} ({failures} attempts). "
                    "Check that it is running and that the URL and port are right."
                ) from None
            delay = pause
        else:
            failures = 0
            later = _retry_after(answer)
            if later is None or waited >= patience.busy_seconds:
                return answer
            delay = min(max(later, pause), patience.longest_pause)
            waited += delay
        yield Pause(delay)
        pause = min(2 * pause, patience.longest_pause)


def http_refusal(answer: Answer) -> Refusal:
    """The error envelope of an HTTP answer; raises :class:`TransportError` where there is none: not our proxy."""
    try:
        envelope = json.loads(answer.body)["error"]
        code, message, later = str(envelope["code"]), str(envelope["message"]), envelope.get("retry_after_ms")
        return Refusal(code, message, answer.status, None if later is None else float(later) / 1000)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TransportError(
            f"cannot talk to the proxy: the address answered HTTP {answer.status} without our error envelope. "
            "Check that the URL leads to an fhe-llm proxy and that nothing in between rewrites answers."
        ) from None


def _frame_refusal(answer: Answer) -> Refusal | None:
    """None for a frame that may be a reply."""
    if answer.status != 200:
        return http_refusal(answer)
    kind = answer.headers.get("content-type", "application/octet-stream")
    if not kind.startswith("application/octet-stream"):
        raise TransportError(
            f"cannot talk to the proxy: the address answered {kind.split(';')[0]!r} where a frame belongs. "
            "Check that the URL leads to an fhe-llm proxy."
        )
    if not _is_error_frame(answer.body):
        return None
    try:
        error = wire.decode(answer.body, expect=(wire.Kind.ERROR,))
    except FrameError as cause:
        raise ReplyError(f"cannot read the proxy's answer: {cause} Start a new session.") from None
    assert isinstance(error, wire.ErrorFrame)  # noqa: S101  what decode was told to expect
    later = error.retry_after_ms / 1000 if error.retry_after_ms else None
    return Refusal(error.code, error.message, 400, later)


def _is_error_frame(body: bytes) -> bool:
    return body.startswith(MAGIC) and body[_KIND_AT : _KIND_AT + 1] == bytes([wire.Kind.ERROR])


def _retry_after(answer: Answer) -> float | None:
    """Seconds to wait where waiting helps, else None."""
    if answer.status in _PASSING_STATUS:
        try:
            refusal = http_refusal(answer)
        except TransportError:
            return 1.0  # a gateway in between, while the proxy restarts
    elif answer.status == 200 and _is_error_frame(answer.body):
        found = _frame_refusal(answer)
        assert found is not None  # noqa: S101  its kind is ERROR
        refusal = found
    else:
        return None
    if refusal.code not in _PASSING:
        return None
    return refusal.retry_after if refusal.retry_after is not None else 1.0
