"""The adapters read an answer as the provider's own SDK does, from the same bytes in the same pieces."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pytest
from adapter_kit import WEATHER, ask, asked
from provider_server import ANTHROPIC_KEY, OPENAI_KEY, ProviderServer, Reply, ToolCall
from provider_server.server import CLAUDE, GPT
from sdk_kit import ANTHROPIC_TOOL, ASK, OPENAI_TOOL, anthropic_client, openai_client

from fhe_llm.providers import AnthropicProvider, OpenAIProvider, ProviderAnswer

CALLS = (ToolCall("weather", {"place": "Zürich"}), ToolCall("weather", {}))
REPLIES = [
    Reply(text="plain – \N{SNOWMAN}\n\n", usage=(5, 6)),
    Reply(text="", tool_calls=CALLS, piece=1, usage=(7, 8)),
    Reply(text="both", tool_calls=CALLS, thinking="let me think", usage=(9, 10)),
    Reply(text="cut", finish="length", usage=(11, 12)),
    Reply(text="filtered", finish="content_filter", shred=3, usage=(13, 14)),
]


def ours(answer: ProviderAnswer) -> dict[str, Any]:
    assert answer.usage is not None
    return {
        "text": answer.text,
        "model": answer.model,
        "calls": [(call.name, json.loads(call.arguments)) for call in answer.tool_calls],
        "usage": (answer.usage.input_tokens, answer.usage.output_tokens),
    }


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.text.strip() or "calls")
def test_openai(provider_server: ProviderServer, reply: Reply) -> None:
    provider_server.always(reply)
    with openai_client(provider_server) as client:
        given: Any = {"model": GPT, "messages": ASK, "tools": [OPENAI_TOOL]}
        whole = client.chat.completions.create(**given)
    choice = whole.choices[0]
    usage: Any = whole.usage
    calls: Any = choice.message.tool_calls or ()
    theirs = {
        "text": choice.message.content or "",
        "model": whole.model,
        "calls": [(call.function.name, json.loads(call.function.arguments)) for call in calls],
        "usage": (usage.prompt_tokens, usage.completion_tokens),
    }
    with closing(OpenAIProvider(GPT, api_key=OPENAI_KEY, base_url=provider_server.openai_url)) as llm:
        request = asked(*ASK, tools=(WEATHER,))
        for way in ("complete", "stream"):
            answer = ask(llm, way, request)
            assert ours(answer) == theirs
            assert answer.finish == choice.finish_reason


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.text.strip() or "calls")
def test_anthropic(provider_server: ProviderServer, reply: Reply) -> None:
    provider_server.always(reply)
    with (
        anthropic_client(provider_server) as client,
        client.messages.stream(model=CLAUDE, max_tokens=99, messages=ASK, tools=[ANTHROPIC_TOOL]) as stream,
    ):
        message: Any = stream.get_final_message()
    theirs = {
        "text": "".join(block.text for block in message.content if block.type == "text"),
        "model": message.model,
        "calls": [(block.name, block.input) for block in message.content if block.type == "tool_use"],
        "usage": (message.usage.input_tokens, message.usage.output_tokens),
    }
    with closing(
        AnthropicProvider(CLAUDE, api_key=ANTHROPIC_KEY, base_url=provider_server.anthropic_url)
    ) as llm:
        request = asked(*ASK, tools=(WEATHER,), max_tokens=99)
        for way in ("complete", "stream"):
            assert ours(ask(llm, way, request)) == theirs
