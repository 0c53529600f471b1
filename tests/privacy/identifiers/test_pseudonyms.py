"""Replaced and restored is the identity; one identifier, one placeholder; nothing is shared by two conversations."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from finds import Lying, Words, hostile
from hypothesis import given, settings
from hypothesis import strategies as st
from valid_numbers import cards, ibans

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy import Pseudonymiser
from fhe_llm.privacy.events import IdentifiersReplaced
from fhe_llm.privacy.identifiers import pseudonyms as pseudonyms_module
from fhe_llm.privacy.identifiers.defaults import default_recognisers
from fhe_llm.privacy.identifiers.mentions import normalised
from fhe_llm.privacy.identifiers.placeholders import PlaceholderForm

DEFAULT = Pseudonymiser()
FORM = PlaceholderForm(frozenset[str]().union(*(one.entity_types for one in default_recognisers())))
EXACT = re.compile(r"\[[A-Z]+_[0-9]+(?:_[0-9]+)?\]")
LETTER = """From: Jane Doe <jane.doe@example.com>
Dear Mr. Smith,
my name is Jane Doe, call me at +1 202 555 0143. My card is 4111 1111 1111 1111.
I live at 12 Old Mill Road, Springfield, IL 62704. Jane's number: (415) 555-2671.
Kind regards,
Jane"""

identifiers = (
    cards()
    | ibans()
    | st.sampled_from(
        [
            "Jane Doe",
            "JANE DOE",
            "Jane",
            "Doe’s",
            "Dr. Müller",
            "+49 30 901820",
            "0049 30 901820",
            "a@b.example",
            "[PERSON_1]",
            "PERSON_1",
            r"\[CARD_1\]",
            "[LITERAL_1]",
            "[person 2]",
            "Иван Петров",
            "10.1.2.3",
            "👩\u200d⚕️",
        ]
    )
)
texts = st.lists(
    identifiers
    | st.text(max_size=6)
    | st.sampled_from([" ", "\n", ", ", "[", "]", "\\", "'s ", "Dear ", "\r\n"]),
    max_size=12,
).map("".join)


@given(st.lists(texts, max_size=4))
@settings(max_examples=80)
def test_what_is_replaced_and_restored_is_what_it_was(conversation: list[str]) -> None:
    pseudonyms = DEFAULT.start()
    sent = pseudonyms.replace(conversation).value
    assert [pseudonyms.restore(text) for text in sent] == conversation
    again = [pseudonyms.replace([text]).value[0] for text in conversation]
    assert [pseudonyms.restore(text) for text in again] == conversation


@given(texts, st.data())
def test_a_stream_cut_anywhere_is_restored_as_the_whole(text: str, data: st.DataObject) -> None:
    pseudonyms = DEFAULT.start()
    sent = pseudonyms.replace([text]).value[0]
    cut = data.draw(st.integers(0, len(sent)))
    stream = pseudonyms.stream()
    assert stream.feed(sent[:cut]) + stream.feed(sent[cut:]) + stream.finish() == text


@given(st.dictionaries(texts, texts, max_size=3))
def test_json_is_replaced_and_restored_inside_its_strings(arguments: dict[str, str]) -> None:
    pseudonyms = DEFAULT.start()
    sent = pseudonyms.replace_json(json.dumps(arguments)).value
    json.loads(sent)
    assert json.loads(pseudonyms.restore_json(sent)) == arguments


@given(texts)
def test_nothing_that_was_found_is_sent(text: str) -> None:
    found = DEFAULT.find(text)
    starts, ends = [one.start for one in found], [one.end for one in found]
    between = [text[a:b] for a, b in zip([0, *ends], [*starts, len(text)], strict=True)]
    sent = DEFAULT.start().replace([text]).value[0]
    assert EXACT.sub("", sent) == "".join(FORM.pattern.sub("", part) for part in between)


def test_a_letter_leaves_without_its_identifiers() -> None:
    protected = DEFAULT.start().replace([LETTER])
    assert (
        protected.value[0]
        == """From: [PERSON_1] <[EMAIL_1]>
