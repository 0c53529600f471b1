"""Our adapters and the official SDKs, side by side: the same answers read, the same requests written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing, closing
from typing import Any

import anthropic
import openai
import pytest
from provider_server import (
    ANTHROPIC_KEY,
    CLAUDE,
    GPT,
    HUGGINGFACE_KEY,
    LLAMA,
    OPENAI_KEY,
    Failure,
    ProviderServer,
    Reply,
    ToolCall,
)
from sdk_kit import (
    ANTHROPIC_TOOL,
    OPENAI_TOOL,
    anthropic_client,
    huggingface_client,
    openai_client,
)

from fhe_llm.errors import ProviderError
from fhe_llm.providers import (
    Provider,
    ProviderAnswer,
    ProviderRequest,
    ProviderToolCall,
    ProviderUsage,
    open_provider,
)

WAYS = ("complete", "stream", "acomplete", "astream")
NAMES = ("openai", "anthropic", "huggingface")
SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "user", "content": "Grüße, \N{SNOWMAN}"}
CALLING: dict[str, Any] = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [
        {"id": f"call_{n}", "type": "function", "function": {"name": "weather", "arguments": {"place": p}}}
        for n, p in enumerate(("Zürich", "Oslo"))
    ],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]


def adapter(server: ProviderServer, name: str, model: str | None = None) -> Provider:
    url, key, usual = {
        "openai": (server.openai_url, OPENAI_KEY, GPT),
        "anthropic": (server.anthropic_url, ANTHROPIC_KEY, CLAUDE),
        "huggingface": (server.huggingface_url, HUGGINGFACE_KEY, LLAMA),
    }[name]
    return open_provider(name, model or usual, api_key=key, base_url=url, max_retries=0)


def answered(provider: Provider, way: str, request: ProviderRequest) -> ProviderAnswer:
    """By one of the four ways."""

    async def later() -> ProviderAnswer | None:
        try:
            if way == "acomplete":
                return await provider.acomplete(request)
            async with aclosing(provider.astream(request)) as chunks:
                return [chunk.answer async for chunk in chunks][-1]
        finally:
            await provider.aclose()

    found: ProviderAnswer | None
    try:
        if way == "complete":
            found = provider.complete(request)
        elif way == "stream":
            with closing(provider.stream(request)) as stream:
                found = list(stream)[-1].answer
        else:
            found = asyncio.run(later())
    finally:
        provider.close()
    assert found is not None
    return found


Read = tuple[str, list[tuple[str, str, Any]], tuple[int, int] | None, str, str]
"""Text, tool calls with their arguments, usage, why it ended, and the model that answered."""


def ours(answer: ProviderAnswer) -> Read:
    usage = answer.usage and (answer.usage.input_tokens, answer.usage.output_tokens)
    calls = [(call.id, call.name, json.loads(call.arguments)) for call in answer.tool_calls]
    return answer.text, calls, usage, answer.finish, answer.model


def from_openai(server: ProviderServer) -> Read:
    with openai_client(server) as client:
        whole = client.chat.completions.create(model=GPT, messages=[HELLO], tools=[OPENAI_TOOL])  # type: ignore[list-item]
    said, usage = whole.choices[0], whole.usage
    assert usage is not None
    calls: Any = said.message.tool_calls or ()
    return (
        said.message.content or "",
        [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls],
        (usage.prompt_tokens, usage.completion_tokens),
        said.finish_reason,
        whole.model,
    )


def from_anthropic(server: ProviderServer) -> Read:
    with anthropic_client(server) as client:
        message: Any = client.messages.create(
            model=CLAUDE,
            max_tokens=4096,
            messages=[HELLO],  # type: ignore[list-item]
            tools=[ANTHROPIC_TOOL],
        )
    ends = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}
    return (
        "".join(block.text for block in message.content if block.type == "text"),
        [(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"],
        (message.usage.input_tokens, message.usage.output_tokens),
        ends[message.stop_reason],
        message.model,
    )


def from_huggingface(server: ProviderServer) -> Read:
    whole = huggingface_client(server).chat_completion([HELLO], model=LLAMA, tools=[OPENAI_TOOL])
    said = whole.choices[0]
    calls: Any = said.message.tool_calls or ()
    return (
        said.message.content or "",
        [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls],
        (whole.usage.prompt_tokens, whole.usage.completion_tokens),
        said.finish_reason,
        whole.model,
    )


SDKS: dict[str, Callable[[ProviderServer], Read]] = {
    "openai": from_openai,
    "anthropic": from_anthropic,
    "huggingface": from_huggingface,
}
REPLIES = {
    "text": Reply(text='Ünïcode \N{SNOWMAN}\n„quoted“ \\ "too"', usage=(12, 34)),
    "length": Reply(text="cut sho", finish="length", usage=(1, 2)),
    "filtered": Reply(text="I must not", finish="content_filter", usage=(1, 2)),
    "calls": Reply(
        text="",
        tool_calls=(
            ToolCall("weather", {"place": "Zürich", "days": [1, 2.5, None]}, id="call_a"),
            ToolCall("weather", {}, id="call_b"),
        ),
        usage=(5, 6),
    ),
    "text and a call": Reply(
        text="Let me see.", tool_calls=(ToolCall("weather", {"place": "Oslo"}, id="call_c"),), usage=(7, 8)
    ),
    "thinking": Reply(text="So: yes.", thinking="hmm, let me think", usage=(7, 80)),
    "in small pieces": Reply(text="one two three", piece=1, shred=3, usage=(1, 3)),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_answers_are_read(provider_server: ProviderServer, name: str) -> None:
    request = ProviderRequest(messages=(HELLO,), tools=(OPENAI_TOOL,))
    provider = adapter(provider_server, name)
    for kind, reply in REPLIES.items():
        provider_server.always(reply)
        theirs = SDKS[name](provider_server)
        for way in WAYS:
            assert ours(answered(provider, way, request)) == theirs, (kind, way)


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "a question": {"messages": (HELLO,)},
    "settings": {
        "messages": (SYSTEM, HELLO),
        "max_tokens": 77,
        "stop": ("END", "\n\nHuman:"),
    },
    "tools": {
        "messages": (SYSTEM, HELLO, CALLING, *RESULTS, HELLO),
        "tools": (OPENAI_TOOL,),
        "tool_choice": "required",
        "max_tokens": 9,
    },
    "a certain tool": {
        "messages": (HELLO,),
        "tools": (OPENAI_TOOL,),
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 9,
    },
}


def written_by_openai(given: dict[str, Any], streamed: bool) -> Callable[[ProviderServer], Any]:
    messages = [_with_json(message) for message in given["messages"]]
    named = {"stop": list(given.get("stop", ())), "max_completion_tokens": given.get("max_tokens")}
    named |= {"tools": list(given.get("tools", ())), "tool_choice": given.get("tool_choice")}
    if streamed:
        named |= {"stream": True, "stream_options": {"include_usage": True}}
    arguments: Any = {name: value for name, value in named.items() if value}

    def write(server: ProviderServer) -> None:
        with openai_client(server) as client:
            answer: Any = client.chat.completions.create(model=GPT, messages=messages, **arguments)
            list(answer)

    return write


def written_by_anthropic(given: dict[str, Any], streamed: bool) -> Callable[[ProviderServer], Any]:
    def block(call: Any) -> Any:
        function = call["function"]
        return {
            "type": "tool_use",
            "id": call["id"],
            "name": function["name"],
            "input": function["arguments"],
        }

    turns: list[Any] = []
    for message in given["messages"]:
        text = {"type": "text", "text": message["content"]}
        if message["role"] == "assistant":
            turns.append({"role": "assistant", "content": [text, *map(block, message["tool_calls"])]})
        elif message["role"] == "tool":
            result = {
                "type": "tool_result",
                "tool_use_id": message["tool_call_id"],
                "content": message["content"],
            }
            if turns[-1]["role"] == "assistant":
                turns.append({"role": "user", "content": []})
            turns[-1]["content"].append(result)
        elif message["role"] == "user" and turns:
            turns[-1]["content"].append(text)
        elif message["role"] == "user":
            turns.append({"role": "user", "content": [text]})
    choice = given.get("tool_choice")
    named: dict[str, Any] = {"stop_sequences": list(given.get("stop", ()))}
    if SYSTEM in given["messages"]:
        named["system"] = SYSTEM["content"]
    if choice:
        named["tools"] = [ANTHROPIC_TOOL]
        named["tool_choice"] = (
            {"type": "any"} if choice == "required" else {"type": "tool", "name": "weather"}
        )
    arguments: Any = {name: value for name, value in named.items() if value}

    def write(server: ProviderServer) -> None:
        with anthropic_client(server) as client:
            answer: Any = client.messages.create(
                model=CLAUDE,
                max_tokens=given.get("max_tokens", 4096),
                messages=turns,
                stream=streamed,
                **arguments,
            )
            list(answer)

    return write


def written_by_huggingface(given: dict[str, Any], streamed: bool) -> Callable[[ProviderServer], Any]:
    arguments: Any = {name: value for name, value in given.items() if name in ("max_tokens", "tool_choice")}
    if "stop" in given:
        arguments["stop"] = list(given["stop"])
    if "tools" in given:
        arguments["tools"] = list(given["tools"])
    if streamed:
        arguments |= {"stream": True, "stream_options": {"include_usage": True}}
    messages = [_with_json(message) for message in given["messages"]]

    def write(server: ProviderServer) -> None:
        client = huggingface_client(server)
        list(client.chat_completion(messages, model=LLAMA, **arguments))  # type: ignore[call-overload]

    return write


WRITERS = {
    "openai": written_by_openai,
    "anthropic": written_by_anthropic,
    "huggingface": written_by_huggingface,
}


def _with_json(message: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON text, which is OpenAI's form."""
    if "tool_calls" not in message:
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def meant(body: dict[str, Any]) -> dict[str, Any]:
    """A body without differences that mean nothing: defaults, spaces in JSON text, a text for one text block."""
    read: dict[str, Any] = json.loads(json.dumps(body))
    for name, default in (("stream", False), ("stream_options", None)):
        if read.get(name) == default:
            read.pop(name, None)
    if "max_tokens" in read and "max_completion_tokens" not in read and read["model"] == GPT:
        read["max_completion_tokens"] = read.pop("max_tokens")
    for message in read["messages"]:
        if isinstance(message["content"], str) and read["model"] == CLAUDE:
            message["content"] = [{"type": "text", "text": message["content"]}]
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    if isinstance(read.get("system"), list):
        read["system"] = "".join(block["text"] for block in read["system"])
    return read


