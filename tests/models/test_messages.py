"""Messages as callers have them: joined where that loses nothing, refused by name where something would be dropped."""

from __future__ import annotations

from typing import Any

import pytest

from fhe_llm.errors import RequestError
from fhe_llm.models.messages import plain_messages


def test_roles_and_text_parts_become_plain() -> None:
    given = [
        {"role": "developer", "content": "a"},
        {"role": "human", "content": [{"type": "text", "text": "b"}, "c"]},
        {"role": "ai", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "d"},
    ]  # fmt: skip
    plain = plain_messages(given)
    assert [(m["role"], m["content"]) for m in plain] == [
        ("system", "a"),
        ("user", "bc"),
        ("assistant", ""),
        ("tool", "d"),
    ]
    assert plain[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:"}}], "image_url"),
        ([{"type": "text", "text": "a"}, {"type": "input_audio"}], "input_audio"),
        ([3], "int"),
        (3, "int"),
    ],
)
def test_what_is_not_text_is_named(content: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        plain_messages([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [],
        None,
        [3],
        [{"content": "a"}],
        [{"role": "user"}],
        [{"role": "robot", "content": "a"}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}],
        [{"role": "assistant", "content": "", "tool_calls": ["f"]}],
    ],
)
def test_bad_messages_say_what_is_wrong(messages: Any) -> None:
    with pytest.raises(RequestError, match=r"cannot use (the messages|message 0): .*\. "):
        plain_messages(messages)