Dear Mr. [PERSON_2],
my name is [PERSON_1], call me at [PHONE_1]. My card is [CARD_1].
I live at [ADDRESS_1]. [PERSON_1_2]'s number: [PHONE_2].
Kind regards,
[PERSON_1_2]"""
    )
    kinds = ("ADDRESS", "CARD", "EMAIL", "PERSON", "PHONE")
    assert protected.event == IdentifiersReplaced(replaced=10, entity_types=kinds)


def test_replacing_earns_no_epsilon_and_says_so() -> None:
    event = DEFAULT.start().replace([LETTER]).event
    assert "no guarantee" in event.describe()
    assert not hasattr(event, "epsilon")


def test_a_quote_is_the_event_and_remembers_nothing() -> None:
    pseudonyms = DEFAULT.start()
    quoted = pseudonyms.quote([LETTER])
    assert repr(pseudonyms) == "Pseudonyms(0 placeholders)"
    assert quoted == pseudonyms.protect([LETTER]).event
    assert "Jane" not in repr(pseudonyms) + repr(DEFAULT)


def test_one_identifier_has_one_placeholder_in_the_whole_conversation() -> None:
    pseudonyms = DEFAULT.start()
    first = pseudonyms.replace(["Call +49 30 901820 or a@b.example"]).value[0]
    second = pseudonyms.replace(["Mail A@B.example, ring 0049 30 901820, or x@y.example"]).value[0]
    assert first == "Call [PHONE_1] or [EMAIL_1]"
    assert second == "Mail [EMAIL_1_2], ring [PHONE_1_2], or [EMAIL_2]"
    assert pseudonyms.restore(second) == "Mail A@B.example, ring 0049 30 901820, or x@y.example"


def test_possessives_and_short_mentions_are_the_same_person() -> None:
    pseudonyms = DEFAULT.start()
    sent = pseudonyms.replace(["Jane Doe's car. Jane’s dog. JANE DOE. Mr. Smith and Doe."]).value[0]
    assert sent == "[PERSON_1]'s car. [PERSON_1_3]’s dog. [PERSON_1_2]. Mr. [PERSON_2] and [PERSON_1_4]."
    assert pseudonyms.replace(["Then Jane left."]).value[0] == "Then [PERSON_1_3] left."


def test_two_people_of_one_first_name_stay_apart() -> None:
    sent = DEFAULT.start().replace(["Jane Doe met Jane Miller. Doe laughed, Miller too. Jane?"]).value[0]
    assert sent == "[PERSON_1] met [PERSON_2]. [PERSON_1_2] laughed, [PERSON_2_2] too. [PERSON_3]?"


def test_conversations_share_nothing() -> None:
    one, other = DEFAULT.start(), DEFAULT.start()
    sent = one.replace(["Dr. Quorbin and Dr. Xylan"]).value[0]
    other.replace(["Dr. Xylan"])
    assert sent == "Dr. [PERSON_1] and Dr. [PERSON_2]"
    assert other.restore(sent) == "Dr. Xylan and Dr. [PERSON_2]"
    assert DEFAULT.start().restore(sent) == sent


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("Hello [PERSON_1]!", "Hello Jane Doe!"),
        ("hello [person_1]", "hello Jane Doe"),
        ("**[Person_1]**", "**Jane Doe**"),
        (r"\[PERSON\_1\]", "Jane Doe"),
        ("PERSON_1's", "Jane Doe's"),
        ("[PERSON 1]", "Jane Doe"),
        ("[PERSON_2] and PERSON_10", "[PERSON_2] and PERSON_10"),
        ("PERSON_1@example.com", "PERSON_1@example.com"),
    ],
)
def test_what_models_make_of_placeholders_is_restored(answer: str, shown: str) -> None:
    pseudonyms = DEFAULT.start()
    pseudonyms.replace(["my name is Jane Doe"])
    assert pseudonyms.restore(answer) == shown
    stream = pseudonyms.stream()
    assert "".join([*map(stream.feed, answer), stream.finish()]) == shown


def test_text_that_looks_like_a_placeholder_all_along_is_told_apart() -> None:
    pseudonyms = DEFAULT.start()
    text = "Template: Dear [PERSON_1], yours [LITERAL_1]. my name is Jane Doe"
    sent = pseudonyms.replace([text]).value[0]
    assert sent == "Template: Dear [LITERAL_1], yours [LITERAL_2]. my name is [PERSON_1]"
    assert pseudonyms.restore(sent) == text


def test_many_threads_agree_on_the_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(kind: str, original: str) -> str:
        time.sleep(0.0005)  # others run while a number is given
        return normalised(kind, original)

    monkeypatch.setattr(pseudonyms_module, "normalised", slowly)
    people = [f"Mr. Quor{chr(97 + i)}bin" for i in range(20)]
    pseudonyms = DEFAULT.start()
    barrier = threading.Barrier(8)

    def talk(shift: int) -> list[tuple[str, str]]:
        barrier.wait()
        order = people[shift:] + people[:shift]
        return [(text, pseudonyms.replace([text]).value[0]) for text in order]

    with ThreadPoolExecutor(8) as pool:
        said = [pair for pairs in pool.map(talk, range(8)) for pair in pairs]
    assert len(set(said)) == len(people) == len({sent for _, sent in said})
    assert all(pseudonyms.restore(sent) == text for text, sent in said)
    assert {sent for _, sent in said} == {f"Mr. [PERSON_{i + 1}]" for i in range(len(people))}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in hostile(6_000)])
def test_hostile_text_is_replaced_and_restored(text: str) -> None:
    pseudonyms = DEFAULT.start()
    sent = pseudonyms.replace([text]).value[0]
    assert pseudonyms.restore(sent) == text


@pytest.mark.slow
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in hostile(200_000)])
def test_long_hostile_text_takes_seconds_where_a_step_back_at_every_character_would_take_hours(
    text: str,
) -> None:
    assert DEFAULT.find(text) is not None


def test_types_can_be_narrowed() -> None:
    only = Pseudonymiser(entity_types=["EMAIL"])
    assert only.start().replace(["Jane Doe, a@b.example"]).value[0] == "Jane Doe, [EMAIL_1]"
    assert repr(Pseudonymiser(entity_types="EMAIL")) == "Pseudonymiser(entity_types=['EMAIL'])"


def test_own_recognisers_stand_beside_or_instead_of_the_default_ones() -> None:
    projects = Words("PROJECT", ("Blue Heron",))
    assert (
        Pseudonymiser([projects]).start().replace(["Blue Heron, Jane Doe"]).value[0]
        == "[PROJECT_1], Jane Doe"
    )


@pytest.mark.parametrize(
    ("recognisers", "types"),
    [
        ([], None),
        ([Words("LITERAL", ("x",))], None),
        ([Words("no capitals", ("x",))], None),
        ([Words("CARD", ("x",))], ["IBAN"]),
        ([Words("CARD", ("x",))], []),
        ([Words("CARD", ("x",))], ["card"]),
    ],
)
def test_recognisers_and_types_that_do_not_fit_are_refused(
    recognisers: list[Words], types: list[str] | None
) -> None:
    with pytest.raises(PrivacyParameterError, match="cannot"):
        Pseudonymiser(recognisers, types)


def test_a_recogniser_that_lies_stops_the_release() -> None:
    pseudonyms = Pseudonymiser([Lying((0, 99, "CARD", 0.5))]).start()
    with pytest.raises(PrivacyParameterError, match="cannot use Lying"):
        pseudonyms.replace(["short"])
    assert repr(pseudonyms) == "Pseudonyms(0 placeholders)"


@pytest.mark.parametrize("texts", ["one string", [b"bytes"], [None], ["fine", 5]])
def test_what_is_no_list_of_texts_is_refused(texts: list[str]) -> None:
    pseudonyms = DEFAULT.start()
    for method in (pseudonyms.replace, pseudonyms.quote, pseudonyms.find):
        with pytest.raises(PrivacyParameterError, match="cannot"):
            method(texts)
    assert repr(pseudonyms) == "Pseudonyms(0 placeholders)"


def test_only_text_can_be_restored() -> None:
    pseudonyms = DEFAULT.start()
    for method in (pseudonyms.restore, pseudonyms.restore_json, pseudonyms.replace_json, DEFAULT.find):
        with pytest.raises(PrivacyParameterError, match="bytes"):
            method(b"[PERSON_1]")  # type: ignore[arg-type]
