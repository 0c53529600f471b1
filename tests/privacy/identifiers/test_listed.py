"""Listed words are found whole, in any case, and win over other finds."""

from __future__ import annotations

import pytest
from finds import found

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers import ListedRecogniser, Pseudonymiser, default_recognisers


def test_entries_are_found_as_whole_words_in_any_case() -> None:
    projects = ListedRecogniser("PROJECT", ["Blue Heron", "Blue", "K-9"])
    text = "blue\nHERON, Bluebird; k 9. (Blue) heron_k9"
    assert found(projects, text) == ["blue\nHERON", "k 9", "Blue) heron"]


def test_the_longest_entry_counts() -> None:
    assert found(ListedRecogniser("PROJECT", ["A", "A B", "A B C"]), "a b c a b a") == ["a b c", "a b", "a"]


def test_they_win_over_the_default_recognisers() -> None:
    listed = ListedRecogniser("CUSTOMER", ["Jane Doe"])
    conversation = Pseudonymiser([*default_recognisers(), listed]).start()
    sent = conversation.replace(["Dr. Jane Doe met Dr. Smith"]).value[0]
    assert sent == "Dr. [CUSTOMER_1] met Dr. [PERSON_1]"
    assert conversation.restore(sent) == "Dr. Jane Doe met Dr. Smith"


def test_a_single_string_is_one_entry_and_stays_out_of_the_repr() -> None:
    assert found(ListedRecogniser("PROJECT", "Blue Heron"), "a Blue Heron") == ["Blue Heron"]
    assert repr(ListedRecogniser("PROJECT", "Blue Heron")) == "ListedRecogniser('PROJECT', 1 entries)"


@pytest.mark.parametrize(
    ("kind", "entries"), [("project", ["a"]), ("PROJECT", []), ("PROJECT", ["a", " - "])]
)
def test_lists_that_cannot_be_used_are_refused(kind: str, entries: list[str]) -> None:
    with pytest.raises(PrivacyParameterError, match="cannot"):
        ListedRecogniser(kind, entries)
