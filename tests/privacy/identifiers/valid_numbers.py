"""Numbers with right check digits, made by search: what the functions under test say is not asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from fhe_llm.privacy.identifiers.numbers import IBAN_LENGTHS


def digits(length: int) -> st.SearchStrategy[str]:
    """Rows of digits."""
    return st.text("0123456789", min_size=length, max_size=length)


def luhn_digit(body: str) -> str:
    """The digit that makes a card number of ``body``, by the standard's own words: double every second one from the
    right, add the digits of all."""
    total = sum(sum(map(int, str(int(d) * (2 - i % 2)))) for i, d in enumerate(reversed(body)))
    return str(-total % 10)


def iban(country: str, account: str) -> str:
    """The IBAN of an account in capitals."""
    number = int(
        "".join(str("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(c)) for c in f"{account}{country}00")
    )
    return f"{country}{98 - number % 97:02d}{account}"


@st.composite
def cards(draw: Any, first: str = "4", length: int = 16) -> str:
    """Card numbers."""
    body = first + draw(digits(length - 1 - len(first)))
    return body + luhn_digit(body)


@st.composite
def ibans(draw: Any) -> str:
    """IBANs of every country of the registry, letters in the account included."""
    country = draw(st.sampled_from(sorted(IBAN_LENGTHS)))
    length = IBAN_LENGTHS[country] - 4
    account = st.text("0123456789ABCXYZ", min_size=length, max_size=length)
    return iban(country, draw(account))


def completed(body: str, count: int, valid: Callable[[str], bool]) -> list[str]:
    """``body`` with every ending of ``count`` digits that makes it valid."""
    return [number for ending in range(10**count) if valid(number := f"{body}{ending:0{count}d}")]


def with_one_digit_wrong(number: str) -> list[str]:
    """Every number that differs in one digit."""
    return [
        number[:at] + wrong + number[at + 1 :]
        for at, right in enumerate(number)
        if right.isdigit()
        for wrong in "0123456789"
        if wrong != right
    ]


def with_neighbours_swapped(number: str) -> list[str]:
    """Every number in which two different neighbouring digits have changed places."""
    return [
        number[:at] + number[at + 1] + number[at] + number[at + 2 :]
        for at in range(len(number) - 1)
        if number[at : at + 2].isdigit() and number[at] != number[at + 1]
    ]
