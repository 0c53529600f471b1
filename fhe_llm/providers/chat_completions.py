"""The chat-completions dialect: OpenAI's, and with small differences that of almost everybody else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fhe_llm.providers.contract import (
    ProviderAnswer,
    ProviderFinish,
    ProviderRequest,
    ProviderToolCall,
    ProviderUsage,
)
from fhe_llm.providers.dialect import UnreadableError, count, parsed, record, text
from fhe_llm.providers.refusals import Refusal, wished
from fhe_llm.providers.request_checks import Limits
from fhe_llm.providers.sse import ServerEvent

MOST_TOOL_CALLS: Final = 1024
_MANAGED: Final = (
    "messages",
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "n",
)
_FINISH: Final[Mapping[str, ProviderFinish]] = {
    "stop": "stop",
    "stop_sequence": "stop",
    "eos_token": "stop",  # text-generation-inference
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_STATUS_OF: Final[Mapping[str, int]] = {
    "overloaded": 503,
    "unhealthy": 503,
    "overloaded_error": 529,
    "server_is_overloaded": 503,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "validation": 422,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "model_not_found": 404,
}
"""Statuses of errors that come within a stream, where there is no status line for them."""


@dataclass(frozen=True, slots=True)
class ChatCompletions:
    """One provider's variant; ``limit_name`` is how it calls ``max_tokens``."""

    name: str
    limit_name: str = "max_tokens"
    most_stops: int | None = None
    path: str = "/chat/completions"
    own_headers: Mapping[str, str] = field(default_factory=dict)

    def check(self, request: ProviderRequest) -> None:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        Limits(self.name, managed=_MANAGED, most_stops=self.most_stops).check(request)

    def headers(self, key: str | None) -> dict[str, str]:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        return {**self.own_headers, **({"authorization": f"Bearer {key}"} if key is not None else {})}

    def body(self, request: ProviderRequest, model: str, *, streamed: bool) -> dict[str, Any]:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        given = {
            self.limit_name: request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop) or None,
            "seed": request.seed,
            "tools": [dict(tool) for tool in request.tools] or None,
            "tool_choice": request.tool_choice,
            "stream": streamed or None,
            "stream_options": {"include_usage": True} if streamed else None,
        }
        return {
            "model": model,
            "messages": [_message(message) for message in request.messages],
            **{name: value for name, value in given.items() if value is not None},
            **request.extra,
        }

    def answer(self, body: Mapping[str, Any], model: str) -> ProviderAnswer:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        building = _Answer(model)
        if not isinstance(body.get("choices"), list) or not body["choices"]:
            raise UnreadableError("it has no 'choices'")
        building.add(body, "message")
        building.ended = True
        return building.answer()

    def reader(self, model: str) -> CompletionReader:
        """See :class:`fhe_llm.providers.dialect.Dialect`."""
        return CompletionReader(self, model)

    def refusal(self, status: int, body: Any) -> Refusal:
        """OpenAI's ``{"error": {"message", "type", "param", "code"}}``, and text-generation-inference's
        ``{"error": "…", "error_type"?, "estimated_time"?}``."""
        whole = record(body)
        error = whole.get("error")
        inner = record(error) or (whole if "message" in whole or "code" in whole else {})
        codes = [inner.get("code"), inner.get("type"), whole.get("error_type"), whole.get("object")]
        message = error if isinstance(error, str) else inner.get("message")
        parameter = inner.get("param")
        return Refusal(
            status,
            codes=tuple(code for code in codes if isinstance(code, str)),
            message=message if isinstance(message, str) else "",
            parameter=parameter if isinstance(parameter, str) else None,
            retry_after=wished(whole.get("estimated_time")),
        )

    def refusal_in_stream(self, body: Mapping[str, Any]) -> Refusal:
        """The same within a stream, where the status is in the words, or was put in place of a code."""
        known = self.refusal(0, body)
        code = record(body.get("error")).get("code")
        if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
            return self.refusal(code, body)
        status = next((_STATUS_OF[word] for word in known.codes if word in _STATUS_OF), 500)
        return self.refusal(status, body)


