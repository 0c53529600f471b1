"""Every list reads, without doubles, and becomes a pattern that tells each entry whole."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from fhe_llm.privacy.identifiers.word_lists import alternation, entries

LISTS = sorted(
    one.name.removesuffix(".txt") for one in files("fhe_llm.privacy.identifiers").joinpath("words").iterdir()
)


@pytest.mark.parametrize("name", LISTS)
def test_every_entry_is_matched_whole(name: str) -> None:
    found = entries(name)
    pattern = re.compile(alternation(name))
    assert len(found) == len(set(found)) > 5
    for entry in found:
        assert (match := pattern.match(entry)) is not None
        assert match[0] == entry


def test_an_entry_may_go_on_in_the_next_line() -> None:
    assert {"next of kin", "emergency contact"} <= set(entries("name_labels"))
    assert not {"to", "speak", "kin"} & set(entries("introductions"))


def test_an_apostrophe_may_be_a_curly_one() -> None:
    assert re.fullmatch(alternation("introductions"), "je m’appelle")
