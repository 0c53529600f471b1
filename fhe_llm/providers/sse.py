"""Server-sent events from bytes (WHATWG HTML, section 9.2.6), with bounds on everything that is kept.

Reads the fields ``event`` and ``data``; ``id`` and ``retry`` mean nothing to a request that is not resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAX_EVENT_BYTES: Final = 8 << 20
"""More than any event of an answer; a server that sends more is not one of ours."""
_BOM: Final = b"\xef\xbb\xbf"


class EventStreamError(ValueError):
    """Bytes that are no event stream within bounds. Names no content."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """``name`` is "message" where the server gives none; lines of ``data`` are joined by newlines."""

    name: str
    data: str


class EventParser:
    """Bytes in, whole events out; where the bytes are cut makes no difference. Lines end with LF, CR or CRLF.

    Keeps at most ``max_event_bytes``. An event that the stream's end cuts off is dropped, as the standard says.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._line = bytearray()
        self._name = ""
        self._data: list[str] = []
        self._kept = 0
        self._after_cr = False
        self._first_line = True

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """Events that ``piece`` completes. Raises :class:`EventStreamError` (too long, no UTF-8)."""
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        # only CR and LF end a line: bytes.splitlines knows exactly these
        for part in piece.splitlines(keepends=True):
            self._after_cr = part.endswith(b"\r")
            line = part.rstrip(b"\r\n")
            self._keep(line)
            if len(line) < len(part) and (event := self._end_of_line()) is not None:
                yield event

    def _keep(self, part: bytes) -> None:
        self._kept += len(part)
        if self._kept > self._limit:
            raise EventStreamError(f"an event is longer than {self._limit} bytes")
        self._line += part

    def _end_of_line(self) -> ServerEvent | None:
        line, self._line = bytes(self._line), bytearray()
        if self._first_line:
            line, self._first_line = line.removeprefix(_BOM), False
        if not line:
            return self._end_of_event()
        self._kept += 1  # an event of nothing but short lines is bounded too
        field, _, value = _decoded(line).partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        else:
            self._kept -= len(line)  # comments and other fields leave nothing behind
        return None

    def _end_of_event(self) -> ServerEvent | None:
        name, data = self._name, self._data
        self._name, self._data, self._kept = "", [], 0
        return ServerEvent(name or "message", "\n".join(data)) if data else None


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        pass  # it holds the line, and would be the context of what is raised here
    raise EventStreamError("an event is not UTF-8")
