"""Originals come back whole, inside JSON and piece by piece, whatever the pieces are."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.errors import RequestError
from fhe_llm.privacy.identifiers.placeholders import Placeholder, PlaceholderForm
from fhe_llm.privacy.identifiers.restoring import StreamRestorer, changed_strings, restored, strings

FORM = PlaceholderForm(("PERSON", "CARD", "CARDHOLDER"))
ORIGINALS = {
    Placeholder("PERSON", 1): 'Jane "JD" Doe',
    Placeholder("PERSON", 1, 2): "[PERSON_2]",
    Placeholder("PERSON", 12): "Ünal 👩‍⚕️",
    Placeholder("CARD", 1): "4111 1111\n1111 1111",
    Placeholder("CARDHOLDER", 1): "\\",
}
pieces = st.sampled_from(
    [
        *map(str, ORIGINALS),
        "[person_1]",
        "PERSON_1",
        "PERSON_12",
        r"\[PERSON\_1\]",
        "[PERSON_9]",
        "CARD 1",
        "[",
        "]",
        "\\",
        "_",
        "1",
        ".",
        "PERSON",
        "[CARD",
        " ",
        "ab",
        "é",
        "'s",
        "@",
        "-",
        "\n",
        "(",
        "p",
    ]
)
answers = st.lists(pieces, max_size=14).map("".join)


def whole(text: str) -> str:
    return restored(text, FORM, ORIGINALS.get)


@given(answers, st.data())
def test_an_answer_in_pieces_is_restored_as_the_whole(answer: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)))))
    bounds = [0, *cuts, len(answer)]
    stream = StreamRestorer(FORM, ORIGINALS.get)
    got = [stream.feed(answer[a:b]) for a, b in itertools.pairwise(bounds)]
    assert "".join([*got, stream.finish()]) == whole(answer)


@given(answers)
def test_an_answer_in_single_characters_is_restored_as_the_whole_and_little_is_held_back(answer: str) -> None:
    stream = StreamRestorer(FORM, lambda _: None)
    got = ""
    for at, character in enumerate(answer, 1):
        got += stream.feed(character)
        assert len(got) >= at - FORM.longest - 2
    assert got + stream.finish() == answer


def test_ordinary_text_is_not_held_back() -> None:
    stream = StreamRestorer(FORM, ORIGINALS.get)
    assert stream.feed("Hello there, ") == "Hello there, "
    assert stream.feed("[PER") == ""
    assert stream.feed("SON_1], and") == 'Jane "JD" Doe, and'
    assert "held=0" in repr(stream)
    assert stream.finish() == ""


def test_a_finished_stream_takes_nothing_more() -> None:
    stream = StreamRestorer(FORM, ORIGINALS.get)
    stream.finish()
    with pytest.raises(RequestError, match="finished"):
        stream.feed("x")
    with pytest.raises(RequestError, match="finished"):
        stream.finish()


def test_originals_that_look_like_placeholders_are_not_restored_again() -> None:
    assert whole("[PERSON_1_2] and [PERSON_9]") == "[PERSON_2] and [PERSON_9]"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | answers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(answers, inner, max_size=3),
    max_leaves=8,
)


def mapped(value: Any) -> Any:
    match value:
        case str():
            return whole(value)
        case list():
            return [mapped(one) for one in value]
        case dict():
            return {whole(key): mapped(one) for key, one in value.items()}
    return value


@given(json_values, st.booleans(), st.sampled_from([None, 2]))
def test_json_stays_json_and_its_strings_are_restored(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    changed = changed_strings(text, whole)
    pairs = json.loads(changed, object_pairs_hook=lambda pairs: [list(pair) for pair in pairs])
    assert pairs == json.loads(json.dumps(_pairs(value)))


def _pairs(value: Any) -> Any:
    match value:
        case dict():
            return [[whole(key), _pairs(one)] for key, one in value.items()]
        case list():
            return [_pairs(one) for one in value]
        case _:
            return mapped(value)


@pytest.mark.parametrize("text", ['{"a": "[PERSON_1', '"\\x"', "no json [CARD_1]", '"\\', ""])
def test_what_is_no_string_of_json_stays_as_it_is(text: str) -> None:
    assert changed_strings(text, whole) == text


def test_strings_are_decoded() -> None:
    assert strings('{"a\\u0062": ["c\\n", 1, "d"]}') == ["ab", "c\n", "d"]
