"""Settings an API does not have are named, never dropped."""

from __future__ import annotations

from typing import Any

import pytest

from fhe_llm.errors import ProviderRequestError, RequestError
from fhe_llm.providers import AnthropicProvider, OpenAIProvider, ProviderRequest
from fhe_llm.providers.request_checks import Limits

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "hi"}


def request(**settings: Any) -> ProviderRequest:
    return ProviderRequest(**{"messages": (USER,), **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 1, "temperature": 0, "top_p": 1.0, "stop": ("a", "b"), "seed": -1},
        {"tools": (TOOL,), "tool_choice": "required"},
        {"tools": (TOOL,), "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"extra": {"reasoning_effort": "low"}},
    ],
)
def test_what_is_allowed(settings: dict[str, Any]) -> None:
    Limits("acme", managed=("model",), most_stops=2).check(request(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens to acme: it is less than 1"),
        ({"max_tokens": True}, "max_tokens to acme: it is not a whole number"),
        ({"max_tokens": 1.5}, "max_tokens to acme: it is not a whole number"),
        ({"seed": "7"}, "seed to acme: it is not a whole number"),
        ({"temperature": 2.1}, "temperature to acme: it is not between 0 and 2"),
        ({"temperature": float("nan")}, "temperature to acme"),
        ({"temperature": -0.1}, "temperature to acme"),
        ({"top_p": float("inf")}, "top_p to acme: it is not between 0 and 1"),
        ({"top_p": "1"}, "top_p to acme"),
        ({"stop": ("",)}, "stop to acme: one of the sequences is no text or empty"),
        ({"stop": ("a", "b", "c")}, "stop to acme: there are 3 sequences, and it takes 2"),
        ({"tools": ({"name": "f"},)}, "tools to acme: one of them is not"),
        ({"tools": (TOOL, TOOL)}, "tools to acme: two of them have one name"),
        ({"tool_choice": "auto"}, "tool_choice to acme: there are no tools"),
        ({"tools": (TOOL,), "tool_choice": "any"}, "tool_choice to acme: it is none of auto, none, required"),
        (
            {"tools": (TOOL,), "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice to acme",
        ),
        ({"extra": {"model": "m"}}, r"extra\['model'\] to acme: this library writes that field"),
        ({"extra": {"x": float("nan")}}, "extra to acme: it cannot be written as JSON"),
        ({"extra": {"x": object()}}, "extra to acme: it cannot be written as JSON"),
        ({"messages": ({"role": "tool", "content": "x"},)}, "message 0 to acme: it has no tool_call_id"),
        (
            {"messages": ({"role": "assistant", "content": "", "tool_calls": [{"id": None}]},)},
            "message 0 to acme: one of its tool calls has no id",
        ),
    ],
)
def test_what_is_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ProviderRequestError, match=f"^cannot send {message}.*\\. .*\\.$"):
        Limits("acme", managed=("model",), most_stops=2).check(request(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed to anthropic: this API has no such setting"),
        ({"temperature": 1.5}, "temperature to anthropic: it is not between 0 and 1"),
        (
            {"messages": (USER, {"role": "system", "content": "x"}, USER)},
            "message 1 to anthropic: .*at the beginning",
        ),
        (
            {"messages": ({"role": "system", "content": "x"},)},
            "the messages to anthropic: there are only system",
        ),
        ({"messages": ({"role": "user", "content": " \n"},)}, "message 0 to anthropic: it is empty"),
        ({"extra": {"system": "x"}}, r"extra\['system'\] to anthropic"),
    ],
)
def test_what_anthropic_cannot_say(settings: dict[str, Any], message: str) -> None:
    llm = AnthropicProvider("claude", api_key="k")
    with pytest.raises(ProviderRequestError, match=f"^cannot send {message}"):
        llm.check(request(**settings))


def test_messages_that_are_none_and_what_json_cannot_hold() -> None:
    llm = OpenAIProvider("gpt", api_key="k")
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    for messages in ((), (image,), ({"role": "poet", "content": "x"},), ("secret",)):
        with pytest.raises(RequestError):
            llm.check(request(messages=messages))
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    strange = {"type": "function", "function": {"name": "f", "parameters": {"secret": object()}}}
    for tool in (strange, {"type": "function", "function": {"name": "f", "parameters": {"d": deep}}}):
        with pytest.raises(ProviderRequestError, match="cannot be written as JSON") as caught:
            llm.check(request(tools=(tool,)))
        assert caught.value.__context__ is None
    llm.check(request(messages=({"role": "user", "content": "half a pair: \ud83d"},)))
