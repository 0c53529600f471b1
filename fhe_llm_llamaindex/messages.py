"""LlamaIndex's messages as the model reads them, and its answers as LlamaIndex reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

from fhe_llm import Answer, Chunk, ToolCall
from fhe_llm.errors import RequestError

_ROLES: Final = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """OpenAI's dicts, as :meth:`fhe_llm.EncryptedLLM.chat` takes them.

    Raises :class:`RequestError` for a block that is not text, such as an image, and names it.
    """
    return [_plain(message, position) for position, message in enumerate(messages)]


def _plain(message: ChatMessage, position: int) -> dict[str, Any]:
    for block in message.blocks:
        if not isinstance(block, TextBlock | ToolCallBlock):
            raise RequestError(
                f"cannot use message {position}: a block of type {block.block_type!r} is not text. "
                "The model reads text only; drop it."
            )
    plain: dict[str, Any] = {"role": _ROLES[message.role], "content": message.content or ""}
    if calls := _calls(message):
        plain["tool_calls"] = calls
    if "tool_call_id" in message.additional_kwargs:
        plain["tool_call_id"] = message.additional_kwargs["tool_call_id"]
    return plain


def _calls(message: ChatMessage) -> list[Any]:
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if not blocks:
        return list(message.additional_kwargs.get("tool_calls") or ())
    return [
        {"id": block.tool_call_id, "function": {"name": block.tool_name, "arguments": block.tool_kwargs}}
        for block in blocks
    ]


class Unfolding:
    """The responses of one answer as its chunks come: each carries all text so far, the last one the receipt."""

    def __init__(self) -> None:
        self._text = ""
        self._calls: list[ToolCall] = []

    def chat(self, chunk: Chunk) -> ChatResponse:
        """The response after ``chunk``."""
        self._add(chunk)
        return chat_response(self._text, self._calls, chunk.answer, delta=chunk.text)

    def completion(self, chunk: Chunk) -> CompletionResponse:
        """The same of a text completion."""
        self._add(chunk)
        return completion_response(self._text, chunk.answer, delta=chunk.text)

    def _add(self, chunk: Chunk) -> None:
        self._text += chunk.text
        self._calls += chunk.tool_calls


def chat_response(
    text: str, calls: Sequence[ToolCall], answer: Answer | None, delta: str | None = None
) -> ChatResponse:
    """``calls`` are both blocks and OpenAI's dicts, since LlamaIndex looks for either."""
    blocks: list[ContentBlock] = [TextBlock(text=text)] if text or not calls else []
    blocks += [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments) for call in calls
    ]
    named = {"tool_calls": [_openai_dict(call) for call in calls]} if calls else {}
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=named),
        delta=delta,
        raw=_raw(answer),
        additional_kwargs=_accounts(answer),
    )


def completion_response(text: str, answer: Answer | None, delta: str | None = None) -> CompletionResponse:
    """The response of a text completion."""
    return CompletionResponse(text=text, delta=delta, raw=_raw(answer), additional_kwargs=_accounts(answer))


def _openai_dict(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _raw(answer: Answer | None) -> dict[str, Any] | None:
    """``Answer.to_dict()`` with the counts under the name that token counters look for."""
    return None if answer is None else {**answer.to_dict(), "usage": _usage(answer)}


def token_counts(prompt: int, completion: int) -> dict[str, int]:
    """Counts under the names that LlamaIndex's token counters look for."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def as_messages(prompt: str, chat: bool) -> str | list[dict[str, Any]]:
    """A prompt as a user's message where the model is a chat model; else as it is."""
    return [{"role": "user", "content": prompt}] if chat else prompt


def with_user_message(
    chat_history: Sequence[ChatMessage] | None, user_msg: str | ChatMessage | None
) -> list[ChatMessage]:
    """The history, and behind it the user's new message where there is one."""
    new = ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
    return [*(chat_history or ()), *([] if new is None else [new])]


def tool_dicts(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, descriptions of any length."""
    return [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]


def _usage(answer: Answer) -> dict[str, int]:
    return token_counts(answer.prompt_tokens, answer.completion_tokens)


def _accounts(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    return {**_usage(answer), "finish_reason": answer.finish_reason, "receipt": answer.receipt}


def tool_selections(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """The calls in a response. Raises :class:`RequestError`, without the answer's text, where one is ``required``."""
    found = []
    for call in _calls(response.message):
        function = call["function"]
        arguments = function["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        found.append(
            ToolSelection(tool_id=call["id"] or "", tool_name=function["name"], tool_kwargs=arguments)
        )
    if required and not found:
        raw = response.raw if isinstance(response.raw, dict) else {}
        if raw.get("finish_reason") == "length":
            cause = f"the answer was cut off after {raw['completion_tokens']} tokens. Raise max_tokens"
        else:
            cause = "the model answered in text. Pass tool_required=True"
        raise RequestError(f"cannot call a tool: {cause}.")
    return found
