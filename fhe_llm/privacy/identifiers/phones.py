"""Telephone numbers, judged with Google's metadata (``phonenumbers``) and the words before them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Final

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers.contract import HEURISTIC, PATTERN, Identifier
from fhe_llm.privacy.identifiers.word_lists import alternation

DEFAULT_REGIONS: Final = ("US", "GB", "DE", "FR", "ES", "IT", "NL")

_EXTENSION: Final = r"(?: ?(?:x|ext\.?|extension) ?[0-9]{1,6})?"
# a number starts with +, ( or a digit; between digits stand at most three separators
_CANDIDATE: Final = re.compile(
    rf"(?<![\w.,/@#=&-])(?:\+ ?)?\(?\+?[0-9](?:[ ./()-]{{0,3}}[0-9]){{5,17}}{_EXTENSION}(?![\w@])",
    re.IGNORECASE,
)
_NORTH_AMERICA: Final = re.compile(
    rf"(?:\+?1[ .-]?|001[ .-])?(?:\([0-9]{{3}}\) ?|[0-9]{{3}}[.-])[0-9]{{3}}[.-][0-9]{{4}}{_EXTENSION}",
    re.IGNORECASE,
)
# dates, with the hour behind them or not; social security numbers; numbers of a year; years; fractions
_OTHER_FORM: Final = re.compile(
    r"\(?(?:[0-9]{1,4}([./-])[0-9]{1,2}\1[0-9]{1,4}(?: [0-9]{1,2})?|[0-9]{3}-[0-9]{2}-[0-9]{4}"
    r"|(?:19|20)[0-9]{2}-[0-9]{5,6}|(?:19|20)[0-9]{2} ?[-/] ?(?:19|20)[0-9]{2}|[0-9]{1,5}\.[0-9]+)"
)
# versions, of which a part has one digit; numbers in a list
_SEVERAL: Final = re.compile(r"\.[0-9](?:[ .]|$)|/[^/]*/")
_OTHER_NUMBER: Final = re.compile(r"(?:#[0-9 -]{0,20}|(?<![^\W_])[A-Z]{2}[0-9]{2} )$")
_BEHIND_MAIL: Final = re.compile(r"@[\w.-]{3,60}>?[,;|/ ]{1,4}$")
_WINDOW: Final = 80
_MOST_NATIONAL_DIGITS: Final = 13


@cache
def _cues() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Words that announce a telephone number, and those that announce a number of another kind right before it."""
    other = rf"\b{alternation('other_number_cues')}\b(?:\W{{0,3}}(?:no|nr|number|id|num|n°|nº))?\W{{0,4}}$"
    return re.compile(rf"\b{alternation('phone_cues')}\b", re.I), re.compile(other, re.I)


class PhoneRecogniser:
    """Telephone numbers of ``regions`` (two-letter codes) in national form, and of all countries behind ``+``.

    A number counts behind a word such as ``phone`` whatever its digits; else it must be written with ``+`` and have a
    possible length, look North American, or be valid in a region and be written in groups.
    """

    entity_types: ClassVar = frozenset({"PHONE"})

    def __init__(self, regions: Sequence[str] = DEFAULT_REGIONS) -> None:
        try:
            import phonenumbers
        except ImportError:
            raise PrivacyParameterError(
                "cannot recognise telephone numbers: phonenumbers is not installed. "
                "Run: pip install 'fhe-llm[privacy]'."
            ) from None
        unknown = [region for region in regions if region not in phonenumbers.SUPPORTED_REGIONS]
        if unknown:
            raise PrivacyParameterError(
                f"cannot recognise telephone numbers of {unknown[0]!r}: it is no region. "
                "Use two-letter codes such as 'US'."
            )
        self._regions = tuple(regions)
        self._phonenumbers = phonenumbers

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        found = []
        for match in _CANDIDATE.finditer(text):
            # a bracket around the whole number is not its own
            start = match.start() + (match[0].startswith("(") and match[0].count("(") > match[0].count(")"))
            score = self._score(text, start, text[start : match.end()])
            if score:
                found.append(Identifier(start, match.end(), "PHONE", score))
        return found

    def _score(self, text: str, start: int, number: str) -> float:
        digits = sum(c.isdigit() for c in number)
        if _OTHER_FORM.fullmatch(number) or _SEVERAL.search(number) or digits < 7:
            return 0
        before = max(0, start - _WINDOW)
        phone, other = _cues()
        if self._international(number):
            return PATTERN
        if other.search(text, before, start) or _OTHER_NUMBER.search(text, before, start):
            return 0
        if digits > _MOST_NATIONAL_DIGITS and not re.search("[xX]", number) and not number.startswith("00"):
            return 0
        if _NORTH_AMERICA.fullmatch(number) or self._valid(number):
            return PATTERN
        announced = phone.search(text, before, start) or _BEHIND_MAIL.search(text, before, start)
        return HEURISTIC if announced else 0

    def _international(self, number: str) -> bool:
        if "+" not in number[:2]:
            return False
        try:
            return self._phonenumbers.is_possible_number(self._phonenumbers.parse(number, None))
        except self._phonenumbers.NumberParseException:
            return False

    def _valid(self, number: str) -> bool:
        if number.isdigit() and number[0] != "0":
            return False
        for region in self._regions:
            try:
                if self._phonenumbers.is_valid_number(self._phonenumbers.parse(number, region)):
                    return True
            except self._phonenumbers.NumberParseException:
                continue
        return False
