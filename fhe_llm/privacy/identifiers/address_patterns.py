"""How postal addresses are written, by country: the street with its number, and what follows it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from fhe_llm.privacy.identifiers.word_lists import alternation

_CAPITAL: Final = r"[^\W\d_a-zß-öø-ÿ]"
_WORD: Final = rf"{_CAPITAL}[\w'’.-]{{0,30}}"
_PARTICLE: Final = (
    "(?:(?:de|del|della|delle|dei|di|da|du|des|la|le|les|las|los|el|an|am|der|den|dem|im|in|auf|bei|zu|zur|zum|van|het"
    "|op|aan|sur|sous|lès|y|e|of|the)[ ]|(?:d|l|nell|dell)['’])"
)
_NAME: Final = rf"(?:{_PARTICLE}){{0,2}}{_WORD}(?:[ ](?:{_PARTICLE}){{0,3}}{_WORD}){{0,4}}"
_TOWN_WORD: Final = rf"(?:{_CAPITAL}[\w'’]{{0,2}}\.(?= )|{_CAPITAL}[\w'’-]{{0,30}})"
_TOWN: Final = rf"{_TOWN_WORD}(?:[ ](?:{_PARTICLE}){{0,2}}{_TOWN_WORD}){{0,4}}(?: \([A-Z]{{2}}\))?"
_GAP: Final = r"(?:[ \t]{0,3},[ \t]{0,3}\n?[ \t]{0,8}|[ \t]{0,3}\n[ \t]{0,8}|[ \t]{1,3}(?:in )?(?=[0-9A-Z]))"
_UNIT: Final = (
    "(?:(?i:apt|apartment|suite|ste|unit|flat|studio|floor|room|puerta|piso|appartamento|apto|piano|wohnung)"
    r"\.?[ ]?#?[ ]?[0-9]{1,5}[a-z]?|#[ ]?[0-9]{1,5})"
)
_NUMBER: Final = r"[0-9]{1,5}[A-Za-z]?(?:[ ]?[-/][ ]?[0-9]{1,4}[a-z]?)?"
_BRITISH_CODE: Final = r"[A-Z]{1,2}[0-9][A-Z0-9]?[ ]?[0-9][ABD-HJLNP-UW-Z]{2}"
_DIRECTION: Final = r"(?: (?:[NSEW]{1,2}|North|South|East|West)\b)?"


@dataclass(frozen=True, slots=True)
class AddressPatterns:
    """``streets`` find a street and its number, ``rest`` matches behind one; ``british_code`` finds a postcode, and
    ``before_british_code`` what leads up to it."""

    streets: tuple[re.Pattern[str], ...]
    rest: re.Pattern[str]
    british_code: re.Pattern[str]
    before_british_code: re.Pattern[str]


@cache
def address_patterns() -> AddressPatterns:
    """All patterns; every quantifier is bounded, so that hostile text costs a bounded number of steps a character."""
    return AddressPatterns(
        streets=tuple(re.compile(rf"(?<![\w#/.-])(?:{street})(?![^\W_])") for street in _streets()),
        rest=re.compile(
            rf"(?:{_GAP}{_UNIT}(?![^\W_]))?(?:{_GAP}(?:"
            r"(?:APO|FPO|DPO) A[AEP] [0-9]{5}"
            rf"|{_TOWN},? (?:[A-Z]{{2}}|{_WORD}),? [0-9]{{5}}(?:-[0-9]{{4}})?"
            rf"|(?:[A-Z]{{1,2}}-)?[0-9]{{4,5}}(?:-[0-9]{{3}})?(?: ?[A-Z]{{2}}\b)?(?:{_GAP}{_TOWN})?"
            rf"|{_TOWN},? [0-9]{{4,5}}"
            rf"|(?:{_TOWN}{_GAP}){{0,2}}{_BRITISH_CODE}"
            r")(?![^\W_]))?"
        ),
        british_code=re.compile(rf"(?<![^\W_]){_BRITISH_CODE}(?![^\W_])"),
        before_british_code=re.compile(
            rf"(?<![\w-])(?:(?i:flat|studio|unit|apartment) ?[0-9]{{1,4}}[A-Za-z]?{_GAP})?"
            rf"(?:[0-9]{{1,4}}[A-Za-z]?,? )?{_WORD}(?: [\w'’-]{{1,25}}){{0,2}}{_GAP}(?:{_TOWN}{_GAP})?$"
        ),
    )


def _streets() -> tuple[str, ...]:
    ending = alternation("street_endings_germanic")
    return (
        # United States, United Kingdom: 12 Old Mill Road
        rf"[0-9]{{1,6}}[A-Za-z]?,? (?:[NSEW]{{1,2}}\.? )?(?:(?:{_WORD}|[0-9]{{1,3}}(?:st|nd|rd|th)) ){{1,4}}"
        rf"(?:(?=[A-Z])(?i:{alternation('street_endings_english')}s?)|street|road|avenue|lane|drive)\b\.?{_DIRECTION}",
        # France: 12 bis, rue de la Paix
        r"[0-9]{1,4}(?:[ ]?(?:bis|ter|quater|[A-C]))?,? "
        rf"(?i:{alternation('street_heads_french')}) {_NAME}",
        rf"(?i:{alternation('street_heads_french')}) {_NAME}(?={_GAP}[0-9]{{5}} {_CAPITAL})",
        # Germany, Austria, Switzerland, the Netherlands: Lange-Straße 12a, Unterer Weg 3, Hoofdstraat 3
        rf"{_CAPITAL}[\w.-]{{0,40}}?(?i:{ending}) {_NUMBER}",
        rf"(?:{_WORD} ){{1,3}}(?=[A-Z])(?i:{ending}) {_NUMBER}",
        # Spain, Portugal, Italy: Calle de Alcalá 12, Via Roma, 3
        rf"(?i:{alternation('street_heads_southern')}) ?{_NAME},? (?:n[.º°]? ?)?(?:{_NUMBER}|s/n)",
        # boxes and field post
        rf"(?i:{alternation('post_boxes')}) [0-9]{{1,7}}",
        r"(?:(?:PSC|Unit) [0-9]{1,5},? Box [0-9]{1,5}|US(?:NS|NV|CGC|S) "
        rf"{_WORD})(?={_GAP}(?:APO|FPO|DPO) )",
        # any name and number right before a continental postcode and town
        rf"(?:{_WORD}[ ](?:{_PARTICLE}){{0,2}}){{1,4}}{_NUMBER}"
        rf"(?={_GAP}(?:[A-Z]{{1,2}}-)?[0-9]{{4,5}}(?:-[0-9]{{3}})?[ ]{_CAPITAL})",
    )
