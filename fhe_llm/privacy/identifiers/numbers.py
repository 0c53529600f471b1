"""Card numbers, IBANs and national identity numbers: found by form, kept where their check digits are right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from fhe_llm.privacy.identifiers import checksums
from fhe_llm.privacy.identifiers.contract import CHECKSUM, HEURISTIC, PATTERN, Identifier

_DIGIT_RUN: Final = re.compile(r"(?<![^\W_])[0-9](?:[ -]?[0-9])*(?![^\W_])")
_GROUP: Final = re.compile(r"[0-9]+")
_IBAN_START: Final = re.compile(r"(?<![^\W_])[A-Za-z]{2}[0-9]{2}(?=[ -]?[0-9A-Za-z])")
_SEPARATORS: Final = str.maketrans("", "", " -./")

IBAN_LENGTHS: Final[dict[str, int]] = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO FK GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
"""Characters of an IBAN by country (SWIFT's IBAN registry)."""


class CardRecogniser:
    """Payment cards: 12 to 19 digits of a known network in that network's length, with a right Luhn digit.

    Other digits may stand before or behind in the same row (a date, a security code): every run of whole groups counts.
    """

    entity_types: ClassVar = frozenset({"CARD"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        return [
            Identifier(start, end, "CARD", CHECKSUM)
            for run in _DIGIT_RUN.finditer(text)
            if run.end() - run.start() >= 12
            for start, end in _cards(text, run)
        ]


def _cards(text: str, run: re.Match[str]) -> Iterator[tuple[int, int]]:
    groups = [(m.start(), m.end()) for m in _GROUP.finditer(text, run.start(), run.end())]
    for first, (start, _) in enumerate(groups):
        length = 0
        for begin, end in groups[first : first + 19]:
            length += end - begin
            if length > 19:
                break
            digits = text[start:end].translate(_SEPARATORS) if length >= 12 else ""
            if digits and length in card_lengths(digits) and checksums.luhn(digits):
                yield start, end


def card_lengths(digits: str) -> range | tuple[int, ...]:
    """Lengths that a card with these first digits (at least six) may have; empty for no network's prefix."""
    two, three, four = int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[0] == "4":
        return (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return (16,)
    if two in (34, 37) or four in (1800, 2131):
        return (15,)
    if 300 <= three <= 305 or three == 309 or two in (36, 38, 39):
        return range(14, 20)
    if four == 6011 or 644 <= three <= 649 or two in (35, 62, 65):
        return range(16, 20)
    return range(12, 20) if four == 604 or two in (50, 56, 57, 58, 60, 61, 63, 66, 67, 68, 69) else ()


class IbanRecogniser:
    """IBANs of the registry's countries in any grouping by spaces or hyphens, in capitals or not, with right digits."""

    entity_types: ClassVar = frozenset({"IBAN"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        found = []
        for match in _IBAN_START.finditer(text):
            end = _iban_end(text, match.start())
            if end and checksums.mod97(text[match.start() : end].translate(_SEPARATORS).upper()):
                found.append(Identifier(match.start(), end, "IBAN", CHECKSUM))
        return found


def _iban_end(text: str, start: int) -> int | None:
    """Where the country's number of characters is reached, with single separators between them; None where it is not
    or another letter or digit follows."""
    left = IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
    at = start
    while left and at < len(text):
        if text[at].isascii() and text[at].isalnum():
            left -= 1
        elif text[at] not in " -" or text[at - 1] in " -":
            return None
        at += 1
    return at if at > start and not left and not text[at : at + 1].isalnum() else None


@dataclass(frozen=True, slots=True)
class _NationalId:
    """A form, the check it must pass, its score, and words of which one must stand close before it, if any."""

    form: re.Pattern[str]
    valid: Callable[[str], bool]
    score: float = CHECKSUM
    cues: re.Pattern[str] | None = None


def _form(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_])(?:{pattern})(?![^\W_])", re.IGNORECASE)


def _cues(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)


def _has_digits(number: str) -> bool:
    return sum(c.isdigit() for c in number) >= 5


def _pesel(digits: str) -> bool:
    month = int(digits[2:4]) % 20
    return 1 <= month <= 12 and checksums.weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10)


_NATIONAL_IDS: Final = (
    _NationalId(_form(r"[0-9]{3}-[0-9]{2}-[0-9]{4}"), checksums.ssn, PATTERN),
    _NationalId(
        _form(r"[0-9]{3} ?[0-9]{2} ?[0-9]{4}"), checksums.ssn, PATTERN, _cues("ssn|social security|social")
    ),
    _NationalId(_form(r"[0-9]{8}[ -]?[A-Z]|[XYZ][ -]?[0-9]{7}[ -]?[A-Z]"), checksums.dni),
    _NationalId(
        _form(r"[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-EHLMPRST][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z]"),
        checksums.codice_fiscale,
    ),
    _NationalId(
        _form(r"[12] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"), checksums.nir
    ),
    _NationalId(_form(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"), checksums.cpf),
    _NationalId(_form(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}"), lambda n: checksums.weighted(n, (1, 3) * 6 + (1,), 10)),
    _NationalId(_form(r"[0-9]{11}"), _pesel, CHECKSUM, _cues("pesel")),
    _NationalId(_form(r"[0-9]{11}"), checksums.cpf, CHECKSUM, _cues("cpf")),
    _NationalId(
        _form(r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}"),
        checksums.steuer_id,
        CHECKSUM,
        _cues(r"steuer-?id|steuer(?:liche )?identifikationsnummer|idnr|tin|tax id"),
    ),
    _NationalId(
        _form(r"[0-9]{9}"),
        lambda n: checksums.weighted(n, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11),
        CHECKSUM,
        _cues("bsn|burgerservicenummer|sofinummer"),
    ),
    _NationalId(
        _form(r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}"),
        lambda n: checksums.weighted(n, (10, 9, 8, 7, 6, 5, 4, 3, 2, 1), 11),
        CHECKSUM,
        _cues("nhs"),
    ),
    _NationalId(
        _form(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]"),
        lambda _: True,
        PATTERN,
    ),
    _NationalId(
        _form(r"[A-Z0-9][A-Z0-9-]{4,18}[A-Z0-9]"),
        _has_digits,
        HEURISTIC,
        re.compile(
            r"\b(?:ssn|social security|passport|reisepass|passeport|pasaporte|passaporto|paspoort"
            r"|driver['’]?s? licen[cs]e|driving licen[cs]e|führerschein|permis de conduire|id card|identity card"
            r"|personalausweis|carte d['’]identité|national id|aadhaar|personnummer)"
            r"(?:[ -]?(?:no|nr|number|num|nummer|n°|nº|#))?\W{0,4}$",
            re.IGNORECASE,
        ),
    ),
)  # fmt: skip
_CUE_WINDOW: Final = 40


class NationalIdRecogniser:
    """Identity and social security numbers of the US, Spain, Italy, France, Brazil, Switzerland, Poland, Germany, the
    Netherlands and the United Kingdom.

    Bare rows of digits count only where a word such as ``SSN`` or ``PESEL`` stands within 40 characters before; numbers
    of passports and licences only right behind their name.
    """

    entity_types: ClassVar = frozenset({"NATIONALID"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        return [
            Identifier(match.start(), match.end(), "NATIONALID", kind.score)
            for kind in _NATIONAL_IDS
            for match in kind.form.finditer(text)
            if (not kind.cues or kind.cues.search(text, max(0, match.start() - _CUE_WINDOW), match.start()))
            and kind.valid(match[0].translate(_SEPARATORS).upper())
        ]