class CompletionReader:
    """A streamed answer: chunks with a ``delta`` each, the usage after them, then ``[DONE]``."""

    def __init__(self, dialect: ChatCompletions, model: str) -> None:
        self._dialect = dialect
        self._building = _Answer(model)

    @property
    def ended(self) -> bool:
        """See :class:`fhe_llm.providers.dialect.StreamReader`."""
        return self._building.ended

    def read(self, event: ServerEvent) -> str | Refusal:
        """See :class:`fhe_llm.providers.dialect.StreamReader`."""
        if event.data.strip() == "[DONE]":
            self._building.ended = True
            return ""
        chunk = parsed(event.data)
        if event.name == "error" or chunk.get("error"):
            return self._dialect.refusal_in_stream(chunk)
        return self._building.add(chunk, "delta")

    def answer(self) -> ProviderAnswer:
        """See :class:`fhe_llm.providers.dialect.StreamReader`."""
        return self._building.answer()


class _Answer:
    """Collects what ``message`` or the ``delta`` objects hold."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._text: list[str] = []
        self._calls: list[_Call] = []
        self._finish: ProviderFinish | None = None
        self._refused = False
        self._usage: ProviderUsage | None = None
        self.ended = False

    def add(self, body: Mapping[str, Any], part: str) -> str:
        self._model = text(body.get("model")) or self._model
        usage = record(body.get("usage"))
        if usage:
            self._usage = ProviderUsage(
                count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
            )
        added = ""
        choices = body.get("choices")
        for choice in map(record, choices if isinstance(choices, list) else ()):
            if count(choice.get("index")) == 0:  # one is asked for; some servers number none
                added += self._add_choice(choice, record(choice.get(part)))
        return added

    def _add_choice(self, choice: Mapping[str, Any], said: Mapping[str, Any]) -> str:
        if (reason := choice.get("finish_reason")) is not None:
            self._finish = _FINISH.get(reason if isinstance(reason, str) else "", "unknown")
        calls = said.get("tool_calls")
        for call in calls if isinstance(calls, list) else [calls]:  # a lone object at older servers
            if isinstance(call, dict):
                self._add_call(call)
        refusal = text(said.get("refusal"))
        self._refused = self._refused or bool(refusal)
        added = _content(said.get("content")) + refusal
        if added:
            self._text.append(added)
        return added

    def _add_call(self, call: Mapping[str, Any]) -> None:
        """A piece belongs to the call of its index; without an index, an id begins a new call."""
        index, named = call.get("index"), text(call.get("id"))
        found = next((made for made in self._calls if made.index == index and index is not None), None)
        if found is None and index is None and not named and self._calls:
            found = self._calls[-1]
        if found is None:
            if len(self._calls) >= MOST_TOOL_CALLS:
                raise UnreadableError("it has too many tool calls")
            found = _Call(index)
            self._calls.append(found)
        function = record(call.get("function"))
        arguments = function.get("arguments")
        found.id = found.id or named
        found.name = found.name or text(function.get("name"))
        found.arguments.append(json.dumps(arguments) if isinstance(arguments, dict) else text(arguments))

    def answer(self) -> ProviderAnswer:
        calls = tuple(
            ProviderToolCall(call.id or f"call_{position}", call.name, "".join(call.arguments) or "{}")
            for position, call in enumerate(self._calls)
        )
        if self._finish is None and not calls and not self._text:
            raise UnreadableError("it is empty")
        if not all(call.name for call in calls):
            raise UnreadableError("a tool call has no name")
        finish = self._finish or "unknown"
        if self._refused:
            finish = "content_filter"
        elif calls and finish == "stop":
            finish = "tool_calls"  # where a certain tool was asked for, OpenAI says "stop"
        return ProviderAnswer(
            text="".join(self._text), finish=finish, model=self._model, tool_calls=calls, usage=self._usage
        )


@dataclass(slots=True)
class _Call:
    index: Any
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A plain message in OpenAI's form: arguments are JSON text there, and a message of calls alone has no content."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "content": message["content"] or None, "tool_calls": calls}


def _content(content: Any) -> str:
    """Text, or a list of parts of which the text ones count."""
    if isinstance(content, list):
        return "".join(text(record(part).get("text")) for part in content)
    return text(content)
