"""What OpenAI's chat completions refuse, in the words and codes of their API."""

from __future__ import annotations

import re
from typing import Any, Final

FIELDS: Final = frozenset(
    [
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    ]
)
MODELS: Final = re.compile(r"(gpt-(3\.5|4|4o|4\.1|5(\.\d)?|6(\.\d)?)|o[134]|chatgpt)(-[a-z0-9.-]+)?$")
REASONING: Final = re.compile(r"(gpt-[56]|o[134])")
"""These models sample as they like: no temperature, no top_p, no stop, and the newer name of ``max_tokens``."""
NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}$")
ROLES: Final = ("system", "assistant", "user", "function", "tool", "developer")
_MESSAGE_FIELDS: Final = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio", "function_call")
)
_NUMBERS: Final = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_INTEGERS: Final = ("max_tokens", "max_completion_tokens", "n", "seed", "top_logprobs")


class Invalid(Exception):  # noqa: N818 - the API's word
    """The fields of an error body of status 400 (or another)."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


def check_body(body: Any) -> None:
    """Raises :class:`Invalid` for the first thing that is wrong."""
    if not isinstance(body, dict):
        raise Invalid("We could not parse the JSON body of your request. The API expects a JSON payload.")
    for name in body.keys() - FIELDS:
        raise Invalid(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    for name in ("model", "messages"):
        if name not in body:
            raise Invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    _check_model(body)
    _check_settings(body)
    _check_stop(body)
    _check_tools(body)
    _check_messages(body["messages"])


def _check_model(body: dict[str, Any]) -> None:
    model = body["model"]
    if not isinstance(model, str):
        raise _wrong_type("model", "a string", model)
    if not MODELS.match(model):
        raise Invalid(
            f"The model `{model}` does not exist or you do not have access to it.",
            None,
            "model_not_found",
            404,
        )
    if not REASONING.match(model):
        return
    if "max_tokens" in body:
        raise Invalid(
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        )
    for name in ("temperature", "top_p"):
        if body.get(name, 1) not in (1, None):
            raise Invalid(
                f"Unsupported value: '{name}' does not support {body[name]} with this model. "
                "Only the default (1) value is supported.",
                name,
                "unsupported_value",
            )
    if body.get("stop") is not None:
        raise Invalid(
            "Unsupported parameter: 'stop' is not supported with this model.", "stop", "unsupported_parameter"
        )


def _check_settings(body: dict[str, Any]) -> None:
    for name, (low, high) in _NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(name, "a decimal", value)
        if value > high:
            raise Invalid(
                f"Invalid '{name}': decimal above maximum value. Expected a value <= {high}, but got {value} instead.",
                name,
                "decimal_above_max_value",
            )
        if value < low:
            raise Invalid(
                f"Invalid '{name}': decimal below minimum value. Expected a value >= {low}, but got {value} instead.",
                name,
                "decimal_below_min_value",
            )
    for name in _INTEGERS:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, "an integer", value)
        if name.startswith("max") and value < 1:
            raise Invalid(
                f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {value} instead.",
                name,
                "integer_below_min_value",
            )
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise Invalid(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
            "invalid_parameter_combination",
        )
    if body.get("stream_options") is not None and not body.get("stream"):
        raise Invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )


def _check_stop(body: dict[str, Any]) -> None:
    stop = body.get("stop")
    if isinstance(stop, list):
        if not stop:
            raise Invalid(
                "Invalid 'stop': empty array. Expected an array with minimum length 1, but got an empty array "
                "instead.",
                "stop",
                "empty_array",
            )
        if len(stop) > 4:
            raise Invalid(
                "Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with "
                f"length {len(stop)} instead.",
                "stop",
                "array_above_max_length",
            )
    elif stop is not None and not isinstance(stop, str):
        raise _wrong_type("stop", "one of a string or array of strings", stop)


def _check_tools(body: dict[str, Any]) -> None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools is None:
        if choice is not None:
            raise Invalid(
                "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
                "tool_choice",
            )
        return
    if tools == []:
        raise Invalid(
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "tools",
            "empty_array",
        )
    for n, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise _missing_or_invalid(tool, "type", f"tools[{n}].type", ("function", "custom"))
        function = tool.get("function")
        if not isinstance(function, dict) or "name" not in function:
            raise Invalid(
                f"Missing required parameter: 'tools[{n}].function.name'.",
                f"tools[{n}].function.name",
                "missing_required_parameter",
            )
        if not NAME.match(function["name"]):
            raise Invalid(
                f"Invalid 'tools[{n}].function.name': string does not match pattern. Expected a string that matches "
                "the pattern '^[a-zA-Z0-9_-]+$'.",
                f"tools[{n}].function.name",
                "invalid_value",
            )
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise _invalid_value("tool_choice", choice, ("none", "auto", "required"))
    if isinstance(choice, dict) and choice.get("type") == "function":
        names = [tool["function"]["name"] for tool in tools]
        if choice.get("function", {}).get("name") not in names:
            raise Invalid(
                "Invalid value for 'tool_choice': the function named there is not among 'tools'.",
                "tool_choice",
            )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise Invalid(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            "messages",
            "empty_array",
        )
    for n, message in enumerate(messages):
        _check_message(n, message)
    _check_order(messages)


def _check_message(n: int, message: Any) -> None:
    where = f"messages[{n}]"
    if not isinstance(message, dict):
        raise _wrong_type(where, "an object", message)
    for name in message.keys() - _MESSAGE_FIELDS:
        raise Invalid(f"Unknown parameter: '{where}.{name}'.", f"{where}.{name}", "unknown_parameter")
    if message.get("role") not in ROLES:
        raise _missing_or_invalid(message, "role", f"{where}.role", ROLES)
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not (message["role"] == "assistant" and calls):
        raise Invalid("Invalid value for 'content': expected a string, got null.", f"messages.[{n}].content")
    if content is not None and not isinstance(content, str | list):
        raise _wrong_type(f"{where}.content", "one of a string or array of objects", content)
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise Invalid(
            f"Missing required parameter: '{where}.tool_call_id'.",
            f"{where}.tool_call_id",
            "missing_required_parameter",
        )
    if calls is not None:
        _check_calls(where, calls)


def _check_calls(where: str, calls: Any) -> None:
    if not calls:
        raise Invalid(
            f"Invalid '{where}.tool_calls': empty array. Expected an array with minimum length 1, but got an empty "
            "array instead.",
            f"{where}.tool_calls",
            "empty_array",
        )
    for n, call in enumerate(calls):
        at = f"{where}.tool_calls[{n}]"
        if not isinstance(call.get("id"), str):
            raise Invalid(f"Missing required parameter: '{at}.id'.", f"{at}.id", "missing_required_parameter")
        if call.get("type") != "function":
            raise _missing_or_invalid(call, "type", f"{at}.type", ("function", "custom"))
        function = call.get("function") or {}
        if not isinstance(function.get("arguments"), str):
            raise _wrong_type(f"{at}.function.arguments", "a string", function.get("arguments"))


def _check_order(messages: list[dict[str, Any]]) -> None:
    open_calls: list[str] = []
    called_at = 0
    for n, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                raise Invalid(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                    "'tool_calls'.",
                    f"messages.[{n}].role",
                )
            open_calls.remove(message["tool_call_id"])
            continue
        _none_open(open_calls, called_at + 1)
        open_calls = [call["id"] for call in message.get("tool_calls") or ()]
        called_at = n
    _none_open(open_calls, called_at)


def _none_open(calls: list[str], n: int) -> None:
    if calls:
        raise Invalid(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(calls)}",
            f"messages.[{n}].role",
        )


def _missing_or_invalid(where: dict[str, Any], name: str, at: str, known: tuple[str, ...]) -> Invalid:
    if name not in where:
        return Invalid(f"Missing required parameter: '{at}'.", at, "missing_required_parameter")
    return _invalid_value(at, where[name], known)


def _invalid_value(at: str, value: Any, known: tuple[str, ...]) -> Invalid:
    listed = ", ".join(f"'{name}'" for name in known[:-1]) + f", and '{known[-1]}'"
    return Invalid(f"Invalid value: '{value}'. Supported values are: {listed}.", at, "invalid_value")


def _wrong_type(at: str, expected: str, value: Any) -> Invalid:
    kinds: dict[type, str] = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        list: "an array",
        dict: "an object",
        type(None): "null",
    }
    found = kinds[type(value)]
    return Invalid(
        f"Invalid type for '{at}': expected {expected}, but got {found} instead.", at, "invalid_type"
    )
