"""Tools as text: what the model is shown, and how its calls are read back however the text was cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.errors import RequestError
from fhe_llm.models.tools import Tool, ToolCallReader, takes_tools, without_tool_roles

WEATHER = Tool(
    "get_weather", "Weather in a city.", {"type": "object", "properties": {"city": {"type": "string"}}}
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def read(text: str, cuts: list[int]) -> tuple[str, list[tuple[str, dict[str, Any]]], str]:
    reader, shown, calls, at = ToolCallReader(), "", list[tuple[str, dict[str, Any]]](), 0
    for cut in [*sorted(cuts), len(text)]:
        piece, found = reader.push(text[at:cut])
        shown, at = shown + piece, max(at, cut)
        calls += [(call.name, call.arguments) for call in found]
    rest, unfinished = reader.finish()
    return shown + rest, calls, unfinished


@given(st.lists(st.integers(0, 200), max_size=12))
def test_calls_are_read_however_the_text_is_cut(cuts: list[int]) -> None:
    text = f"I look. <tool {CALL}\n{CALL} done <tool_"
    cuts = [min(cut, len(text)) for cut in cuts]
    oslo = ("get_weather", {"city": "Oslo"})
    assert read(text, cuts) == ("I look. <tool \n done <tool_", [oslo, oslo], "")


def test_text_is_shown_at_once_unless_it_may_begin_a_call() -> None:
    reader = ToolCallReader()
    assert reader.push("a <") == ("a ", ())
    assert reader.push("b <tool") == ("<b ", ())
    assert reader.push("s") == ("<tools", ())


def test_a_string_that_holds_the_mark_does_not_end_a_call() -> None:
    arguments = {"city": "</tool_call> <tool_call>"}
    text = f'<tool_call>\n{{"name": "get_weather", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    assert read(text, [30, 60]) == ("", [("get_weather", arguments)], "")


def test_a_call_that_was_cut_off_is_not_text() -> None:
    assert read('Well <tool_call>\n{"name": "get', []) == ("Well ", [], '<tool_call>\n{"name": "get')


def test_every_call_has_an_id_of_its_own() -> None:
    _, calls = ToolCallReader().push(CALL + CALL)
    assert len({call.id for call in calls}) == 2
    assert calls[0].to_dict()["function"] == {"name": "get_weather", "arguments": {"city": "Oslo"}}


def test_a_template_without_tools_is_told_of_them_in_text() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]  # fmt: skip
    folded = without_tool_roles(chat, [WEATHER])
    assert [message["role"] for message in folded] == ["system", "user", "assistant", "user"]
    first, *_, call, result = (message["content"] for message in folded)
    assert first.startswith("Be brief.\n\n")
    assert json.dumps(WEATHER.to_dict()["function"]) in first
    assert call == CALL
    assert result == "rain"


def test_examples_stand_before_the_chat_and_only_beside_tools() -> None:
    chat = [{"role": "user", "content": "Hi"}]
    assert without_tool_roles(chat, [], examples=True) == chat
    shown = without_tool_roles(chat, [WEATHER], examples=True)
    assert shown[0]["role"] == "system"
    assert shown[-1] == chat[0]
    assert "<tool_call>" in shown[-2]["content"]
    longer = without_tool_roles([*chat, {"role": "tool", "content": "rain"}], [WEATHER], examples=True)
    assert longer[: len(shown) - 1] == shown[:-1]  # what was computed for the first turn serves the second
    assert "<tool_call>" not in longer[-3]["content"]


@pytest.mark.parametrize("given", [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
    {"name": "f", "description": "d", "parameters": {"type": "object"}},
    Tool("f", "d", {"type": "object"}),
])  # fmt: skip
def test_tools_come_in_the_forms_people_have(given: Any) -> None:
    assert Tool.of(given) == Tool("f", "d", {"type": "object"})
    assert Tool.of({"name": "f"}).parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize("given", [7, {}, {"function": 3}, {"name": "a b"}, {"name": 'x"'}, {"name": ""},
                                   {"name": "f", "parameters": [1]}])  # fmt: skip
def test_what_is_no_tool_is_refused(given: Any) -> None:
    with pytest.raises(RequestError, match=r"cannot use (a )?tool"):
        Tool.of(given)


def test_a_template_takes_tools_if_it_writes_calls_as_we_read_them() -> None:
    assert takes_tools("{% if tools %}<tool_call>{% endif %}")
    assert not takes_tools("{% if tools %}<|python_tag|>{% endif %}")
    assert not takes_tools("{{ messages }}")
