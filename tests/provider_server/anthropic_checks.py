"""What Anthropic's messages API refuses, in its words. Two versions: 2026-10-21 took the sampling settings away."""

from __future__ import annotations

import re
from typing import Any, Final

VERSIONS: Final = ("2023-06-01", "2026-10-21")
FIELDS: Final = frozenset(
    [
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "inference_geo",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "output_config",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "thinking",
        "tool_choice",
        "tools",
        "user_profile_id",
        "workspace_id",
    ]
)
SAMPLING: Final = ("temperature", "top_p", "top_k")
MODELS: Final = re.compile(r"claude-(opus|sonnet|haiku|fable|mythos)-(4|5)(-\d)?(-\d{8})?$")
_UNSAMPLED: Final = re.compile(r"claude-(opus-4-[78]|(opus|sonnet|haiku|fable|mythos)-5)")
_ONE_SAMPLING: Final = re.compile(r"claude-(opus-4-[1-6]|sonnet-4-[56]|haiku-4-5)")
_NO_PREFILL: Final = re.compile(r"claude-((opus|sonnet)-4-[6-8]|(opus|sonnet|haiku|fable|mythos)-5)")
NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}$")
_ID: Final = re.compile(r"[a-zA-Z0-9_-]+$")
_BLOCKS: Final = (
    "text",
    "image",
    "document",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "tool_result",
    "search_result",
)


class Invalid(Exception):  # noqa: N818 - the API's word
    """An error's message and type."""

    def __init__(self, message: str, kind: str = "invalid_request_error", status: int = 400) -> None:
        super().__init__(message)
        self.message, self.kind, self.status = message, kind, status


def check_body(body: Any, version: str) -> None:
    """Raises :class:`Invalid` for the first thing that is wrong."""
    if not isinstance(body, dict):
        raise Invalid("The request body is not valid JSON")
    _check_fields(body, version)
    if not MODELS.match(body["model"]):
        raise Invalid(f"model: {body['model']}", "not_found_error", 404)
    _check_sampling(body)
    _check_system(body.get("system"))
    _check_tools(body)
    _check_messages(body)


def _check_fields(body: dict[str, Any], version: str) -> None:
    known = FIELDS | (frozenset(SAMPLING) if version == "2023-06-01" else frozenset())
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            raise Invalid(f"{name}: Field required")
    for name in body.keys() - known:
        raise Invalid(f"{name}: Extra inputs are not permitted")
    limit = body["max_tokens"]
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise Invalid("max_tokens: Input should be a valid integer")
    if limit < 1:
        raise Invalid("max_tokens: must be greater than or equal to 1")
    if limit > 128_000:
        raise Invalid(
            f"max_tokens: {limit} > 128000, which is the maximum allowed number of output tokens for {body['model']}"
        )
    if not isinstance(body["model"], str):
        raise Invalid("model: Input should be a valid string")
    if not isinstance(body["messages"], list):
        raise Invalid("messages: Input should be a valid array")
    if not isinstance(body.get("stream", False), bool):
        raise Invalid("stream: Input should be a valid boolean")
    stops = body.get("stop_sequences", [])
    if not isinstance(stops, list):
        raise Invalid("stop_sequences: Input should be a valid array")
    if any(not stop.strip() for stop in stops):
        raise Invalid("stop_sequences: each stop sequence must contain non-whitespace")


