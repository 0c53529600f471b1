"""Chat messages as callers give them, checked and made plain: text only, tool calls with their arguments as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fhe_llm.errors import RequestError

ROLES: Final = ("system", "user", "assistant", "tool")
_OTHER_NAMES: Final = {"human": "user", "ai": "assistant", "developer": "system"}


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """Messages with ``role`` and text ``content``; an assistant's may have ``tool_calls``, a tool's ``tool_call_id``.

    Content may be a list of text parts, which are joined. Raises :class:`RequestError` for anything that would have to
    be dropped, such as an image, and names it.
    """
    given = list(messages) if isinstance(messages, Sequence) and not isinstance(messages, str | bytes) else []
    if not given:
        raise RequestError(
            "cannot use the messages: there must be at least one, in a list. Pass a list of dicts, or a string."
        )
    return [_plain(message, position) for position, message in enumerate(given)]


def _plain(message: object, position: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise RequestError(
            f"cannot use message {position}: it must be a dict with 'role' and 'content'. Pass a list of them."
        )
    role = _OTHER_NAMES.get(message["role"], message["role"])
    if role not in ROLES:
        raise RequestError(
            f"cannot use message {position}: role {role!r} is unknown. Use one of {', '.join(ROLES)}."
        )
    calls = message.get("tool_calls")
    if "content" not in message and not calls:
        raise RequestError(
            f"cannot use message {position}: it must be a dict with 'role' and 'content'. Add the content."
        )
    plain = {**message, "role": role, "content": text_of(message.get("content"), f"message {position}")}
    if calls:
        plain["tool_calls"] = [_call(call, position) for call in calls]
    return plain


def text_of(content: object, what: str) -> str:
    """The text of a message's content: a string, None, or a list of strings and text parts.

    Raises :class:`RequestError` for other parts.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise RequestError(f"cannot use {what}: its content is {type(content).__name__}. Pass text.")
    return "".join(_part(part, what) for part in content)


def _part(part: object, what: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind in ("text", None) and isinstance(text, str):
        return text
    raise RequestError(
        f"cannot use {what}: a part of type {kind!r} is not text. The model reads text only; drop it."
    )


def _call(call: object, position: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    try:
        arguments = function["arguments"]  # type: ignore[index]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return {
            "id": call.get("id"),  # type: ignore[attr-defined]
            "type": "function",
            "function": {"name": function["name"], "arguments": dict(arguments)},  # type: ignore[index]
        }
    except (KeyError, TypeError, ValueError):
        raise RequestError(
            f"cannot use message {position}: a tool call needs a 'name' and 'arguments' that are a JSON object. "
            "Change it."
        ) from None