@pytest.mark.parametrize("name", NAMES)
def test_the_same_requests_are_written(provider_server: ProviderServer, name: str) -> None:
    provider = adapter(provider_server, name)
    for kind, given in CONVERSATIONS.items():
        for streamed in (False, True):
            WRITERS[name](given, streamed)(provider_server)
            theirs = provider_server.received[-1]
            for way in WAYS:
                if streamed == ("stream" in way):
                    answered(provider, way, ProviderRequest(**given))
                    mine = provider_server.received[-1]
                    assert meant(mine.json) == meant(theirs.json), (kind, way)
                    assert mine.path == theirs.path


@pytest.mark.parametrize("name", NAMES)
def test_the_headers_that_matter_are_the_same(provider_server: ProviderServer, name: str) -> None:
    answered(adapter(provider_server, name), "complete", ProviderRequest(messages=(HELLO,)))
    SDKS[name](provider_server)
    mine, theirs = provider_server.received
    assert mine.header("content-type") == theirs.header("content-type") == "application/json"
    credentials = [
        {(request.header("authorization") or "").removeprefix("Bearer "), request.header("x-api-key") or ""}
        for request in (mine, theirs)
    ]
    assert credentials[0] == credentials[1]
    ours_only = {name for name, _ in mine.headers} - {name for name, _ in theirs.headers}
    assert ours_only <= {"x-api-key"}


