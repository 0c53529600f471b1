"""What every adapter does: one request in, an answer or its pieces out; blocking and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

ProviderFinish = Literal["stop", "length", "tool_calls", "content_filter", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRequest:
    """Everything that is sent, in OpenAI's form; adapters translate it. ``messages`` are those of
    :func:`fhe_llm.models.messages.plain_messages`, ``tools`` are ``{"type": "function", "function": {...}}``.

    ``extra`` goes into the body as it is. None leaves a setting to the provider.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProviderToolCall:
    """A call the model asks for; ``arguments`` is its JSON text as the provider wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ProviderUsage:
    """Tokens as the provider counted them."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAnswer:
    """A whole answer. ``model`` is what the provider says answered, ``request_id`` its name for the call."""

    text: str
    finish: ProviderFinish
    model: str
    tool_calls: tuple[ProviderToolCall, ...] = ()
    usage: ProviderUsage | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChunk:
    """A piece of a streamed answer. All ``text`` joined is the answer's; tool calls come whole with the last chunk, the
    only one that has ``answer``."""

    text: str
    answer: ProviderAnswer | None = None


class Provider(Protocol):
    """One model of one provider. Thread-safe. Raises :class:`fhe_llm.errors.ProviderError` subclasses."""

    @property
    def name(self) -> str:
        """The provider's name, for reports and messages."""
        ...

    @property
    def model(self) -> str:
        """The model asked for."""
        ...

    def check(self, request: ProviderRequest) -> None:
        """Raises what a call would raise before it sends anything, so that nothing is paid for a request that cannot
        be made. No network."""
        ...

    def complete(self, request: ProviderRequest) -> ProviderAnswer:
        """The whole answer. A request that got none is sent again as it is, until the deadline or the last attempt."""
        ...

    def stream(self, request: ProviderRequest) -> Generator[ProviderChunk, None, None]:
        """The answer in pieces; closing the generator ends the request. Retried only before the first piece."""
        ...

    async def acomplete(self, request: ProviderRequest) -> ProviderAnswer:
        """:meth:`complete` on an event loop."""
        ...

    def astream(self, request: ProviderRequest) -> AsyncGenerator[ProviderChunk, None]:
        """:meth:`stream` on an event loop."""
        ...

    def close(self) -> None:
        """Close connections of blocking calls."""
        ...

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        ...
