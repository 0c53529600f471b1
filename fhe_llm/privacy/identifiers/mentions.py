"""One person by several names: what counts as the same identifier, and short mentions of somebody named before."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from fhe_llm.privacy.identifiers.contract import HEURISTIC, Identifier
from fhe_llm.privacy.identifiers.gazetteer import (
    begins_sentences,
    is_common_surname,
    is_first_name,
    is_no_name,
)

_DENSE: Final = frozenset({"CARD", "IBAN", "PHONE", "NATIONALID"})
_NAME_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SPACES: Final = re.compile(r"[\W_]+")
_MIN_LETTERS: Final = 3
_PARTICLES: Final = re.compile(
    r"(?<![^\W_])(?:(?:van|von|vom|zu|zum|zur|ter|ten|de|den|der|da|di|del|du|le|la)[ ]){1,3}$", re.I
)
_WITHIN_SENTENCE: Final = re.compile(r"[^\W_A-Z][ ]|, ")


def normalised(entity_type: str, original: str) -> str:
    """What two spellings of one identifier share.

    Cards, IBANs, telephone and identity numbers: letters and digits only, without case; a telephone number's leading
    ``00`` is ``+``. E-mail, URL and IP: without case. Everything else: without case, every row of spaces and
    punctuation as one space.
    """
    text = unicodedata.normalize("NFKC", original).casefold()
    if entity_type in _DENSE:
        dense = "".join(c for c in text if c.isalnum() or c == "+")
        return f"+{dense[2:]}" if entity_type == "PHONE" and dense.startswith("00") else dense
    if entity_type in ("EMAIL", "URL", "IP"):
        return text
    return _SPACES.sub(" ", text).strip() or text


def name_words(name: str) -> frozenset[str]:
    """The words of a person's name, without case, initials and short particles."""
    return frozenset(
        w for w in (m[0].casefold() for m in _NAME_WORD.finditer(name)) if len(w) >= _MIN_LETTERS
    )


class People:
    """The people named in one conversation, as the words of their names."""

    def __init__(self) -> None:
        self._by_number: dict[int, frozenset[str]] = {}
        self._by_word: dict[str, set[int]] = {}

    def number_for(self, name: str) -> int | None:
        """The one person whose name holds all words of ``name``, or whose words ``name`` all holds; None where there
        is no such person, or more than one."""
        words = name_words(name)
        sharing = {n for word in words for n in self._by_word.get(word, ())}
        matching = [n for n in sharing if words <= self._by_number[n] or self._by_number[n] <= words]
        return matching[0] if len(matching) == 1 else None

    def add(self, number: int, name: str) -> None:
        """Remember that this person is called so."""
        words = name_words(name)
        self._by_number[number] = self._by_number.get(number, frozenset()) | words
        for word in words:
            self._by_word.setdefault(word, set()).add(number)

    def words(self) -> frozenset[str]:
        """Every word of every name."""
        return frozenset(self._by_word)


def mentions(text: str, words: Iterable[str]) -> Iterator[Identifier]:
    """Capitalised words of ``text`` that are a known person's, neighbours joined by a space taken together.

    Words of no name (:func:`is_no_name`) are no mention, nor those that begin sentences (:func:`begins_sentences`)
    where one begins. Particles of the name before the word belong to the mention.
    """
    known = frozenset(words)
    if not known:
        return
    start = end = -1
    for match in _NAME_WORD.finditer(text):
        word = match[0].removesuffix("'s").removesuffix("’s")
        if not _mentions_somebody(text, match.start(), word, known):
            continue
        if start >= 0 and text[end : match.start()] == " ":
            end = match.start() + len(word)
            continue
        if start >= 0:
            yield Identifier(start, end, "PERSON", HEURISTIC)
        particles = _PARTICLES.search(text, max(0, match.start() - 16), match.start())
        led = (
            particles is not None
            and not is_first_name(word)
            and any(one[0].isupper() or one in known for one in particles[0].split())
        )
        start = particles.start() if particles and led else match.start()
        end = match.start() + len(word)
    if start >= 0:
        yield Identifier(start, end, "PERSON", HEURISTIC)


def _mentions_somebody(text: str, start: int, word: str, known: frozenset[str]) -> bool:
    if not word[0].isupper() or word.casefold() not in known:
        return False
    if is_no_name(word) and not is_common_surname(word):
        return False
    return not begins_sentences(word) or bool(_WITHIN_SENTENCE.match(text[max(0, start - 2) : start]))
