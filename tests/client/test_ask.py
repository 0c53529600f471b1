"""What may be said with a question, and what the model is shown of it."""

from __future__ import annotations

from typing import Any

import pytest

from fhe_llm.client.ask import Ask
from fhe_llm.errors import RequestError

SCHEMA = {"title": "Joke", "type": "object",
          "properties": {"title": {"title": "Title", "type": "string", "description": "a headline"}}}  # fmt: skip
HELLO = [{"role": "user", "content": "hello"}]


def shown(**options: Any) -> list[Any]:
    return list(Ask.of(HELLO, options).chat(template_takes_tools=False)[0])  # type: ignore[arg-type]


def test_an_option_that_there_is_not_is_named_with_those_there_are() -> None:
    with pytest.raises(
        RequestError, match=r"'presence_penalty': there is no .*max_tokens.*tools.*response_format"
    ):
        Ask.of("hello", {"presence_penalty": 1})  # type: ignore[typeddict-unknown-key]


def test_a_schema_that_describes_its_fields_is_told_to_the_model() -> None:
    told = shown(response_format={"type": "json_schema", "schema": SCHEMA})
    assert told[0]["role"] == "system"
    assert '"title": {"type": "string", "description": "a headline"}' in told[0]["content"]
    assert "Joke" not in told[0]["content"]


def test_a_schema_without_descriptions_costs_no_token() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert shown(response_format={"type": "json_schema", "schema": plain}) == HELLO


def test_tools_need_a_chat() -> None:
    with pytest.raises(RequestError, match="they need a chat"):
        Ask.of("hello", {"tools": [{"name": "f"}]})


def test_a_template_that_takes_tools_gets_them() -> None:
    messages, tools = Ask.of(HELLO, {"tools": [{"name": "f"}]}).chat(template_takes_tools=True)
    assert list(messages) == HELLO
    assert [tool["function"]["name"] for tool in tools] == ["f"]


def test_only_a_free_choice_needs_examples() -> None:
    tools = [{"name": "f"}]
    assert len(shown(tools=tools, tool_choice="required")) == 2
    assert len(shown(tools=tools)) == 6
    assert shown(tools=tools, tool_choice="none") == HELLO
