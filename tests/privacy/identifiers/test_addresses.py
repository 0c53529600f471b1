"""Postal addresses in the order of ten countries."""

from __future__ import annotations

import pytest
from finds import found

from fhe_llm.privacy.identifiers.addresses import AddressRecogniser
from fhe_llm.privacy.identifiers.contract import settled

ADDRESSES = AddressRecogniser()


@pytest.mark.parametrize(
    "address",
    [
        "12 Old Mill Road, Springfield, IL 62704",
        "4821 N 5th St Apt 12, Denver, CO 80203-1234",
        "12 Old Mill Road\nSpringfield, IL 62704",
        "PSC 1234, Box 5678\nAPO AE 09012",
        "P.O. Box 1234, Austin, TX 78701",
        "221B Baker Street, London NW1 6XE",
        "Flat 3, 10 Acacia Avenue, Leeds, LS1 4AP",
        "Studio 5\nHarbour View\nBristol\nBS1 5TR",
        "12 bis, rue de la Paix, 75002 Paris",
        "45, avenue des Champs-Élysées\n75008 Paris",
        "Lange Straße 12a, 10115 Berlin",
        "Hauptstr. 5, D-80331 München",
        "Unterer Weg 3\n8001 Zürich",
        "Hoofdstraat 3-5, 1234 AB Amsterdam",
        "Calle de Alcalá 12, 28014 Madrid",
        "Avda. de la Constitución, 4, 41001 Sevilla",
        "Via Roma, 3, 00184 Roma (RM)",
        "Rua Augusta 100, 1100-053 Lisboa",
        "Postfach 1234, 10115 Berlin",
        "Am Alten Markt 7, 50667 Köln",
    ],
)
def test_addresses_are_found_whole(address: str) -> None:
    text = f"We live at\n{address}\nsince May."
    ones = settled(text, ADDRESSES.find(text))
    assert " | ".join(text[one.start : one.end] for one in ones) == address


@pytest.mark.parametrize(
    "text",
    [
        "Take the second road to the lake",
        "We have 12 roads",
        "rue de la Paix is long",
        "The Street, a novel of 1946",
        "version 12 in place",
        "on Main Street at noon",
        "5 apples from the valley",
    ],
)
def test_streets_without_a_number_and_numbers_without_a_street_are_none(text: str) -> None:
    assert found(ADDRESSES, text) == []
