"""Telephone numbers of several countries, and numbers of other kinds that look like them."""

from __future__ import annotations

import sys

import phonenumbers
import pytest
from finds import found
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers.phones import DEFAULT_REGIONS, PhoneRecogniser

PHONES = PhoneRecogniser()


@pytest.mark.parametrize(
    "number",
    [
        "+1 202 555 0143",
        "(415) 555-2671",
        "415-555-2671",
        "+1 (415) 555-2671 x123",
        "020 7946 0958",
        "+44 20 7946 0958",
        "+49 30 901820",
        "030 901820",
        "+33 1 42 68 53 00",
        "01 42 68 53 00",
        "+34 912 345 678",
        "+39 06 6982",
        "0049 30 901820",
        "+81 3-1234-5678",
        "+5511987654321",
    ],
)
def test_numbers_are_found_without_a_word_before_them(number: str) -> None:
    assert found(PHONES, f"You find us under {number}, every day.") == [number]


@pytest.mark.parametrize(
    "text",
    ["call 5552671 now", "Tel.: 5552671", "Tel. 030 901820", "Handy 17612345", "phone 4155552671"],
)
def test_bare_digits_count_behind_a_word_for_telephones(text: str) -> None:
    assert len(found(PHONES, text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "order 5552671",
        "invoice no. 020 7946 0958",
        "ticket 415-555-2671",
        "on 2024-05-17",
        "17.05.2024",
        "costs 1234567 in all",
        "ISBN 978-3-16-148410-0",
        "#4155552671",
        "SKU-4155552671",
        "#9085 020 7946 0958",
        "account ES25 0443 7243 9043 3393 3394",
        "paid with 4902 9471 4261 8581",
        "since version 2024.1.5.8",
        "2024-05-17 08:30",
        "the years 2018 - 2021",
        "54/109/218/438",
        "0.000001",
        "5 552",
    ],
)
def test_numbers_of_other_kinds_are_none(text: str) -> None:
    assert found(PHONES, text) == []


@pytest.mark.parametrize("region", [*DEFAULT_REGIONS, "BR", "JP", "IN", "PL"])
@pytest.mark.parametrize("form", ["INTERNATIONAL", "E164"])
def test_the_example_number_of_a_country_is_found_in_international_form(region: str, form: str) -> None:
    number = phonenumbers.format_number(
        phonenumbers.example_number(region), getattr(phonenumbers.PhoneNumberFormat, form)
    )
    assert found(PHONES, f"Ring {number}") == [number]


@given(st.sampled_from(DEFAULT_REGIONS))
def test_the_example_number_of_a_default_region_is_found_in_national_form(region: str) -> None:
    number = phonenumbers.format_number(
        phonenumbers.example_number(region), phonenumbers.PhoneNumberFormat.NATIONAL
    )
    assert found(PHONES, f"Tel {number}") == [number]


def test_a_bracket_around_a_number_is_not_its_own() -> None:
    assert found(PHONES, "Jane (+44(0)161 496 0046) and (415) 555-2671") == [
        "+44(0)161 496 0046",
        "(415) 555-2671",
    ]


def test_regions_decide_about_national_numbers() -> None:
    assert found(PhoneRecogniser(["PL"]), "am 12 345 67 89 da") == ["12 345 67 89"]
    assert found(PhoneRecogniser(["US"]), "am 01 42 68 53 00 da") == []


def test_a_region_that_is_none_is_refused() -> None:
    with pytest.raises(PrivacyParameterError, match="'XX'"):
        PhoneRecogniser(["US", "XX"])


def test_without_its_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(PrivacyParameterError, match=r"fhe-llm\[privacy\]"):
        PhoneRecogniser()
