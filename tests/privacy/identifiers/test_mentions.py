"""Spellings of one identifier, and short mentions of people."""

from __future__ import annotations

import pytest

from fhe_llm.privacy.identifiers.mentions import People, mentions, name_words, normalised


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("CARD", "4111 1111 1111 1111", "4111-1111-1111-1111"),
        ("IBAN", "DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
        ("PHONE", "+49 (30) 901820", "0049 30 90-18-20"),
        ("EMAIL", "Jane@Example.com", "jane@example.com"),
        ("PERSON", "JANE  DOE", "Jane Doe"),
        ("PERSON", "O’Brien", "O'Brien"),
        ("ADDRESS", "12 Old Mill Road,\nLeeds", "12 Old Mill Road, Leeds"),
        ("PERSON", "Ａｎｎａ", "Anna"),
    ],
)
def test_spellings_of_one_identifier_are_equal(kind: str, one: str, other: str) -> None:
    assert normalised(kind, one) == normalised(kind, other)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("EMAIL", "a.b@example.com", "ab@example.com"),
        ("URL", "https://x.example/a_b", "https://x.example/a b"),
        ("PHONE", "+49 30 901820", "030 901820"),
        ("PERSON", "Anna", "Ann a"),
    ],
)
def test_different_identifiers_stay_apart(kind: str, one: str, other: str) -> None:
    assert normalised(kind, one) != normalised(kind, other)


def test_initials_and_particles_are_no_words_of_a_name() -> None:
    assert name_words("Maria J. de la Cruz-Ortiz") == {"maria", "cruz-ortiz"}


def test_a_short_mention_belongs_to_the_one_person_who_is_called_so() -> None:
    people = People()
    people.add(1, "Jane Doe")
    people.add(2, "John Smith")
    assert people.number_for("Jane") == people.number_for("DOE") == people.number_for("Jane Anne Doe") == 1
    assert people.number_for("Smith") == 2
    assert people.number_for("Jane Smith") is None
    assert people.number_for("Nobody") is None
    people.add(3, "Jane Miller")
    assert people.number_for("Jane") is None
    assert people.words() == {"jane", "doe", "john", "smith", "miller"}


def said(text: str, *words: str) -> list[str]:
    return [text[one.start : one.end] for one in mentions(text, words)]


def test_mentions_are_capitalised_and_joined_without_the_possessive() -> None:
    assert said("Jane's car, Doe’s dog; Jane Doe. jane", "jane", "doe") == ["Jane", "Doe", "Jane Doe"]
    assert said("JANE and Jane-Ann", "jane") == ["JANE"]
    assert said("anything", *()) == []


def test_words_with_another_meaning_are_no_mention() -> None:
    assert said("May I? The Bank said so.", "may", "bank") == []
    assert said("I asked May. Rita saw Hall.", "may", "hall") == ["May", "Hall"]


def test_particles_before_a_known_surname_belong_to_the_mention() -> None:
    assert said("the parcel is at van Rooij, or Le Goff", "rooij", "van", "goff") == ["van Rooij", "Le Goff"]
    assert said("the voice of Rooij, een brief van Jane", "rooij", "van", "jane") == ["Rooij", "Jane"]
