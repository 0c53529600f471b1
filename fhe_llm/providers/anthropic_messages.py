"""Anthropic's messages API: content in blocks, the system prompt apart, tool results as blocks of a user's message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fhe_llm.providers.contract import (
    ProviderAnswer,
    ProviderFinish,
    ProviderRequest,
    ProviderToolCall,
    ProviderUsage,
)
from fhe_llm.providers.dialect import UnreadableError, count, parsed, record, text
from fhe_llm.providers.refusals import Refusal
from fhe_llm.providers.request_checks import Limits, function_of
from fhe_llm.providers.sse import ServerEvent

VERSION: Final = "2023-06-01"
DEFAULT_MAX_TOKENS: Final = 4096
"""The API demands a limit; this is sent where the request has none."""
MOST_BLOCKS: Final = 4096
_MANAGED: Final = (
    "messages",
    "model",
    "stream",
    "system",
    "max_tokens",
    "temperature",
    "top_p",
    "stop_sequences",
    "tools",
    "tool_choice",
)
_FINISH: Final[Mapping[str, ProviderFinish]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUS_OF: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_INPUT_COUNTS: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


@dataclass(frozen=True, slots=True)
class AnthropicMessages:
    """The dialect."""

    name: str = "anthropic"
    path: str = "/v1/messages"

    def check(self, request: ProviderRequest) -> None:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        limits = Limits(self.name, managed=_MANAGED, seed=False, highest_temperature=1.0)
        limits.check(request)
        if any(not stop.strip() for stop in request.stop):
            raise limits.refusal("stop", "one of the sequences is white space alone", "Drop it.")
        roles = [message["role"] for message in request.messages]
        talk = roles[_systems(roles) :]
        if "system" in talk:
            raise limits.refusal(
                f"message {len(roles) - len(talk) + talk.index('system')}",
                "this API takes system messages at the beginning only",
                "Move it there.",
            )
        if not talk:
            raise limits.refusal(
                "the messages", "there are only system messages", "Add a message of the user."
            )
        for position, message in enumerate(request.messages):
            if message["role"] == "user" and not message["content"].strip():
                raise limits.refusal(f"message {position}", "it is empty", "Drop it.")

    def headers(self, key: str | None) -> dict[str, str]:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        return {"anthropic-version": VERSION, **({"x-api-key": key} if key is not None else {})}

    def body(self, request: ProviderRequest, model: str, *, streamed: bool) -> dict[str, Any]:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        systems = _systems([message["role"] for message in request.messages])
        given = {
            "system": "\n\n".join(message["content"] for message in request.messages[:systems]) or None,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop_sequences": list(request.stop) or None,
            "tools": [_tool(tool) for tool in request.tools] or None,
            "tool_choice": _choice(request.tool_choice),
            "stream": streamed or None,
        }
        return {
            "model": model,
            "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
            "messages": _turns(request.messages[systems:]),
            **{name: value for name, value in given.items() if value is not None},
            **request.extra,
        }

    def answer(self, body: Mapping[str, Any], model: str) -> ProviderAnswer:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        building = _Answer(model)
        content = body.get("content")
        if not isinstance(content, list):
            raise UnreadableError("it has no 'content'")
        building.describe(body)
        for index, block in enumerate(content):
            building.begin(index, record(block))
        building.conclude(body, body)
        return building.answer()

    def reader(self, model: str) -> MessageReader:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        return MessageReader(self, model)

    def refusal(self, status: int, body: Any) -> Refusal:
        """``{"type": "error", "error": {"type", "message"}}``; status 0, within a stream, is read from the type."""
        error = record(record(body).get("error"))
        kind, message = error.get("type"), error.get("message")
        return Refusal(
            status or _STATUS_OF.get(kind if isinstance(kind, str) else "", 500),
            codes=(kind,) if isinstance(kind, str) else (),
            message=message if isinstance(message, str) else "",
        )


class MessageReader:
    """A streamed answer: ``message_start``, blocks with their deltas, ``message_delta``, ``message_stop``."""

    def __init__(self, dialect: AnthropicMessages, model: str) -> None:
        self._dialect = dialect
        self._building = _Answer(model)
        self._ended = False

    @property
    def ended(self) -> bool:
        """See :class:`fhe_llm.providers.dialect.StreamReader`."""
        return self._ended

    def read(self, event: ServerEvent) -> str | Refusal:
        """See :class:`fhe_llm.providers.dialect.StreamReader`."""
        body = parsed(event.data)
        match body.get("type"):
            case "message_start":
                self._building.describe(record(body.get("message")))
            case "content_block_start":
                return self._building.begin(count(body.get("index")), record(body.get("content_block")))
            case "content_block_delta":
                return self._building.extend(count(body.get("index")), record(body.get("delta")))
            case "message_delta":
                self._building.conclude(record(body.get("delta")), body)
            case "message_stop":
                self._ended = True
            case "error":
                return self._dialect.refusal(0, body)
        return ""  # pings, ends of blocks, and events that are newer than this reader

    def answer(self) -> ProviderAnswer:
        """See :class:`fhe_llm.providers.dialect.StreamReader`."""
        return self._building.answer()


class _Answer:
    """Collects blocks; those that are neither text nor a tool call, such as thinking, are left out."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._text: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._finish: ProviderFinish | None = None
        self._input = self._output = 0
        self._counted = False

    def describe(self, message: Mapping[str, Any]) -> None:
        self._model = text(message.get("model")) or self._model
        self._count(message)

    def begin(self, index: int, block: Mapping[str, Any]) -> str:
        match block.get("type"):
            case "text":
                return self._add(text(block.get("text")))
            case "tool_use":
                if len(self._calls) >= MOST_BLOCKS:
                    raise UnreadableError("it has too many tool calls")
                whole = block.get("input")
                arguments = [json.dumps(whole, ensure_ascii=False)] if whole else []
                self._calls[index] = _Call(text(block.get("id")), text(block.get("name")), arguments)
        return ""

    def extend(self, index: int, delta: Mapping[str, Any]) -> str:
        match delta.get("type"):
            case "text_delta":
                return self._add(text(delta.get("text")))
            case "input_json_delta":
                if index not in self._calls:
                    raise UnreadableError("a tool call has no beginning")
                self._calls[index].arguments.append(text(delta.get("partial_json")))
        return ""

    def conclude(self, delta: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
        if (reason := delta.get("stop_reason")) is not None:
            self._finish = _FINISH.get(reason if isinstance(reason, str) else "", "unknown")
        self._count(counted)

    def _add(self, piece: str) -> str:
        if piece:
            self._text.append(piece)
        return piece

    def _count(self, holder: Mapping[str, Any]) -> None:
        """Counts are cumulative, so the last one holds; what came from a cache was sent too."""
        usage = record(holder.get("usage"))
        if usage:
            self._counted = True
            self._input = sum(count(usage.get(name)) for name in _INPUT_COUNTS) or self._input
            self._output = count(usage.get("output_tokens")) or self._output

    def answer(self) -> ProviderAnswer:
        calls = [self._calls[index] for index in sorted(self._calls)]
        if self._finish is None and not calls and not self._text:
            raise UnreadableError("it is empty")
        if not all(call.id and call.name for call in calls):
            raise UnreadableError("a tool call has no id or no name")
        return ProviderAnswer(
            text="".join(self._text),
            finish=self._finish or "unknown",
            model=self._model,
            tool_calls=tuple(
                ProviderToolCall(call.id, call.name, "".join(call.arguments) or "{}") for call in calls
            ),
            usage=ProviderUsage(self._input, self._output) if self._counted else None,
        )


@dataclass(frozen=True, slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str]


def _systems(roles: Sequence[str]) -> int:
    """How many messages at the beginning are system messages."""
    return next((position for position, role in enumerate(roles) if role != "system"), len(roles))


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results of tools become blocks of one user's message, with the user's own words after them."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"]}
        return [{**result, "content": message["content"]} if message["content"] else result]
    spoken = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return spoken + [_tool_use(call) for call in message.get("tool_calls") or ()]


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": function["arguments"]}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = function_of(tool)
    translated = {
        "name": function["name"],
        "description": function.get("description"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
        "strict": function.get("strict"),
    }
    return {name: value for name, value in translated.items() if value is not None}


def _choice(choice: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        return {"type": {"auto": "auto", "none": "none", "required": "any"}[choice]}
    return {"type": "tool", "name": function_of(choice)["name"]}
