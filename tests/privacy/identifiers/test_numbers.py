"""Cards, IBANs and identity numbers: in any grouping, with right digits only, at the edges they have."""

from __future__ import annotations

import re

import pytest
from finds import found
from hypothesis import assume, given
from hypothesis import strategies as st
from valid_numbers import cards, ibans, with_one_digit_wrong

from fhe_llm.privacy.identifiers.numbers import (
    IBAN_LENGTHS,
    CardRecogniser,
    IbanRecogniser,
    NationalIdRecogniser,
    card_lengths,
)

CARDS = CardRecogniser()
IBANS = IbanRecogniser()
IDS = NationalIdRecogniser()


def grouped(number: str, size: int, separator: str) -> str:
    return separator.join(re.findall(f".{{1,{size}}}", number))


networks = (
    cards("4")
    | cards("4", 13)
    | cards("4", 19)
    | cards("55")
    | cards("2720")
    | cards("37", 15)
    | cards("36", 14)
    | cards("6011")
    | cards("3528")
    | cards("6759", 12)
)


@given(networks, st.sampled_from([" ", "-", ""]), st.sampled_from([4, 5, 6]))
def test_cards_of_every_network_are_found_in_any_grouping(number: str, separator: str, size: int) -> None:
    written = grouped(number, size, separator)
    assert written in found(CARDS, f"paid with {written}, thanks")


@given(cards(), st.data())
def test_a_card_with_a_wrong_digit_is_no_card(number: str, data: st.DataObject) -> None:
    wrong = data.draw(st.sampled_from(with_one_digit_wrong(number)))
    assert found(CARDS, f"order {wrong}.") == []


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1111 12/29 123",
        "card 4111-1111-1111-1111.",
        "(4111111111111111)",
        "no:4111111111111111",
        "4111 1111 1111 1111\n",
    ],
)
def test_what_stands_around_a_card_does_not_hide_it(text: str) -> None:
    assert any(one.replace(" ", "").replace("-", "") == "4" + "1" * 15 for one in found(CARDS, text))


@pytest.mark.parametrize(
    "text", ["A4111111111111111", "41111111111111112", "4111_1111_1111_1111", "1234567890123452"]
)
def test_digits_that_are_part_of_something_else_or_of_no_network_are_no_card(text: str) -> None:
    assert found(CARDS, text) == []


def test_prefixes_decide_about_lengths() -> None:
    assert card_lengths("411111") == (13, 16, 19)
    assert list(card_lengths("601100")) == [16, 17, 18, 19]
    assert card_lengths("999999") == ()


@given(ibans(), st.sampled_from([" ", "-", ""]), st.booleans())
def test_ibans_of_every_country_are_found_in_any_grouping(number: str, separator: str, small: bool) -> None:
    written = grouped(number.lower() if small else number, 4, separator)
    assert found(IBANS, f"IBAN: {written}; BIC") == [written]


@given(ibans(), st.data())
def test_an_iban_with_a_wrong_digit_is_none(number: str, data: st.DataObject) -> None:
    wrong = data.draw(st.sampled_from(with_one_digit_wrong(number)))
    assume(wrong[:2] == number[:2])
    assert found(IBANS, wrong) == []


@given(ibans())
def test_an_iban_that_goes_on_or_stops_early_is_none(number: str) -> None:
    assert found(IBANS, f"{number}7") == []
    assert found(IBANS, f"x{number}") == []
    assert number not in found(IBANS, number[:-1])


def test_the_registry_has_plausible_lengths() -> None:
    assert len(IBAN_LENGTHS) > 80
    assert all(re.fullmatch("[A-Z]{2}", country) and 15 <= n <= 34 for country, n in IBAN_LENGTHS.items())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SSN 123-45-6789", "123-45-6789"),
        ("social security: 123456789", "123456789"),
        ("DNI 12345678Z", "12345678Z"),
        ("NIE X-1234567-L", "X-1234567-L"),
        ("codice fiscale RSSMRA85T10A562S", "RSSMRA85T10A562S"),
        ("n° 2 55 08 14 168 025 38", "2 55 08 14 168 025 38"),
        ("CPF 529.982.247-25", "529.982.247-25"),
        ("cpf: 52998224725", "52998224725"),
        ("AHV 756.9217.0769.85", "756.9217.0769.85"),
        ("PESEL 44051401359", "44051401359"),
        ("Steuer-ID: 86 095 742 719", "86 095 742 719"),
        ("BSN 111222333", "111222333"),
        ("NHS number 943 476 5919", "943 476 5919"),
        ("passport no. C01X0006H", "C01X0006H"),
        ("driver's license: D123-4567-8901", "D123-4567-8901"),
        ("personnummer 811218-9876", "811218-9876"),
        ("NI number AB 12 34 56 C", "AB 12 34 56 C"),
    ],
)
def test_identity_numbers_are_found(text: str, number: str) -> None:
    assert set(found(IDS, text)) == {number}


@pytest.mark.parametrize(
    "text",
    [
        "000-12-3456",
        "order 123456789",
        "12345678A",
        "RSSMRA85T10A562T",
        "529.982.247-26",
        "756.9217.0769.86",
        "44051401359",
        "PESEL 44051401358",
        "BSN 111222334",
        "GB 12 34 56 C",
        "passport and 12345678",
        "passport photo",
    ],
)
def test_numbers_with_wrong_digits_or_without_their_word_are_none(text: str) -> None:
    assert found(IDS, text) == []
