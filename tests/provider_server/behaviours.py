"""What a test tells the server to do with one request, and how the answer is delivered or spoilt on its way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from provider_server.recording import Received

Finish = Literal["stop", "length", "tool_calls", "content_filter"]
Place = Literal["before_headers", "in_headers", "in_body"]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How bytes go out. ``parts`` of a streamed answer are its events; other bodies have one part."""

    wait: float = 0.0
    """Seconds before the status line."""
    pause: float = 0.0
    """Seconds before each part after the first."""
    hold: threading.Event | None = None
    """After ``after`` parts nothing more is sent until this is set or the client hangs up."""
    after: int = 1
    cut: Place | None = None
    """Where the connection is closed; ``in_body`` means after ``after`` parts, or half of the only one."""
    reset: bool = False
    """Cut with RST instead of FIN."""
    shred: int = 0
    """Send the body in writes of so many bytes, whatever they split."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A call the model makes. ``arguments`` that are a string are sent as they are, JSON or not."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str = ""

    @property
    def text(self) -> str:
        """The arguments as JSON text."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True, kw_only=True)
class Reply(Delivery):
    """An answer of the model, in the dialect of whoever asks."""

    text: str = "A reply from the model."
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Finish | None = None
    usage: tuple[int, int] | None = None
    """Input and output tokens; None counts characters."""
    piece: int = 5
    """Characters of one streamed delta."""
    end: bool = True
    """False: the stream closes properly, but without the marker that ends an answer."""
    thinking: str = ""
    """What a reasoning model shows before its answer; never part of it. OpenAI shows nothing."""
    failing: Failure | None = None
    """An error event in mid-stream, after the text."""

    @property
    def finished(self) -> Finish:
        """Why the model stopped."""
        return self.finish or ("tool_calls" if self.tool_calls else "stop")


@dataclass(frozen=True, kw_only=True)
class Failure(Delivery):
    """An error as the dialect writes it. ``name`` is a key of the dialect's ``FAILURES``; ``status`` and ``message``
    replace what stands there."""

    name: str
    status: int | None = None
    message: str | None = None
    retry_after: str | None = None


@dataclass(frozen=True, kw_only=True)
class Raw(Delivery):
    """Any response."""

    status: int = 200
    content_type: str = "application/json"
    body: bytes = b"{}"


def garbage(**delivery: Any) -> Raw:
    """A success that is no JSON."""
    return Raw(body=b'{"id": "chatcmpl-1", "choices": [{"message": <<<', **delivery)


def web_page(status: int = 200, **delivery: Any) -> Raw:
    """What a captive portal or a load balancer says instead of the provider."""
    page = f"<html><head><title>{status}</title></head><body>nginx</body></html>"
    return Raw(status=status, content_type="text/html; charset=UTF-8", body=page.encode(), **delivery)


def redirect(location: str, status: int = 307) -> Raw:
    """Another place to ask."""
    return Raw(status=status, headers={"location": location}, body=b"")


Behaviour: TypeAlias = Reply | Failure | Raw
Script: TypeAlias = "Behaviour | Callable[[Received], Behaviour]"
