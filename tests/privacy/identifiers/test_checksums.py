"""Right check digits pass, and every error that a scheme promises to notice is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from valid_numbers import cards, completed, digits, ibans, with_neighbours_swapped, with_one_digit_wrong

from fhe_llm.privacy.identifiers import checksums


def _bsn(number: str) -> bool:
    return checksums.weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11)


def _pesel(number: str) -> bool:
    return checksums.weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10)


def _ahv(number: str) -> bool:
    return checksums.weighted(number, (1, 3) * 6 + (1,), 10)


@pytest.mark.parametrize(
    ("valid", "number"),
    [
        (checksums.luhn, "4111111111111111"),
        (checksums.luhn, "378282246310005"),
        (checksums.luhn, "6011111111111117"),
        (checksums.mod97, "DE89370400440532013000"),
        (checksums.mod97, "GB29NWBK60161331926819"),
        (checksums.mod97, "FR1420041010050500013M02606"),
        (checksums.ssn, "123456789"),
        (checksums.dni, "12345678Z"),
        (checksums.dni, "X1234567L"),
        (checksums.codice_fiscale, "RSSMRA85T10A562S"),
        (checksums.nir, "255081416802538"),
        (checksums.cpf, "52998224725"),
        (checksums.steuer_id, "86095742719"),
        (_pesel, "44051401359"),
        (_ahv, "7569217076985"),
        (_bsn, "111222333"),
    ],
)
def test_published_examples_are_right(valid: Callable[[str], bool], number: str) -> None:
    assert valid(number)


@given(cards() | cards("37", 15) | cards("5018", 12) | cards("3", 14))
def test_luhn_notices_a_wrong_digit_and_swapped_neighbours_but_for_nought_and_nine(number: str) -> None:
    assert checksums.luhn(number)
    assert not any(map(checksums.luhn, with_one_digit_wrong(number)))
    unnoticed = [swapped for swapped in with_neighbours_swapped(number) if checksums.luhn(swapped)]
    assert all(
        {swapped[at] for at in range(len(number)) if swapped[at] != number[at]} == {"0", "9"}
        for swapped in unnoticed
    )


@given(ibans())
def test_an_iban_notices_a_wrong_digit_and_swapped_neighbours(number: str) -> None:
    assert checksums.mod97(number)
    assert not any(map(checksums.mod97, with_one_digit_wrong(number)))
    assert not any(map(checksums.mod97, with_neighbours_swapped(number)))


@given(ibans(), st.data())
def test_an_iban_notices_a_wrong_letter(number: str, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from([i for i, c in enumerate(number) if c.isalpha()]))
    wrong = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ").filter(lambda c: c != number[at]))
    assert not checksums.mod97(number[:at] + wrong + number[at + 1 :])


@pytest.mark.parametrize(
    ("valid", "length", "swaps"),
    [(_pesel, 10, False), (_ahv, 12, False), (_bsn, 8, True), (checksums.steuer_id, 10, False)],
)
@given(data=st.data())
def test_weighted_numbers_have_at_most_one_check_digit_and_notice_a_wrong_one(
    valid: Callable[[str], bool], length: int, swaps: bool, data: st.DataObject
) -> None:
    found = completed(data.draw(digits(length)), 1, valid)
    assert len(found) <= 1
    for number in found:
        assert not any(map(valid, with_one_digit_wrong(number)))
        assert not swaps or not any(map(valid, with_neighbours_swapped(number)))


@given(digits(9))
def test_a_cpf_has_exactly_one_pair_of_check_digits(body: str) -> None:
    found = completed(body, 2, checksums.cpf)
    assert len(found) == (0 if len(set(body)) == 1 else 1)


@given(digits(12))
def test_a_nir_has_exactly_one_key(body: str) -> None:
    number = f"1{body}"
    (whole,) = completed(number, 2, checksums.nir)
    assert 1 <= int(whole[-2:]) <= 97
    assert not any(map(checksums.nir, with_one_digit_wrong(whole)))


def test_a_nir_of_corsica_counts_its_letter_as_a_number() -> None:
    for department, number in (("2A", "19"), ("2B", "18")):
        (whole,) = completed(f"18501{department}004001", 2, checksums.nir)
        assert checksums.nir(whole.replace(department, number))


@given(digits(8))
def test_a_dni_has_one_letter_and_notices_wrong_digits_and_swaps(body: str) -> None:
    (number,) = [body + c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if checksums.dni(body + c)]
    assert not any(map(checksums.dni, with_one_digit_wrong(number)))
    assert not any(map(checksums.dni, with_neighbours_swapped(number)))


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=6, max_size=6), digits(9))
def test_a_tax_code_has_one_last_letter(letters: str, numbers: str) -> None:
    body = f"{letters}{numbers[:2]}A{numbers[2:4]}B{numbers[4:7]}"
    found = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if checksums.codice_fiscale(body + c)]
    assert len(found) == 1


@pytest.mark.parametrize("number", ["000123456", "666123456", "900123456", "123006789", "123450000"])
def test_social_security_numbers_that_are_never_given(number: str) -> None:
    assert not checksums.ssn(number)


def test_eleven_equal_digits_are_no_cpf_and_a_tax_number_does_not_begin_with_nought() -> None:
    assert not checksums.cpf("11111111111")
    assert completed("0123456789", 1, checksums.steuer_id) == []
