"""What the APIs have in common: a response before it is sent, a refused request, pieces, and counts of tokens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from provider_server.behaviours import Failure, Reply
from provider_server.recording import Received

CONTEXT_TOKENS: Final = 200_000
"""Prompts of more tokens are refused."""


@dataclass(frozen=True)
class Response:
    """Status, headers, and the body's parts; a stream has several and no length."""

    status: int
    headers: Mapping[str, str]
    parts: tuple[bytes, ...]
    stream: bool = False


@dataclass
class Refused(Exception):  # noqa: N818 - not an error of ours
    """The request is not one the API takes."""

    response: Response = field(repr=False)


class Dialect(Protocol):
    """One provider's API."""

    def check(self, request: Received) -> dict[str, Any]:
        """The body, if the API takes the request. Raises :class:`Refused`."""
        ...

    def reply(self, body: dict[str, Any], reply: Reply) -> Response:
        """The model's answer."""
        ...

    def failure(self, body: dict[str, Any], failure: Failure) -> Response:
        """An error."""
        ...


def as_json(value: Any) -> bytes:
    """Compact, as servers write it; text stays UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def token(length: int = 24) -> str:
    """The changing part of an id."""
    return secrets.token_hex(length)[:length]


def pieces(text: str, length: int) -> Iterator[str]:
    """A text as deltas."""
    for start in range(0, len(text), length):
        yield text[start : start + length]


def tokens(value: Any) -> int:
    """About as many as a tokenizer would find: one for every four characters."""
    if isinstance(value, str):
        return -(-len(value) // 4)
    return tokens(json.dumps(value, ensure_ascii=False))


def counts(body: dict[str, Any], reply: Reply) -> tuple[int, int]:
    """Input and output tokens."""
    if reply.usage is not None:
        return reply.usage
    prompt = [body.get("system", ""), body["messages"], body.get("tools", [])]
    return tokens(prompt), tokens(reply.text) + sum(tokens(call.text) for call in reply.tool_calls)
