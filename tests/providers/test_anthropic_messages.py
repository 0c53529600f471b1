"""Anthropic's messages: OpenAI's form in, blocks out, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from any_json import any_json, is_read_or_unreadable
from hypothesis import given

from fhe_llm.errors import ProviderError
from fhe_llm.models.messages import plain_messages
from fhe_llm.providers import ProviderAnswer, ProviderRequest, ProviderToolCall, ProviderUsage
from fhe_llm.providers.anthropic_messages import AnthropicMessages
from fhe_llm.providers.dialect import UnreadableError
from fhe_llm.providers.refusals import Refusal
from fhe_llm.providers.sse import ServerEvent

DIALECT = AnthropicMessages()
START = {
    "type": "message_start",
    "message": {"model": "claude-1", "usage": {"input_tokens": 3, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}


def body(*messages: dict[str, Any], **settings: Any) -> dict[str, Any]:
    plain = tuple(plain_messages(list(messages)))
    return DIALECT.body(ProviderRequest(messages=plain, **settings), "m", streamed=False)


def streamed(*events: dict[str, Any]) -> ProviderAnswer:
    reader = DIALECT.reader("asked")
    text = ""
    for event in events:
        assert not reader.ended
        added = reader.read(ServerEvent(event["type"], json.dumps(event)))
        assert isinstance(added, str)
        text += added
    assert reader.ended
    answer = reader.answer()
    assert answer.text == text
    return answer


def begin(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def more(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def end(reason: str, **usage: int) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


def test_a_conversation_becomes_turns_of_blocks() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    sent = body(
        {"role": "system", "content": "One."},
        {"role": "system", "content": "Two."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "well", "tool_calls": [call, {**call, "id": "c2"}]},
        {"role": "tool", "content": "r1", "tool_call_id": "c1"},
        {"role": "tool", "content": "", "tool_call_id": "c2"},
        {"role": "user", "content": "and?"},
        {"role": "user", "content": "now"},
    )
    assert sent == {
        "model": "m",
        "max_tokens": 4096,
        "system": "One.\n\nTwo.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "well"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                    {"type": "tool_use", "id": "c2", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "r1"},
                    {"type": "tool_result", "tool_use_id": "c2"},
                    {"type": "text", "text": "and?"},
                    {"type": "text", "text": "now"},
                ],
            },
        ],
    }


def test_tools_and_choices_are_translated() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    tools = ({"type": "function", "function": function}, {"type": "function", "function": {"name": "g"}})
    user = {"role": "user", "content": "x"}
    assert body(user, tools=tools)["tools"] == [
        {"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True},
        {"name": "g", "input_schema": {"type": "object", "properties": {}}},
    ]
    named = {"type": "function", "function": {"name": "g"}}
    for choice, expected in (
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        (named, {"type": "tool", "name": "g"}),
    ):
        assert body(user, tools=tools, tool_choice=choice)["tool_choice"] == expected
    assert "tool_choice" not in body(user, tools=tools)


def test_settings() -> None:
    sent = body(
        {"role": "user", "content": "x"}, max_tokens=5, temperature=0.0, stop=("a",), extra={"top_k": 2}
    )
    assert (sent["max_tokens"], sent["temperature"], sent["stop_sequences"], sent["top_k"]) == (
        5,
        0.0,
        ["a"],
        2,
    )
    assert DIALECT.headers("k") == {"anthropic-version": "2023-06-01", "x-api-key": "k"}


def test_a_stream_with_thinking_text_and_calls() -> None:
    answer = streamed(
        START,
        {"type": "ping"},
        begin(0, type="thinking", thinking=""),
        more(0, "thinking_delta", thinking="hm"),
        more(0, "signature_delta", signature="s"),
        begin(1, type="text", text=""),
        more(1, "text_delta", text="Let "),
        more(1, "text_delta", text="me see."),
        {"type": "content_block_stop", "index": 1},
        begin(2, type="tool_use", id="t1", name="f", input={}),
        more(2, "input_json_delta", partial_json=""),
        more(2, "input_json_delta", partial_json='{"a"'),
        begin(3, type="tool_use", id="t2", name="g", input={}),
        more(2, "input_json_delta", partial_json=": 1}"),
        {"type": "an_event_of_the_future", "x": 1},
        end("tool_use", output_tokens=9),
        STOP,
    )
    assert answer == ProviderAnswer(
        text="Let me see.",
        finish="tool_calls",
        model="claude-1",
        tool_calls=(ProviderToolCall("t1", "f", '{"a": 1}'), ProviderToolCall("t2", "g", "{}")),
        usage=ProviderUsage(3, 9),
    )


def test_a_whole_answer() -> None:
    answer = DIALECT.answer(
        {
            "model": "claude-1",
            "stop_reason": "end_turn",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "server_tool_use"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"é": 1}},
                {"type": "text", "text": "b"},
            ],
            "usage": {
                "input_tokens": 1,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 2,
                "output_tokens": 4,
            },
        },
        "m",
    )
    assert (answer.text, answer.usage) == ("ab", ProviderUsage(8, 4))  # what came from a cache was sent too
    assert json.loads(answer.tool_calls[0].arguments) == {"é": 1}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("pause_turn", "unknown"),
    ],
)
def test_why_it_stopped(reason: str, finish: str) -> None:
    assert streamed(START, begin(0, type="text", text="x"), end(reason), STOP).finish == finish


def test_what_is_no_answer() -> None:
    wrong: Any
    for wrong in (
        {},
        {"content": None},
        {"content": []},
        {"content": [{"type": "tool_use"}], "stop_reason": "tool_use"},
    ):
        with pytest.raises(UnreadableError):
            DIALECT.answer(wrong, "m")
    with pytest.raises(UnreadableError, match="no beginning"):
        streamed(START, more(0, "input_json_delta", partial_json="{"), STOP)
    with pytest.raises(UnreadableError, match="empty"):
        streamed(START, STOP)


@given(
    any_json(
        "type content content_block delta index input partial_json text id name usage error message stop_reason",
        "message_start content_block_start content_block_delta message_delta error tool_use text text_delta "
        "input_json_delta",
    )
)
def test_any_json_is_an_answer_or_no_answer(found: Any) -> None:
    whole = found if isinstance(found, dict) else {"content": [found]}
    event = ServerEvent("message", json.dumps(found))
    is_read_or_unreadable(lambda: DIALECT.answer(whole, "m"), ProviderAnswer)
    is_read_or_unreadable(lambda: DIALECT.refusal(400, found).error("acme"), ProviderError)
    is_read_or_unreadable(lambda: DIALECT.reader("m").read(event), str | Refusal)
