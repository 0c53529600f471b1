"""The forms of placeholders that count, and those that do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.privacy.identifiers.placeholders import LITERAL, Placeholder, PlaceholderForm

FORM = PlaceholderForm(("PERSON", "CARD", "CARDHOLDER"))


def read(text: str) -> list[Placeholder]:
    return [FORM.read(match) for match in FORM.pattern.finditer(text)]


placeholders = st.builds(
    Placeholder,
    st.sampled_from(("PERSON", "CARD", "CARDHOLDER", LITERAL)),
    st.integers(1, 999_999_999),
    st.integers(1, 999_999_999),
)


@given(placeholders)
def test_the_exact_form_is_read_as_what_was_written(placeholder: Placeholder) -> None:
    assert read(f"x{placeholder}y") == [placeholder]
    assert len(str(placeholder)) <= FORM.longest


@pytest.mark.parametrize(
    "text",
    [
        "[PERSON_1]",
        "[person_1]",
        "[Person 1]",
        "[PERSON-1]",
        r"\[PERSON_1\]",
        r"[PERSON\_1]",
        r"\[PERSON\_1\]",
        "PERSON_1",
        r"PERSON\_1",
        "**PERSON_1**",
        "PERSON_1's",
        "PERSON_1.",
        "“PERSON_1”",
        "([PERSON_1])",
        "[PERSON_1",
    ],
)
def test_forms_in_which_models_write_a_placeholder_count(text: str) -> None:
    assert read(text) == [Placeholder("PERSON", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "[PERSON_0]",
        "[PERSON_01]",
        "[PERSON]",
        "[PERSON 1",
        "PERSON 1",
        "person_1",
        "MY_PERSON_1",
        "PERSON_1_X",
        "PERSON_12345678901",
        "$PERSON_1",
        "PERSON_1@example.com",
        "/PERSON_1",
        "PERSON_1.txt",
        "PERSON_1=5",
        "PERSON_1()",
        "[PERS_1]",
        "[PERſON_1]",
    ],
)
def test_other_text_does_not(text: str) -> None:
    assert read(text) == []


def test_a_longer_type_is_not_taken_for_a_shorter_one() -> None:
    assert read("[CARDHOLDER_2] [CARD_2_3]") == [Placeholder("CARDHOLDER", 2), Placeholder("CARD", 2, 3)]


@given(st.text("[]\\PERSON_CARD1-9 .'x", max_size=40), st.text("[]\\PERSON_CARD1-9 .'x", max_size=12))
def test_text_before_the_settled_point_is_read_the_same_whatever_follows(text: str, more: str) -> None:
    until = FORM.settled_until(text, 0)
    assert len(text) - until <= FORM.longest + 2
    before = [m.span() for m in FORM.pattern.finditer(text) if m.start() < until]
    assert before == [m.span() for m in FORM.pattern.finditer(text + more) if m.start() < until]
