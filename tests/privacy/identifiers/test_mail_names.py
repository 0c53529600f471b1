"""Names are found by the e-mail addresses that spell them."""

from __future__ import annotations

import pytest

from fhe_llm.privacy.identifiers.mail_names import names_in_mail


def named(text: str) -> list[str]:
    return [text[start:end] for start, end in names_in_mail(text)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ask Xylan or Quorbin: xylan.quorbin@example.com", ["Xylan", "Quorbin"]),
        ("xquorbin@example.com is Xylan Quorbin", ["Xylan Quorbin"]),
        ("xquorbin@example.com is Anna Quorbin", []),
        ("quörbin_77@example.com is Quörbin's", ["Quörbin"]),
        ("x.obrien@example.com: O’Brien", ["O’Brien"]),
        ("Support: support@example.com", []),
        ("quorbin and Example: quorbin@example.com", []),
        ("Quorbin@Quorbin.example", []),
        ("Xylan Quorbin", []),
        ("the Lee of lee@example.com", []),
    ],
)
def test_capitalised_words_that_an_address_spells(text: str, names: list[str]) -> None:
    assert named(text) == names
