"""The chat-completions dialect and the liberties that servers take with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from any_json import any_json, is_read_or_unreadable
from hypothesis import given

from fhe_llm.errors import ProviderError
from fhe_llm.models.messages import plain_messages
from fhe_llm.providers import ProviderAnswer, ProviderRequest, ProviderToolCall, ProviderUsage
from fhe_llm.providers.chat_completions import ChatCompletions
from fhe_llm.providers.dialect import UnreadableError
from fhe_llm.providers.refusals import Refusal
from fhe_llm.providers.sse import ServerEvent

DIALECT = ChatCompletions("acme")


def streamed(*chunks: Any) -> ProviderAnswer:
    """The answer of a stream; strings are sent as they are."""
    reader = DIALECT.reader("asked")
    text = ""
    for chunk in (*chunks, "[DONE]"):
        added = reader.read(ServerEvent("message", chunk if isinstance(chunk, str) else json.dumps(chunk)))
        assert isinstance(added, str)
        text += added
    assert reader.ended
    answer = reader.answer()
    assert answer.text == text
    return answer


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def calls(*pieces: dict[str, Any]) -> dict[str, Any]:
    return delta(tool_calls=list(pieces))


def test_a_request_has_what_was_given_and_nothing_else() -> None:
    messages = tuple(plain_messages([{"role": "user", "content": "hi"}]))
    assert DIALECT.body(ProviderRequest(messages=messages), "m", streamed=False) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
    }
    body = DIALECT.body(
        ProviderRequest(messages=messages, temperature=0.0, seed=0, extra={"top_k": 3}), "m", streamed=True
    )
    assert body["temperature"] == 0.0
    assert body["seed"] == 0
    assert body["top_k"] == 3
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_arguments_of_calls_are_text_and_an_empty_content_is_null() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
    (message,) = plain_messages([{"role": "assistant", "content": "", "tool_calls": [call]}])
    sent = DIALECT.body(ProviderRequest(messages=(message,)), "m", streamed=False)["messages"][0]
    assert sent["content"] is None
    assert json.loads(sent["tool_calls"][0]["function"]["arguments"]) == {"a": "é"}
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": "é"}  # what was given is untouched


def test_the_key_goes_into_one_header() -> None:
    assert DIALECT.headers("k") == {"authorization": "Bearer k"}
    assert DIALECT.headers(None) == {}


def test_calls_are_put_together_from_pieces() -> None:
    answer = streamed(
        delta(role="assistant", content=None),
        calls({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
        calls({"index": 0, "function": {"arguments": '{"x"'}}),
        calls(
            {"index": 1, "id": "b", "function": {"name": "g"}}, {"index": 0, "function": {"arguments": ":1}"}}
        ),
        delta("tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "model": "m-1"},
    )
    assert answer.tool_calls == (ProviderToolCall("a", "f", '{"x":1}'), ProviderToolCall("b", "g", "{}"))
    assert (answer.finish, answer.usage, answer.model) == ("tool_calls", ProviderUsage(3, 4), "m-1")


def test_liberties_with_calls() -> None:
    lone = streamed(delta(tool_calls={"function": {"name": "f", "arguments": {"x": 1}}}), delta("stop"))
    assert json.loads(lone.tool_calls[0].arguments) == {"x": 1}
    assert lone.tool_calls[0].id  # a result must be able to name it
    assert lone.finish == "tool_calls"
    unnumbered = streamed(
        calls({"id": "a", "function": {"name": "f", "arguments": '{"x"'}}),
        calls({"function": {"arguments": ": 1}"}}),
        calls({"id": "b", "function": {"name": "g", "arguments": "{}"}}),
    )
    assert [call.arguments for call in unnumbered.tool_calls] == ['{"x": 1}', "{}"]
    null = streamed(delta(content="x", tool_calls=None), delta("stop"))
    assert null.tool_calls == ()


def test_liberties_with_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "thinking"}, "odd", {"type": "text", "text": "b"}]
    assert streamed(delta(content=parts), delta("stop")).text == "ab"
    assert streamed({"choices": [{"delta": {"content": "x"}}]}, delta("eos_token")).text == "x"
    assert streamed({"choices": None}, {}, {"choices": [None]}, delta("stop", content="x")).text == "x"
    assert (
        streamed('{"choices":[{"delta":{"content":"\\ud83d"}}]}', delta("stop")).text
        == "\N{REPLACEMENT CHARACTER}"
    )
    assert streamed(delta(reasoning_content="hm"), delta("stop", content="x")).text == "x"
    other = {"choices": [{"index": 1, "delta": {"content": "not asked for"}}]}
    assert streamed(other, delta("stop", content="x")).text == "x"


def test_a_refusal_is_text_that_ends_by_the_filter() -> None:
    answer = streamed(delta(refusal="I will not."), delta("stop"))
    assert (answer.text, answer.finish) == ("I will not.", "content_filter")


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": -1, "completion_tokens": True}])
def test_usage_that_says_nothing(usage: Any) -> None:
    answer = streamed(delta("stop", content="x"), {"choices": [], "usage": usage})
    assert answer.usage in (None, ProviderUsage(0, 0))


@pytest.mark.parametrize("reason", ["new_reason", 7, {}])
def test_a_finish_that_is_not_known(reason: Any) -> None:
    assert streamed(delta(reason, content="x")).finish == "unknown"


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": {}}, {"choices": [{}]}, {"choices": [{"message": {}}]}]
)
def test_what_is_no_answer(body: Any) -> None:
    with pytest.raises(UnreadableError):
        DIALECT.answer(body, "m")


def test_more_calls_than_a_model_makes() -> None:
    many = [{"index": n, "id": str(n), "function": {"name": "f"}} for n in range(2000)]
    with pytest.raises(UnreadableError, match="too many"):
        streamed(calls(*many))
    with pytest.raises(UnreadableError, match="no name"):
        streamed(calls({"index": 0, "id": "a"}))


@given(
    any_json(
        "choices delta message content tool_calls function arguments name id index usage error code finish_reason model"
    )
)
def test_any_json_is_an_answer_or_no_answer(body: Any) -> None:
    whole = body if isinstance(body, dict) else {"choices": [body]}
    event = ServerEvent("message", json.dumps(body))
    is_read_or_unreadable(lambda: DIALECT.answer(whole, "m"), ProviderAnswer)
    is_read_or_unreadable(lambda: DIALECT.refusal(400, body).error("acme"), ProviderError)
    is_read_or_unreadable(lambda: DIALECT.reader("m").read(event), str | Refusal)
