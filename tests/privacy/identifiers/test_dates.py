"""Dates of birth in seven languages; other dates stay."""

from __future__ import annotations

import pytest
from finds import found

from fhe_llm.privacy.identifiers.dates import BirthDateRecogniser

DATES = BirthDateRecogniser()


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("Date of birth: 1980-05-17", "1980-05-17"),
        ("DOB 05/17/1980", "05/17/1980"),
        ("D.O.B.: 5/7/80", "5/7/80"),
        ("born on 17th of May 1980", "17th of May 1980"),
        ("born May 17, 1980 in", "May 17, 1980"),
        ("geboren am 17. März 1980", "17. März 1980"),
        ("née le 1er août 1980", "1er août 1980"),
        ("nacida el 17 de mayo de 1980", "17 de mayo de 1980"),
        ("nato il 17 maggio 1980", "17 maggio 1980"),
        ("geboortedatum:\n17 mei 1980", "17 mei 1980"),
        ("data de nascimento 17.05.1980", "17.05.1980"),
    ],
)
def test_dates_of_birth_are_found(text: str, date: str) -> None:
    assert found(DATES, text) == [date]


@pytest.mark.parametrize(
    "text",
    ["Delivered on 1980-05-17", "due 17 May 1980", f"born{' ' * 60}1980-05-17", "1980-05-17 born", "born 17"],
)
def test_other_dates_stay(text: str) -> None:
    assert found(DATES, text) == []


def test_a_date_behind_a_date_of_birth_is_another() -> None:
    assert found(DATES, "born 1980-05-17, admitted on 2024-01-02") == ["1980-05-17"]


def test_a_date_in_the_line_behind_a_question_about_birth_is_one() -> None:
    assert found(
        DATES, "Support: Your date of birth, and your address, please?\nXylan: it is 1980-05-17, 5 Mill Road"
    ) == ["1980-05-17"]
    assert found(DATES, "He told me of his birth at length.\nXylan said nothing and left on 1980-05-17") == []
