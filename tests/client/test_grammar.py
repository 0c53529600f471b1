"""Constrained decoding on the byte-level vocabulary of the tiny model: whatever the logits, the answer fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhe_llm.client.grammar import GrammarTokens, ResponseFormat, ToolUse, grammar_of
from fhe_llm.client.sampling import Sampler, SamplingParams
from fhe_llm.errors import RequestError
from fhe_llm.models.resolve import open_model
from fhe_llm.models.tokenizer import TextTokenizer
from fhe_llm.models.tools import Tool, ToolCallReader

COLOURS = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "lit": {"type": "boolean"}},
           "required": ["colour", "lit"]}  # fmt: skip
PAINT = Tool("paint", "Paint the wall.", COLOURS)
STOP = Tool("stop")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> TextTokenizer:
    return TextTokenizer(open_model(tiny_model_path).tokenizer)


@pytest.fixture(scope="module")
def tokens(tokenizer: TextTokenizer) -> GrammarTokens:
    return GrammarTokens(tokenizer, tokenizer.size)


def say(tokens: GrammarTokens, tokenizer: TextTokenizer, grammar: str, seed: int, most: int = 200) -> str:
    """Text of an answer to random logits; the sampler ends it, or its length does."""
    random = np.random.default_rng(seed)
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), (), tokens.matcher(grammar))
    ids = list[int]()
    while len(ids) < most and not sampler.complete:
        ids.append(sampler(random.standard_normal(tokens.size)))
        if ids[-1] in tokenizer.eos_ids:
            break
    return tokenizer.decode(ids)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_random_logits_make_calls_that_fit_their_schema(
    tokens: GrammarTokens, tokenizer: TextTokenizer, seed: int
) -> None:
    use = ToolUse.of([PAINT, STOP], "required")
    grammar = grammar_of(use, None)
    assert grammar is not None
    text, calls = ToolCallReader().push(say(tokens, tokenizer, grammar, seed))
    assert text == ""
    assert len(calls) == 1
    if calls[0].name == "stop":
        assert calls[0].arguments == {}
    else:
        assert calls[0].arguments["colour"] in ("red", "green")
        assert isinstance(calls[0].arguments["lit"], bool)


def test_a_named_tool_is_the_one_that_is_called(tokens: GrammarTokens, tokenizer: TextTokenizer) -> None:
    grammar = grammar_of(ToolUse.of([PAINT, STOP], {"type": "function", "function": {"name": "stop"}}), None)
    assert grammar is not None
    matcher = tokens.matcher(grammar)
    assert tokenizer.decode(matcher.forced()) == (
        '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    )
    for token in matcher.forced():
        matcher.accept(token)
    assert matcher.complete


def test_parallel_calls_are_allowed_only_where_asked_for(
    tokens: GrammarTokens, tokenizer: TextTokenizer
) -> None:
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    for parallel in (False, True):
        grammar = grammar_of(ToolUse.of([STOP], "required", parallel=parallel), None)
        assert grammar is not None
        matcher = tokens.matcher(grammar)
        for token in tokenizer.encode(call):
            matcher.accept(token)
        assert matcher.complete is not parallel


def test_text_may_come_before_a_call_or_instead(tokens: GrammarTokens, tokenizer: TextTokenizer) -> None:
    grammar = grammar_of(ToolUse.of([STOP]), None)
    assert grammar is not None
    matcher = tokens.matcher(grammar)
    assert not matcher.forced()
    end = min(tokenizer.eos_ids)
    assert matcher.allowed()[end]
    for token in tokenizer.encode("I stop. <tool_call>"):
        matcher.accept(token)
    assert tokenizer.decode(matcher.forced()).startswith('\n{"name": "stop"')
    assert not matcher.allowed()[end]


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({"type": "json_schema", "json_schema": {"name": "c", "schema": COLOURS}}, COLOURS),
        ({"type": "json_schema", "schema": COLOURS}, COLOURS),
        ({"type": "json_schema", "schema": {"$ref": "#/$defs/C", "$defs": {"C": COLOURS}}}, COLOURS),
    ],
)
def test_a_schema_shapes_the_answer(
    tokens: GrammarTokens, tokenizer: TextTokenizer, wanted: ResponseFormat, fits: dict[str, Any]
) -> None:
    grammar = grammar_of(None, wanted)
    assert grammar is not None
    for seed in range(5):
        answer = json.loads(say(tokens, tokenizer, grammar, seed))
        assert answer.keys() == fits["properties"].keys()


def test_a_pattern_shapes_the_answer(tokens: GrammarTokens, tokenizer: TextTokenizer) -> None:
    grammar = grammar_of(None, {"type": "regex", "pattern": "[A-C]{3}-(yes|no)"})
    assert grammar is not None
    assert say(tokens, tokenizer, grammar, 3)[3:] in ("-yes", "-no")


def test_nested_references_of_a_tool_stay_its_own(tokens: GrammarTokens, tokenizer: TextTokenizer) -> None:
    schema = {"type": "object", "properties": {"c": {"$ref": "#/$defs/C"}}, "required": ["c"],
              "$defs": {"C": {"enum": ["x"]}}}  # fmt: skip
    other = {**schema, "$defs": {"C": {"enum": ["y"]}}}
    for name, letter in (("a", "x"), ("b", "y")):
        use = ToolUse.of([Tool("a", "", schema), Tool("b", "", other)], name)
        grammar = grammar_of(use, None)
        assert grammar is not None
        _, calls = ToolCallReader().push(say(tokens, tokenizer, grammar, 1))
        assert calls[0].arguments == {"c": letter}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"k": {"enum": ["k"]}}, "required": ["k"],
         "anyOf": [{"properties": {"a": {"enum": [1]}}, "required": ["a"]}]},
        {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "$defs": {
            "A": {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]},
            "B": {"type": "object", "properties": {"b": {"enum": [2]}}, "required": ["b"]}}},
        {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a", "other"]},
    ],
)  # fmt: skip
def test_properties_said_in_several_places_stay_possible(
    tokens: GrammarTokens, schema: dict[str, Any]
) -> None:
    grammar = grammar_of(None, {"type": "json_schema", "schema": schema})
    assert grammar is not None
    tokens.matcher(grammar)


def test_json_mode_says_some_object(tokens: GrammarTokens, tokenizer: TextTokenizer) -> None:
    grammar = grammar_of(None, "json_object")
    assert grammar is not None
    matcher = tokens.matcher(grammar)
    for token in tokenizer.encode('{"a": [1, null]}'):
        assert matcher.allowed()[token]
        matcher.accept(token)
    assert matcher.complete


def test_a_keyword_no_grammar_can_promise_is_refused_when_strict(tokens: GrammarTokens) -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "string", "not": {"const": "a"}}},
        "required": ["x"],
    }
    lenient = grammar_of(None, {"type": "json_schema", "schema": schema})
    strict = grammar_of(None, {"type": "json_schema", "schema": schema, "strict": True})
    assert lenient is not None
    assert strict is not None
    tokens.matcher(lenient)
    with pytest.raises(RequestError, match="not"):
        tokens.matcher(strict)


@pytest.mark.parametrize(
    "wanted",
    [
        "xml",
        7,
        {},
        {"type": "json_schema"},
        {"type": "json_schema", "schema": 3},
        {"type": "regex"},
        {"type": "x"},
    ],
)
def test_formats_that_are_none_are_refused(wanted: Any) -> None:
    with pytest.raises(RequestError, match="cannot use response_format"):
        grammar_of(None, wanted)


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"enum": []}])
def test_schemas_that_make_no_sense_are_refused(tokens: GrammarTokens, schema: dict[str, Any]) -> None:
    grammar = grammar_of(None, {"type": "json_schema", "schema": schema, "strict": True})
    assert grammar is not None
    with pytest.raises(RequestError, match="cannot use the schema"):
        tokens.matcher(grammar)


@pytest.mark.parametrize(
    ("tools", "choice", "match"),
    [
        ([PAINT], "dance", "the tools are: paint"),
        ([], "required", "the tools are: none"),
        ([PAINT, PAINT], "auto", "same name"),
        ([PAINT], 7, "tool_choice=7"),
        ([PAINT], {"type": "function"}, "tool_choice=None"),
    ],
)
def test_a_choice_must_name_a_tool(tools: list[Tool], choice: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        ToolUse.of(tools, choice)


def test_no_tool_may_be_called() -> None:
    assert ToolUse.of([PAINT], "none") is None
    assert ToolUse.of([], "auto") is None
    any_tool = ToolUse.of([PAINT], "any")
    assert any_tool is not None
    assert any_tool.choice == "required"


def test_tools_and_a_format_do_not_go_together() -> None:
    with pytest.raises(RequestError, match="cannot combine response_format with tools"):
        grammar_of(ToolUse.of([PAINT]), "json_object")
