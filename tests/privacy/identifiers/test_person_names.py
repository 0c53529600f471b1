"""Names behind titles, labels, introductions and greetings, in signatures, and by lists; and words that are none."""

from __future__ import annotations

import pytest
from finds import found

from fhe_llm.privacy.identifiers.contract import settled
from fhe_llm.privacy.identifiers.person_names import PersonNameRecogniser

NAMES = PersonNameRecogniser()


def people(text: str) -> list[str]:
    return [text[one.start : one.end] for one in settled(text, NAMES.find(text))]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("We saw Dr. Xylanthe Quorbin today", "Xylanthe Quorbin"),
        ("Patient: Xylanthe Quorbin", "Xylanthe Quorbin"),
        ("| Kunde: | x\nKunde: Jörg Müller-Lüdenscheidt", "Jörg Müller-Lüdenscheidt"),
        ("my name is Xylanthe Quorbin and", "Xylanthe Quorbin"),
        ("Ich heiße Xaver Quorbin.", "Xaver Quorbin"),
        ("Dear Xylanthe,\n", "Xylanthe"),
        ("Sehr geehrte Frau Quorbin,\n", "Quorbin"),
        ("Kind regards,\nXylanthe Quorbin", "Xylanthe Quorbin"),
        ("Mit freundlichen Grüßen\n\nXaver von der Quorbin", "Xaver von der Quorbin"),
        ("I think Jane Doe knows", "Jane Doe"),
        ("signed by Maria da Silva today", "Maria da Silva"),
        ("and Jean-Luc O’Brien said", "Jean-Luc O’Brien"),
        ("[10:42] Jane: hello", "Jane"),
        ("Smith, Jane\n", "Smith, Jane"),
        ("Mr J. R. Quorbin called", "J. R. Quorbin"),
        ("Mrs J.R.R. Quorbin called", "J.R.R. Quorbin"),
        ("Γεια, Dr. Ελένη Παππά μίλησε", "Ελένη Παππά"),
        ("Rita Hall, MD", "Rita Hall"),
        ("Xylan Quorbin <x@example.com>", "Xylan Quorbin"),
        ("Von: Xaver Quorbin", "Xaver Quorbin"),
        ("Estimada señora Quorbin:", "Quorbin"),
        ("Behandelnder Arzt: Dr. med. Xaver Quorbin", "Xaver Quorbin"),
        ("ihre Tochter Xylanthe kommt", "Xylanthe"),
        ("On Monday, Xylan Quorbin wrote:", "Xylan Quorbin"),
        ("entre Jeannine Le Goff, Lyon", "Jeannine Le Goff"),
        ("Stephen M. Ingram called", "Stephen M. Ingram"),
        ("Xylan Quorbin\n12 Mill Road", "Xylan Quorbin"),
        ("we met John\u00a0Smith there", "John\u00a0Smith"),
    ],
)
def test_names_are_found_without_their_titles(text: str, name: str) -> None:
    assert people(text) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "The report is due in May, in June at the latest.",
        "Thanks for your help.",
        "Dear customer service,\n",
        "Kind regards,\nThe Support Team",
        "From: Monday\nTo: Friday",
        "New York City Council",
        "Will this work? Mark the box.",
        "Order Status: open",
        "Baker & Sons Ltd",
        "Wagner Logistik GmbH",
        "De Jong Transport B.V.",
        "Status: a\nStatus: b",
        "Classifier: a\nClassifier: b\nClassifier: c",
        "",
    ],
)
def test_other_capitalised_words_are_none(text: str) -> None:
    assert people(text) == []


def test_those_who_speak_again_after_somebody_else_are_people() -> None:
    assert found(NAMES, "Xyl: hi\nQuor: hello\nXyl: bye\nQuor: bye") == ["Xyl", "Quor", "Xyl", "Quor"]
    assert found(NAMES, "Xyl: hi\nQuor: hello") == []


def test_a_lone_first_name_in_running_text_is_one_unless_it_is_a_word_too() -> None:
    assert found(NAMES, "I gave it to Jane and Mark; Susan's is lost.") == ["Jane", "Susan"]


def test_eagerly_two_capitalised_words_are_a_name_unless_they_head_a_field_or_a_company() -> None:
    eager = PersonNameRecogniser(eager=True)
    text = "Xylan Quorbin paid. Then Xaver van Quorbin came to Order Status and Quorbin GmbH, to Quorbin."
    assert found(NAMES, text) == []
    assert found(eager, text) == ["Xylan Quorbin", "Xaver van Quorbin"]


def test_a_name_goes_on_over_particles_and_surnames_that_are_words_too() -> None:
    assert people("entre Anne Le Goff et moi") == ["Anne Le Goff"]
    assert people("I saw Shannon W. Hall there") == ["Shannon W. Hall"]
    assert people("Dear Ms Hall,") == ["Hall"]
    assert people("we met Xylan Tom Jones there") == ["Xylan Tom Jones"]


def test_roles_and_stamped_lines_announce_people() -> None:
    assert people("vertreten durch die Geschäftsführerin Xylan Quorbin,") == ["Xylan Quorbin"]
    assert people("z. Hd. Xylan Quorbin") == ["Xylan Quorbin"]
    assert people("Xylan 10:42\nhello\n") == ["Xylan"]


def test_parties_who_sign_side_by_side_and_those_who_are_described() -> None:
    assert people("Xylan Quorbin                Ylva van Zorn\n") == ["Xylan Quorbin", "Ylva van Zorn"]
    assert people("Xylan Quorbin                total\n") == []
    assert people("y Xylan Quorbin, nacido el martes") == ["Xylan Quorbin"]
    assert people("Xylan Quorbin (020 7946 0958)") == ["Xylan Quorbin"]
