"""Answers of closed providers as LlamaIndex reads them: text, calls, counts and receipts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from pydantic import BaseModel, ValidationError

from fhe_llm.errors import RequestError
from fhe_llm.providers import PrivateAnswer
from fhe_llm_llamaindex.messages import token_counts
from fhe_llm_llamaindex.structured import place

M = TypeVar("M", bound=BaseModel)


def chat_response(text: str, answer: PrivateAnswer | None, delta: str | None = None) -> ChatResponse:
    """Calls are both blocks and OpenAI's dicts, since LlamaIndex looks for either; one that is no JSON is no block."""
    made = answer.tool_calls if answer else ()
    blocks: list[ContentBlock] = [TextBlock(text=text)] if text or not made else []
    for call in made:
        with suppress(ValueError, TypeError):
            arguments = dict(json.loads(call.arguments))
            blocks.append(ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments))
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in made
    ]
    message = ChatMessage(
        role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs={"tool_calls": calls} if calls else {}
    )
    return ChatResponse(message=message, delta=delta, raw=_raw(answer), additional_kwargs=_accounts(answer))


def completion_response(response: ChatResponse) -> CompletionResponse:
    """The response of a text completion."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def choice_of(choice: str | Mapping[str, Any] | None, *, required: bool) -> str | Mapping[str, Any]:
    """LlamaIndex's ways to name a tool, in OpenAI's form."""
    if isinstance(choice, Mapping):
        return {"type": "function", **choice}
    if choice is None or choice in ("auto", "none", "required"):
        return choice or ("required" if required else "auto")
    return {"type": "function", "function": {"name": choice}}


def forced_tool(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The options of a call that must answer with ``output_cls``: a tool that takes its fields."""
    name, schema = output_cls.__name__, output_cls.model_json_schema()
    function = {"name": name, "description": schema.get("description", name), "parameters": schema}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": name}},
    }


def model_of(output_cls: type[M], response: ChatResponse) -> M:
    """The model in the call of :func:`forced_tool`. Raises :class:`RequestError`, without the answer's text."""
    calls = response.message.additional_kwargs.get("tool_calls")
    cause = "the provider called no tool"
    if calls:
        try:
            return output_cls.model_validate_json(calls[0]["function"]["arguments"])
        except ValidationError as error:
            cause = ", ".join(sorted({place(detail) for detail in error.errors(include_input=False)}))
    if response.additional_kwargs.get("finish_reason") == "length":
        raise RequestError(f"cannot make {output_cls.__name__}: the answer was cut off. Raise max_tokens.")
    raise RequestError(f"cannot make {output_cls.__name__}: {cause}. Say more in the schema, or ask again.")


def _raw(answer: PrivateAnswer | None) -> dict[str, Any] | None:
    """What token counters and traces look for; no text."""
    if answer is None:
        return None
    return {
        "model": answer.model,
        "request_id": answer.request_id,
        "finish_reason": answer.finish,
        "receipt": answer.receipt.to_dict(),
        "usage": _usage(answer),
        **_usage(answer),
    }


def _usage(answer: PrivateAnswer) -> dict[str, int]:
    usage = answer.usage
    if usage is None:
        return {}
    return token_counts(usage.input_tokens, usage.output_tokens)


def _accounts(answer: PrivateAnswer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    return {**_usage(answer), "finish_reason": answer.finish, "receipt": answer.receipt}
