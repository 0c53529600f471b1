"""Between LangChain's messages and those of :class:`fhe_llm.EncryptedLLM`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk

from fhe_llm import Answer, Chunk, PrivacyReceipt
from fhe_llm.errors import RequestError

RECEIPT: Final = "privacy_receipt"
"""Where the receipt stands in a message's ``response_metadata``."""
_ROLES: Final = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
)
_NOT_TEXT: Final = ("tool_use", "tool_call", "input_json_delta")
"""Parts of an assistant's content that repeat its ``tool_calls``."""


def to_dicts(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """OpenAI's dicts. Content that is not text is kept for the core to refuse by name; a call that could not be read is
    refused here, and so is a message of an unknown kind."""
    return [_to_dict(message) for message in messages]


def _to_dict(message: BaseMessage) -> dict[str, Any]:
    content: Any = message.content
    if isinstance(message, AIMessage):
        if message.invalid_tool_calls:
            raise RequestError(
                "cannot use the messages: one holds a tool call that is no JSON. Remove that message."
            )
        if isinstance(content, list):
            content = [
                part for part in content if not (isinstance(part, dict) and part.get("type") in _NOT_TEXT)
            ]
    found: dict[str, Any] = {"role": _role(message), "content": content}
    if message.name:
        found["name"] = message.name
    if isinstance(message, AIMessage) and message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["args"]},
            }
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        found["tool_call_id"] = message.tool_call_id
        found["content"] = _result(message)
    return found


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if isinstance(message, FunctionMessage):
        return "tool"
    role = next((role for kind, role in _ROLES if isinstance(message, kind)), None)
    if role is None:
        raise RequestError(f"cannot use a {type(message).__name__}: it has no role in a chat. Remove it.")
    return role


def _result(message: ToolMessage) -> Any:
    """A tool's result; parts that are data go to the model as JSON, an error says that it is one."""
    content: Any = message.content
    if isinstance(content, list):
        content = [
            json.dumps(part.get("json")) if isinstance(part, dict) and part.get("type") == "json" else part
            for part in content
        ]
    return f"Error: {content}" if message.status == "error" and isinstance(content, str) else content


def to_message(answer: Answer) -> AIMessage:
    """The whole answer with its usage, its receipt and its calls."""
    return AIMessage(
        content=answer.text,
        tool_calls=[tool_call(name=call.name, args=call.arguments, id=call.id) for call in answer.tool_calls],
        invalid_tool_calls=[
            {"type": "invalid_tool_call", "name": None, "args": None, "id": None, "error": _CUT_OFF}
            for _ in range(bool(answer.unfinished_tool_call))
        ],
        usage_metadata=usage(answer),
        response_metadata=metadata(answer),
    )


_CUT_OFF: Final = "cut off at max_tokens"


def to_chunk(chunk: Chunk, calls_before: int) -> AIMessageChunk:
    """A piece of the answer; the last one carries usage and receipt."""
    message = AIMessageChunk(
        content=chunk.text,
        tool_call_chunks=[
            tool_call_chunk(
                name=call.name,
                args=json.dumps(call.arguments, ensure_ascii=False),
                id=call.id,
                index=calls_before + number,
            )
            for number, call in enumerate(chunk.tool_calls)
        ],
    )
    if chunk.answer is not None:
        message.usage_metadata = usage(chunk.answer)
        message.response_metadata = metadata(chunk.answer)
        message.chunk_position = "last"
    return message


def usage(answer: Answer) -> UsageMetadata:
    """Tokens read and written; those the prefix cache had are "cache_read"."""
    return UsageMetadata(
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.completion_tokens,
        total_tokens=answer.prompt_tokens + answer.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=answer.cached_tokens),
    )


def metadata(answer: Answer) -> dict[str, Any]:
    """What LangChain and its users look for in ``response_metadata``: no text, no token."""
    return {
        "model_name": answer.receipt.model,
        "model_provider": "fhe-llm",
        "finish_reason": answer.finish_reason,
        "seconds": answer.timings.seconds,
        RECEIPT: answer.receipt.to_dict(),
    }


def privacy_receipt(message: BaseMessage) -> PrivacyReceipt:
    """The receipt of an answer. Raises :class:`fhe_llm.errors.RequestError` for a message that has none."""
    found = message.response_metadata.get(RECEIPT)
    if not isinstance(found, dict):
        raise RequestError(
            "cannot show a receipt: the message has none. Pass what ChatEncrypted returned, streamed chunks added up."
        )
    return PrivacyReceipt.from_dict(found)
