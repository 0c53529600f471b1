"""Tools in a chat: how a model is told of them, how its calls are written, and how they are read as they stream.

Calls stand in the text as Qwen and Hermes models write them: ``<tool_call>``, a JSON object with ``name`` and
``arguments``, ``</tool_call>``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fhe_llm.errors import RequestError

CALL_BEGIN: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"
_LAST_LINE: Final = "\n" + CALL_END
"""JSON on one line has no line break in it, so that a string which holds the mark does not end a call."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_PARAMETERS: Final = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class Tool:
    """Something the model may ask the host program to do. ``parameters`` is a JSON Schema of an object.

    Raises :class:`RequestError` for a name that is not 1 to 64 of letters, digits, ``_``, ``.`` and ``-``.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_PARAMETERS))

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise RequestError(
                f"cannot use tool {self.name!r}: a name is 1 to 64 letters, digits, '_', '.' and '-'. Rename it."
            )
        if not isinstance(self.parameters, Mapping):
            raise RequestError(
                f"cannot use tool {self.name!r}: its parameters are no JSON Schema. Pass a dict."
            )

    @classmethod
    def of(cls, given: Tool | Mapping[str, Any]) -> Tool:
        """A tool from the dict that OpenAI's API takes, with or without ``{"type": "function"}`` around it."""
        if isinstance(given, Tool):
            return given
        inner = given.get("function", given) if isinstance(given, Mapping) else None
        if not isinstance(inner, Mapping) or "name" not in inner:
            raise RequestError(
                "cannot use a tool: it must be a Tool or a dict with 'name', 'description' and 'parameters'. "
                "Pass one of them."
            )
        return cls(
            inner["name"], inner.get("description") or "", inner.get("parameters") or dict(_NO_PARAMETERS)
        )

    def to_dict(self) -> dict[str, Any]:
        """The dict of OpenAI's API, which chat templates take too."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A finished call. ``id`` is made up here and unique; ``arguments`` fit the tool's schema."""

    id: str
    name: str
    arguments: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The dict of OpenAI's API, its arguments as an object."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def takes_tools(template_source: str) -> bool:
    """Whether a chat template tells the model of tools itself, and in the form that is read here."""
    return "tools" in template_source and CALL_BEGIN in template_source


def without_tool_roles(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], *, examples: bool = False
) -> list[Mapping[str, Any]]:
    """The same chat for a template that knows plain text only: tools go into the system message, calls and results
    into the text.

    ``examples`` adds turns before the chat that show when to call and when not to: without them a model that was not
    trained on tools does not call any, or never stops calling.
    """
    folded: list[Mapping[str, Any]] = []
    for message in messages:
        text = message["content"]
        if message.get("tool_calls"):
            calls = "\n".join(_written(call["function"]) for call in message["tool_calls"])
            folded.append({"role": message["role"], "content": f"{text}\n{calls}".lstrip("\n")})
        elif message["role"] == "tool":
            folded.append({"role": "user", "content": text})  # a mark around it is only repeated
        else:
            folded.append(message)
    if not tools:
        return folded
    listed = "\n".join(json.dumps(tool.to_dict()["function"], ensure_ascii=False) for tool in tools)
    system, *others = with_system_text(folded, f"You can call these tools:\n{listed}")
    if not examples:
        return [system, *others]
    answered = any(message["role"] == "tool" for message in messages)
    return [system, *_EXAMPLES, *(_ANSWERED if answered else ()), *others]


def with_system_text(messages: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """The chat with ``text`` at the end of its system message; without one it gets one."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _written(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"{CALL_BEGIN}\n{json.dumps(call, ensure_ascii=False)}\n{CALL_END}"


_EXAMPLES: Final = (
    {"role": "user", "content": "Tell me something funny."},
    {"role": "assistant", "content": "Why did the chicken cross the road? To get to the other side!"},
    {"role": "user", "content": "What is the time in Tokyo?"},
    {"role": "assistant", "content": _written({"name": "get_time", "arguments": {"location": "Tokyo"}})},
)
"""Of seven such pairs the one with which SmolLM2-135M called most of the tools it should and none it should not."""
_ANSWERED: Final = (
    {"role": "user", "content": "12:30"},
    {"role": "assistant", "content": "It is 12:30 in Tokyo."},
)
"""What comes after a result; shown only where there is one, since after it SmolLM2-135M calls nothing any more."""


class ToolCallReader:
    """Splits a streamed answer into text and tool calls; holds back text that may yet begin a call."""

    def __init__(self) -> None:
        self._held = ""
        self._inside = False

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Add a piece; returns the text that may be shown now and the calls that became complete."""
        self._held += text
        shown, calls = "", list[ToolCall]()
        while True:
            before, mark, after = self._held.partition(_LAST_LINE if self._inside else CALL_BEGIN)
            if not mark:
                break
            if self._inside:
                calls.append(_parsed(before))
            else:
                shown += before
            self._held, self._inside = after, not self._inside
        if not self._inside:
            cut = len(self._held) - _beginning(self._held)
            shown, self._held = shown + self._held[:cut], self._held[cut:]
        return shown, tuple(calls)

    def finish(self) -> tuple[str, str]:
        """What is left once no more can come: text to show, and the text of a call that was cut off."""
        held, self._held = self._held, ""
        return ("", CALL_BEGIN + held) if self._inside else (held, "")


def _parsed(text: str) -> ToolCall:
    """A call from its JSON, which the grammar has made sure of."""
    read = json.loads(text)
    return ToolCall(f"call_{secrets.token_hex(12)}", read["name"], read["arguments"])


def _beginning(text: str) -> int:
    """Length of the longest end of ``text`` that begins a call."""
    sizes = range(min(len(text), len(CALL_BEGIN) - 1), 0, -1)
    return next((size for size in sizes if CALL_BEGIN.startswith(text[-size:])), 0)
