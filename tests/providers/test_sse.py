"""Server-sent events: the same whatever the network cuts, and never more memory than allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.providers.sse import EventParser, EventStreamError, ServerEvent

LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=12)


def parsed(stream: bytes, cuts: list[int] | None = None, limit: int = 1 << 20) -> list[ServerEvent]:
    """The events of a stream that arrives in pieces ending at ``cuts``."""
    parser = EventParser(limit)
    ends = sorted({min(cut, len(stream)) for cut in cuts or []} | {len(stream)})
    pieces = [stream[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [event for piece in pieces for event in parser.feed(piece)]


NAMES = st.sampled_from(["", "delta", "error"])


@given(
    st.lists(st.tuples(NAMES, st.lists(TEXTS, min_size=1, max_size=3), LINE_ENDS), max_size=4),
    st.lists(st.integers(0, 200), max_size=12),
    st.booleans(),
)
def test_cuts_and_line_ends_make_no_difference(
    events: list[tuple[str, list[str], str]], cuts: list[int], marked: bool
) -> None:
    """A stream with comments and foreign fields between, and with a byte order mark."""
    written = "\N{ZERO WIDTH NO-BREAK SPACE}" if marked else ""
    for name, lines, end in events:
        fields = [
            ": ping",
            f"event: {name}" if name else "id: 7",
            *(f"data: {line}" for line in lines),
            "retry",
        ]
        written += end.join([*fields, "", ""])
    expected = [ServerEvent(name or "message", "\n".join(lines)) for name, lines, _ in events]
    assert parsed(written.encode(), cuts) == expected


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data:x\n\n", [ServerEvent("message", "x")]),
        (b"data:  x\n\n", [ServerEvent("message", " x")]),
        (b"data\n\n", [ServerEvent("message", "")]),
        (b"data: a\ndata: b\n\n", [ServerEvent("message", "a\nb")]),
        (b"data: a\r\ndata: b\r\n\r\n", [ServerEvent("message", "a\nb")]),
        (b"event: error\n\ndata: x\n\n", [ServerEvent("message", "x")]),
        (b"data: cut off", []),
        (b"data: cut off\n", []),
        (b"\n\n\r\r\r\n: only comments\n\n", []),
        (b"data: [DONE]\r\r", [ServerEvent("message", "[DONE]")]),
    ],
)
def test_what_the_standard_says(stream: bytes, events: list[ServerEvent]) -> None:
    assert parsed(stream) == events
    assert parsed(stream, list(range(len(stream)))) == events


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_any_bytes_are_read_or_refused(stream: bytes, cuts: list[int]) -> None:
    try:
        whole = parsed(stream)
    except EventStreamError:
        whole = None
    try:
        assert parsed(stream, cuts) == whole
    except EventStreamError:
        assert whole is None


@pytest.mark.parametrize(
    "endless", [b"data: " + b"x" * 200, b"data: x\n" * 20, b"x" * 200, b": " + b"x" * 200]
)
@pytest.mark.parametrize("step", [1, 7, 500])
def test_an_event_has_a_bound(endless: bytes, step: int) -> None:
    with pytest.raises(EventStreamError, match="longer than 64 bytes"):
        parsed(endless, list(range(0, len(endless), step)), limit=64)


def test_what_is_done_with_leaves_no_weight() -> None:
    parser = EventParser(64)
    assert sum(1 for _ in range(100) for _ in parser.feed(b": keep-alive\nid: 1234567\ndata: xyz\n\n")) == 100


def test_no_message_quotes_the_stream() -> None:
    with pytest.raises(EventStreamError, match="not UTF-8") as caught:
        parsed(b"data: secret\xff\n\n")
    assert caught.value.__context__ is None