def _check_sampling(body: dict[str, Any]) -> None:
    for name in SAMPLING:
        if name in body and _UNSAMPLED.match(body["model"]):
            raise Invalid(f"`{name}` is deprecated for this model.")
    for name in ("temperature", "top_p"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid(f"{name}: Input should be a valid number")
        if not 0 <= value <= 1:
            raise Invalid(f"{name}: range: 0..1")
    if "temperature" in body and "top_p" in body and _ONE_SAMPLING.match(body["model"]):
        raise Invalid(
            "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
        )


def _check_system(system: Any) -> None:
    if system is None or isinstance(system, str):
        return
    if not isinstance(system, list):
        raise Invalid("system: Input should be a valid array")
    for n, block in enumerate(system):
        if block.get("type") != "text":
            raise Invalid(f"system.{n}.type: Input should be 'text'")
        if not block.get("text"):
            raise Invalid("system: text content blocks must be non-empty")


def _check_tools(body: dict[str, Any]) -> None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice is not None:
        if not isinstance(choice, dict) or choice.get("type") not in ("auto", "any", "tool", "none"):
            raise Invalid("tool_choice: Input should be a valid dictionary or object to extract fields from")
        if not tools and choice["type"] != "none":
            raise Invalid("tool_choice may only be specified while providing tools")
        if choice["type"] == "tool" and choice.get("name") not in [tool.get("name") for tool in tools or ()]:
            raise Invalid(f"Tool '{choice.get('name')}' not found in provided tools")
    for n, tool in enumerate(tools or ()):
        if "function" in tool:
            raise Invalid(f"tools.{n}.custom.function: Extra inputs are not permitted")
        if "name" not in tool:
            raise Invalid(f"tools.{n}.custom.name: Field required")
        if not NAME.match(tool["name"]):
            raise Invalid(f"tools.{n}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if "input_schema" not in tool:
            raise Invalid(f"tools.{n}.custom.input_schema: Field required")
        if tool["input_schema"].get("type") != "object":
            raise Invalid(f"tools.{n}.custom.input_schema.type: Input should be 'object'")
        for name in tool.keys() - {
            "name",
            "description",
            "input_schema",
            "type",
            "cache_control",
            "strict",
            "input_examples",
        }:
            raise Invalid(f"tools.{n}.custom.{name}: Extra inputs are not permitted")


def _check_messages(body: dict[str, Any]) -> None:
    messages = body["messages"]
    if not messages:
        raise Invalid("messages: at least one message is required")
    for n, message in enumerate(messages):
        _check_message(n, message, last=n == len(messages) - 1)
    _check_order(_merged(messages))
    if messages[-1]["role"] == "assistant" and _NO_PREFILL.match(body["model"]):
        raise Invalid(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )


def _check_message(n: int, message: dict[str, Any], *, last: bool) -> None:
    where = f"messages.{n}"
    if message.get("role") == "system":
        raise Invalid(
            'messages: Unexpected role "system". The Messages API accepts a top-level `system` parameter, not '
            '"system" as an input message role.'
        )
    if message.get("role") not in ("user", "assistant"):
        raise Invalid(f"{where}.role: Input should be 'user' or 'assistant'")
    for name in message.keys() - {"role", "content"}:
        raise Invalid(f"{where}.{name}: Extra inputs are not permitted")
    content = message.get("content")
    if content is None:
        raise Invalid(f"{where}.content: Field required")
    if not isinstance(content, str | list):
        raise Invalid(f"{where}.content: Input should be a valid array")
    prefill = last and message["role"] == "assistant"
    if not content and not prefill:
        raise Invalid(
            f"{where}: all messages must have non-empty content except for the optional final assistant message"
        )
    if prefill and isinstance(content, str) and content != content.rstrip():
        raise Invalid("messages: final assistant content cannot end with trailing whitespace")
    if isinstance(content, str) and content and not content.strip():
        raise Invalid("messages: text content blocks must contain non-whitespace text")
    for k, block in enumerate(content if isinstance(content, list) else ()):
        _check_block(f"{where}.content.{k}", block, message["role"])


def _check_block(at: str, block: dict[str, Any], role: str) -> None:
    kind = block.get("type")
    if kind not in _BLOCKS:
        listed = ", ".join(f"'{name}'" for name in _BLOCKS)
        raise Invalid(
            f"{at}: Input tag '{kind}' found using 'type' does not match any of the expected tags: {listed}"
        )
    if kind == "text":
        if not isinstance(block.get("text"), str):
            raise Invalid(f"{at}.text.text: Field required")
        if not block["text"]:
            raise Invalid("messages: text content blocks must be non-empty")
        if not block["text"].strip():
            raise Invalid("messages: text content blocks must contain non-whitespace text")
    if kind == "tool_use":
        if role != "assistant":
            raise Invalid(f"{at}: `tool_use` blocks can only be in `assistant` messages")
        if not _ID.match(block.get("id", "")):
            raise Invalid(f"{at}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
        if not isinstance(block.get("input"), dict):
            raise Invalid(f"{at}.tool_use.input: Input should be a valid dictionary")
    if kind == "tool_result":
        if role != "user":
            raise Invalid(f"{at}: `tool_result` blocks can only be in `user` messages")
        if not isinstance(block.get("tool_use_id"), str):
            raise Invalid(f"{at}.tool_result.tool_use_id: Field required")


def _merged(messages: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Turns of one role in a row are one turn."""
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if turns and turns[-1][0] == message["role"]:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message["role"], list(blocks)))
    return turns


def _check_order(turns: list[tuple[str, list[dict[str, Any]]]]) -> None:
    calls: list[str] = []
    for n, (_, blocks) in enumerate(turns):
        leading = []
        for block in blocks:
            if block["type"] != "tool_result":
                break
            leading.append(block["tool_use_id"])
        missing = [call for call in calls if call not in leading]
        if missing:
            raise Invalid(_without_results(n - 1, missing))
        for k, block in enumerate(blocks):
            if block["type"] == "tool_result" and block["tool_use_id"] not in calls:
                raise Invalid(
                    f"messages.{n}.content.{k}: unexpected `tool_use_id` found in `tool_result` blocks: "
                    f"{block['tool_use_id']}. Each `tool_result` block must have a corresponding `tool_use` block in "
                    "the previous message."
                )
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        if len(set(calls)) != len(calls):
            raise Invalid(f"messages.{n}: `tool_use` ids must be unique")
    if calls:
        raise Invalid(_without_results(len(turns) - 1, calls))


def _without_results(n: int, calls: list[str]) -> str:
    return (
        f"messages.{n}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(calls)}. "
        "Each `tool_use` block must have a corresponding `tool_result` block in the next message."
    )
