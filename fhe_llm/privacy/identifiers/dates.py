"""Dates of birth: dates that stand behind a word about birth. Other dates name nobody and stay."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from fhe_llm.privacy.identifiers.contract import PATTERN, Identifier

_MONTH: Final = (
    r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"
    r"|january|february|march|april|june|july|august|september|october|november|december"
    r"|januar|jänner|februar|märz|mai|juni|juli|oktober|dezember"
    r"|janvier|février|mars|avril|juin|juillet|août|septembre|octobre|novembre|décembre"
    r"|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre"
    r"|gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre"
    r"|januari|februari|maart|mei|augustus)"
)
_DATE: Final = re.compile(
    r"(?<![^\W_])(?:"
    r"[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}"
    r"|[0-9]{1,2} ?[-/.] ?[0-9]{1,2} ?[-/.] ?(?:[0-9]{4}|[0-9]{2})"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th|er|\.)? (?:de |of )?{_MONTH}\.?,? (?:de |del )?[0-9]{{4}}"
    rf"|{_MONTH}\.? [0-9]{{1,2}}(?:st|nd|rd|th)?,? [0-9]{{4}}"
    r")(?![^\W_])",
    re.IGNORECASE,
)
_BIRTH: Final = re.compile(
    r"\b(?:birth ?date|date of birth|birth ?day|birth|born|d\.?o\.?b|geburtsdatum|geboren|geburtstag|geburtsdaten|geb"
    r"|née?|naissance|nac(?:ido|ida|ió|í|imiento)|fecha de nacimiento|nat[oa]|nascita|nascid[oa]|nascimento"
    r"|geboortedatum|geboortedag)\b",
    re.IGNORECASE,
)
_WINDOW: Final = 40
_QUESTION: Final = 160


class BirthDateRecogniser:
    """Dates within 40 characters behind a word about birth in English, German, French, Spanish, Italian, Portuguese or
    Dutch, on the same line or the next, without another date between; and those in
    the answer to a question about birth in the line before."""

    entity_types: ClassVar = frozenset({"BIRTHDATE"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        found, past = [], 0
        for match in _DATE.finditer(text):
            if _is_of_birth(text, past, match.start()):
                found.append(Identifier(match.start(), match.end(), "BIRTHDATE", PATTERN))
            past = match.end()
        return found


def _is_of_birth(text: str, past: int, start: int) -> bool:
    if _BIRTH.search(text, max(past, start - _WINDOW), start):
        return True
    line = text.rfind("\n", max(past, start - _WINDOW), start)
    question = text[max(past, line - _QUESTION) : line].rpartition("\n")[2] if line > 0 else ""
    return "?" in question and bool(_BIRTH.search(question))
