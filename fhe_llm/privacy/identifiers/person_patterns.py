"""Where names of people stand: the forms of names, and of what comes before and behind them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from fhe_llm.privacy.identifiers.word_lists import alternation

# a capital is a letter that is no small Latin, Greek or Cyrillic one: re has no class for it
_CAPITAL: Final = r"[^\W\d_a-zß-öø-ÿα-ωά-ώа-џ]"
_WORD: Final = rf"{_CAPITAL}[^\W\d_]{{0,30}}(?:['’-](?!s\b)[^\W\d_]{{1,30}}){{0,3}}"
_PARTICLE: Final = (
    "(?:van|von|vom|zu|zum|zur|de|der|den|del|della|delle|dei|di|da|do|dos|du|des|la|le|el|al|bin|ibn|ter|ten|te"
    "|y|e|af|av)"
)
_INITIALS: Final = rf"(?:{_CAPITAL}\.){{1,3}}(?!\w)"
_PART: Final = rf"(?:{_INITIALS}|{_WORD}(?!\.[^\W\d_]))"
_GAP: Final = r"[ \u00a0]"
_NAME: Final = rf"{_PART}(?:{_GAP}(?:{_PARTICLE}{_GAP}){{0,3}}{_PART}){{0,5}}"
# "y" and "e" join two surnames, and never begin a name
_LED: Final = rf"(?:(?![ye]{_GAP}){_PARTICLE}{_GAP}){{0,3}}{_NAME}"
_LINE: Final = r"^[ \t>#*_]{0,6}"
TOKEN: Final = re.compile(rf"{_INITIALS}|[\w'’-]+")


@dataclass(frozen=True, slots=True)
class PersonPatterns:
    """Each pattern's first group is a name, or capitalised words that may be one."""

    titled: re.Pattern[str]
    addressed: re.Pattern[str]
    degreed: re.Pattern[str]
    writing: re.Pattern[str]
    described: re.Pattern[str]
    columns: re.Pattern[str]
    addressee: re.Pattern[str]
    labelled: re.Pattern[str]
    introduced: re.Pattern[str]
    greeted: re.Pattern[str]
    signed: re.Pattern[str]
    maybe_introduced: re.Pattern[str]
    speaking: re.Pattern[str]
    stamped: re.Pattern[str]
    letterhead: re.Pattern[str]
    reversed: re.Pattern[str]
    capitalised: re.Pattern[str]


@cache
def person_patterns() -> PersonPatterns:
    """All patterns; every quantifier is bounded, so that hostile text costs a bounded number of steps a character."""
    titles = rf"(?:{alternation('titles')}\.?{_GAP})"
    name = f"{titles}{{0,3}}({_LED})"
    told = rf"(?<![\w@'’/-])({_LED})"
    closing = (
        rf"{_LINE}(?i:{alternation('closings')})[ \t]{{0,3}}[,.!]?[ \t]{{0,3}}\n(?:[ \t]{{0,8}}\n){{0,2}}"
    )
    label = (
        rf"(?:^|(?<=[|,;(\t])|(?<=- ))[ \t>#*_]{{0,6}}(?i:(?:the )?{alternation('name_labels')}(?: name)?)\b"
        r"(?:\([a-z]{1,3}\))?[*_]{0,3}[ \t]{0,3}:[*_]{0,3}[ \t]{0,4}\n?[ \t]{0,8}"
    )
    stamp = r"[\[(]?[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?: ?[AaPp][Mm])?[\])]?"
    clock = r"(?:[\[(]?[0-9]{1,2}[:.][0-9]{2}(?:[:.][0-9]{2})?(?: ?[AaPp][Mm])?[\])]?[ \t–—-]{1,3})?"
    sources = {
        "titled": rf"(?<![\w.]){titles}{{1,3}}({_LED})",
        "addressed": rf"{told}[\"”]? ?[<(\[](?:mailto:)?[^\s<>()\[\]@]{{1,64}}@",
        "degreed": rf"{told}, ?(?:M\.?D|Ph\.?D|D\.?D\.?S|R\.?N|Esq|J\.?D|MBA|MSc|BSc|CPA|LL\.?M)\b(?! [0-9]{{5}})",
        "writing": rf"{told} (?i:wrote|writes|schrieb|schreibt|a écrit|écrit|escribió|escribe|ha scritto|scrive"
        r"|schreef|schrijft)\b",
        "described": rf"{told}(?:,? ?\(|,? )(?i:{alternation('descriptions')})\b"
        rf"|{told} \((?=[+(0-9][0-9 ()/.-]{{6,24}}\))",
        "columns": rf"(?:^|(?<=[ \t]{{4}}))({_LED})(?=[ \t]{{4,60}}[^\W\d_a-zß-öø-ÿ]|[ \t]{{0,4}}$)(?<=[^\W\d_])",
        "addressee": rf"{_LINE}({_LED})[ \t]{{0,4}}\n[ \t>]{{0,8}}(?=[0-9]{{1,5}}[A-Za-z]?,? [^\W\d_]"
        r"|[^\n,;:.!?]{3,60} [0-9]{1,5}[A-Za-z]?(?:[-/][0-9]{1,4})?[ \t]{0,4}$)",
        "labelled": label + name,
        "introduced": rf"\b(?i:{alternation('introductions')}|{alternation('relations')})[ \t]{{1,3}}{name}",
        "greeted": rf"{_LINE}(?i:{alternation('greetings')}),?[ \t]{{1,3}}{name}(?=[ \t]{{0,3}}(?:[,!.:;–—-]|$))",
        "signed": rf"{closing}[ \t>*–—-]{{0,6}}{name}",
        "maybe_introduced": rf"\b(?i:{alternation('weak_introductions')})[ \t]{{1,3}}({_NAME})",
        "speaking": rf"{_LINE}{clock}<?({_NAME})>?[*]{{0,2}}(?=[ \t]{{0,2}}(?:\([^()\n]{{0,20}}\))?:[ \t*])",
        "stamped": rf"{_LINE}({_NAME})[ \t,]{{1,3}}{stamp}[ \t]{{0,4}}$",
        "letterhead": rf"{_LINE}({_NAME})[ \t*]{{0,4}}\n(?=[^\n]{{0,120}}(?:@|[0-9]))",
        "reversed": rf"(?:^|(?<=[:;|]))[ \t]{{0,4}}({_WORD}), ({_WORD}(?: {_PART})?)(?=[ \t]{{0,4}}(?:$|[;|(]))",
        "capitalised": rf"(?<![\w@'’/-])({_NAME})(?![\w@]|['’-](?!s\b)\w)",
    }
    return PersonPatterns(**{field: re.compile(form, re.MULTILINE) for field, form in sources.items()})