STATUSES = {
    "openai": ("invalid_api_key", "model_not_found", "rate_limit", "server_error", "overloaded"),
    "anthropic": ("authentication", "not_found", "rate_limit", "server_error", "overloaded"),
}


@pytest.mark.parametrize("name", STATUSES)
def test_the_same_statuses_and_request_ids_are_told(provider_server: ProviderServer, name: str) -> None:
    for failure in STATUSES[name]:
        provider_server.always(Failure(name=failure))
        with pytest.raises(ProviderError) as mine:
            answered(adapter(provider_server, name), "complete", ProviderRequest(messages=(HELLO,)))
        with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as theirs:
            SDKS[name](provider_server)
        assert mine.value.status == theirs.value.status_code  # type: ignore[attr-defined]


def test_usage_and_request_id_are_those_of_the_response(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(usage=(3, 4)))
    for name in NAMES:
        answer = answered(adapter(provider_server, name), "stream", ProviderRequest(messages=(HELLO,)))
        assert answer.usage == ProviderUsage(3, 4)
        assert answer.request_id
        assert answer.tool_calls == ()


def test_a_tool_s_answer_goes_back_as_it_came(provider_server: ProviderServer) -> None:
    provider_server.always(Reply(text="", tool_calls=(ToolCall("weather", {"place": "Oslo"}, id="t1"),)))
    for name in NAMES:
        request = ProviderRequest(messages=(HELLO,), tools=(OPENAI_TOOL,))
        (call,) = answered(adapter(provider_server, name), "astream", request).tool_calls
        assert call == ProviderToolCall("t1", "weather", call.arguments)
        assert json.loads(call.arguments) == {"place": "Oslo"}
