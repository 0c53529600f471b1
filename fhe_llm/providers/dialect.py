"""What differs between providers: how a request is written, and how answers, events and errors are read. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

from fhe_llm.providers.contract import ProviderAnswer, ProviderRequest
from fhe_llm.providers.refusals import Refusal
from fhe_llm.providers.sse import ServerEvent

MAX_ANSWER_BYTES: Final = 32 << 20
"""Of a whole answer, streamed or not; more is cut off before it fills the memory."""


class UnreadableError(ValueError):
    """Bytes that are no answer in this dialect. The text is the cause, and names no content."""


class StreamReader(Protocol):
    """Puts one streamed answer together."""

    @property
    def ended(self) -> bool:
        """The provider said that the answer is complete."""
        ...

    def read(self, event: ServerEvent) -> str | Refusal:
        """The text that an event adds, often none; or the error it brings. Raises :class:`UnreadableError`."""
        ...

    def answer(self) -> ProviderAnswer:
        """The whole answer, once ``ended``. Raises :class:`UnreadableError`."""
        ...


class Dialect(Protocol):
    """One API. Stateless."""

    @property
    def name(self) -> str:
        """The provider's name."""
        ...

    @property
    def path(self) -> str:
        """Of the route below the base URL."""
        ...

    def check(self, request: ProviderRequest) -> None:
        """Raises :class:`fhe_llm.errors.ProviderRequestError` for what this API cannot say, naming it."""
        ...

    def headers(self, key: str | None) -> dict[str, str]:
        """Those that are this API's own."""
        ...

    def body(self, request: ProviderRequest, model: str, *, streamed: bool) -> dict[str, Any]:
        """The request's JSON."""
        ...

    def answer(self, body: Mapping[str, Any], model: str) -> ProviderAnswer:
        """A whole answer. Raises :class:`UnreadableError`."""
        ...

    def reader(self, model: str) -> StreamReader:
        """For one streamed answer to ``model``."""
        ...

    def refusal(self, status: int, body: Any) -> Refusal:
        """What an error's body says, None where it was no JSON."""
        ...


def parsed(text: str | bytes) -> Mapping[str, Any]:
    """A JSON object. Raises :class:`UnreadableError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UnreadableError("it is no JSON object")
    return value


def record(value: Any) -> Mapping[str, Any]:
    """``value`` where it is an object, else an empty one: providers write null for what is absent."""
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """A string that can be encoded; other values are none. JSON may hold half of a surrogate pair."""
    if not isinstance(value, str):
        return ""
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def count(value: Any) -> int:
    """A number of tokens; anything else is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
