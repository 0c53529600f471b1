"""What recognisers find, as text; and hostile text of any length for each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from fhe_llm.privacy.identifiers.contract import Identifier, Recogniser


def found(recogniser: Recogniser, text: str) -> list[str]:
    """What it finds, in the order of the text."""
    return [text[one.start : one.end] for one in sorted(recogniser.find(text), key=lambda one: one.start)]


@dataclass
class Words:
    """Finds given words; for tests that want to know exactly what is found."""

    entity_type: str
    words: tuple[str, ...]
    score: float = 0.5

    @property
    def entity_types(self) -> frozenset[str]:
        return frozenset({self.entity_type})

    def find(self, text: str) -> list[Identifier]:
        return [
            Identifier(match.start(), match.end(), self.entity_type, self.score)
            for word in self.words
            for match in re.finditer(re.escape(word), text)
        ]


class Lying:
    """Returns whatever it was given."""

    entity_types: ClassVar = frozenset({"CARD"})

    def __init__(self, *finds: Any) -> None:
        self._finds = finds

    def find(self, text: str) -> list[Identifier]:
        return [Identifier(*find) for find in self._finds]


def hostile(length: int) -> Iterator[tuple[str, str]]:
    """Texts that make careless patterns try again at every character, with a name each."""
    pieces = {
        "digits": "1",
        "spaced digits": "1 ",
        "dashed digits": "1-",
        "letters": "a",
        "capitals": "A",
        "names": "Anna ",
        "hyphened names": "Anna-",
        "particles": "Anna de la ",
        "initials": "A. ",
        "spaces": " ",
        "line ends": "\n",
        "indented lines": "\n        ",
        "marks": ">*# ",
        "at signs": "a@",
        "dots": "a.",
        "addressed": "a@b.",
        "colons": "a:",
        "double colons": "::",
        "plus signs": "+1(",
        "brackets": "[PERSON_",
        "escapes": "\\[",
        "quotes": '"\\',
        "urls": "http://a",
        "streets": "1 Old Mill ",
        "rue": "1 rue de la ",
        "commas": "1 Road, ",
        "months": "1 de may de ",
        "labels": "Name: ",
        "titles": "Dr. ",
        "closings": "Regards,\n",
        "ibans": "DE89 ",
        "combining": "a\u0301",
        "apostrophes": "O'",
    }
    for name, piece in pieces.items():
        yield name, (piece * (length // len(piece) + 1))[:length]
