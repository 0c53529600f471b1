"""Names of people: behind titles, labels, introductions and greetings, in signatures, and by lists of first names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, Final

from fhe_llm.privacy.identifiers.contract import HEURISTIC, Identifier
from fhe_llm.privacy.identifiers.gazetteer import (
    announces,
    is_ambiguous,
    is_common_surname,
    is_first_name,
    is_no_name,
    is_surname,
)
from fhe_llm.privacy.identifiers.mail_names import names_in_mail
from fhe_llm.privacy.identifiers.person_patterns import TOKEN, person_patterns
from fhe_llm.privacy.identifiers.word_lists import alternation

_TOLD: Final = HEURISTIC + 0.1
_MOST_WORDS: Final = 5
_CAPITAL_PARTICLES: Final = frozenset(
    {"Le", "La", "De", "Di", "Du", "Da", "Del", "Des", "Van", "Von", "El", "Las", "Los"}
)
_INITIAL: Final = re.compile(r"([^\W\d_]+) [A-Z]\. $")
_WITHIN: Final = re.compile(r"[^\W_][,;]? $")
_TITLE: Final = re.compile(rf"{alternation('titles')}\.?")
_COMPANY: Final = re.compile(rf"[ ,]{{1,2}}{alternation('company_marks')}(?![^\W_])")

Words = list[re.Match[str]]


class PersonNameRecogniser:
    """Names of people in Latin, Greek or Cyrillic script, without their titles.

    Behind a title, a label, an introduction or a greeting and in a signature any capitalised words count; elsewhere a
    known first name, with the words behind it or alone; alone it must be no word of another meaning.

    ``eager``: elsewhere two or more capitalised words in a row count whatever they are, unless one of them heads fields
    or belongs to a company. It finds names that are on no list, and replaces many products, places and headings.
    """

    def __init__(self, *, eager: bool = False) -> None:
        self._eager = eager

    entity_types: ClassVar = frozenset({"PERSON"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        forms = person_patterns()
        titled = [match for match in forms.titled.finditer(text) if not _is_initial(match)]
        found = {(*span, _TOLD) for match in titled for span in _told(_words(match))}
        told = (forms.addressed, forms.degreed, forms.writing, forms.labelled, forms.introduced)
        for form in (*told, forms.greeted, forms.signed):
            found |= {(*span, _TOLD) for match in form.finditer(text) for span in _told(_words(match))}
        for form in (forms.maybe_introduced, forms.speaking):
            found |= {(*span, HEURISTIC) for match in form.finditer(text) for span in _known(_words(match))}
        found |= {(*span, HEURISTIC) for span in (*_speakers(text), *_columns(text), *names_in_mail(text))}
        for form in (forms.addressee, forms.described):
            found |= {(*span, HEURISTIC) for m in form.finditer(text) for span in _whole(_words(m))}
        found |= {(*span, HEURISTIC) for m in forms.letterhead.finditer(text) for span in _headed(_words(m))}
        for match in forms.capitalised.finditer(text):
            found |= {(*span, HEURISTIC) for span in _unannounced(match)}
            if self._eager:
                found |= {(*span, HEURISTIC) for span in _in_a_row(_words(match))}
        found |= {
            (match.start(1), match.end(2), HEURISTIC)
            for match in forms.reversed.finditer(text)
            if is_first_name(match[2].split()[0]) and not is_no_name(match[1])
        }
        return [Identifier(start, end, "PERSON", score) for start, end, score in found]


def _is_initial(titled: re.Match[str]) -> bool:
    """Whether the title is the second letter of a name: Anna M. Jones."""
    before = _INITIAL.search(titled.string, max(0, titled.start(1) - 40), titled.start(1))
    return before is not None and is_first_name(before[1])


def _words(match: re.Match[str]) -> Words:
    """The words of the match's only group; none where they belong to a company."""
    group = match.lastindex or 1
    words = list(TOKEN.finditer(match.string, match.start(group), match.end(group)))
    company = _COMPANY.match(match.string, match.end(group)) or any(
        _COMPANY.match(f" {word[0]}") for word in words
    )
    return [] if company else words


def _trimmed(words: Words, *, told: bool = False) -> Words:
    """The words before the first that belongs to no name, without particles at the end."""
    for at in range(len(words)):
        if not _belongs(words, at, told=told):
            words = words[:at]
            break
    while words and words[-1][0].islower():
        words = words[:-1]
    return words[:_MOST_WORDS]


def _belongs(words: Words, at: int, *, told: bool) -> bool:
    """Whether a word may be part of the name that the words before it begin: ``Le`` in Anne Le Goff, ``Hall`` in Rita
    Hall and, where something tells that this is a name, in Glen Hall."""
    word = words[at][0]
    if word.islower() or not is_no_name(word):
        return True
    if not at:
        return told and is_common_surname(word)
    before = next((one[0] for one in reversed(words[:at]) if not one[0].endswith(".")), word)
    follows = at + 1 < len(words) and not is_no_name(words[at + 1][0])
    if word in _CAPITAL_PARTICLES and follows:
        return True
    return is_common_surname(word) and is_first_name(before) and (told or not is_ambiguous(before))


def _told(words: Words) -> Iterator[tuple[int, int]]:
    """All of them: what stands before says that they are a name."""
    words = _trimmed(words, told=True)
    first = next((at for at, word in enumerate(words) if not word[0].islower()), 0)
    if words and is_first_name(words[first][0]):
        words = words[first:]
    if any(not word[0].endswith(".") and len(word[0]) > 1 for word in words):
        yield words[0].start(), words[-1].end()


def _known(words: Words) -> Iterator[tuple[int, int]]:
    """Those that begin with a first name, or with a surname and end with one."""
    words = _trimmed(words)
    if not words:
        return
    first, last = words[0][0], words[-1][0]
    begins_so = is_first_name(first) and not (is_ambiguous(first) and len(words) == 1)
    if begins_so or (len(words) > 1 and is_surname(first) and is_surname(last)):
        yield words[0].start(), words[-1].end()


def _headed(words: Words) -> Iterator[tuple[int, int]]:
    """A line of nothing but names, above one with a number or an e-mail address."""
    known = len(words) > 1 and (is_first_name(words[0][0]) or is_surname(words[-1][0]))
    if known and _trimmed(words) == words:
        yield words[0].start(), words[-1].end()


def _whole(words: Words) -> Iterator[tuple[int, int]]:
    """Two words or more, all of which may belong to a name: above a street, or before words such as ``born``."""
    if len(words) > 1 and _trimmed(words) == words:
        yield words[0].start(), words[-1].end()


def _columns(text: str) -> Iterator[tuple[int, int]]:
    """Two names or more side by side on a line, as parties sign."""
    row: list[tuple[int, int]] = []
    for match in person_patterns().columns.finditer(text):
        words = _words(match)
        if len(words) < 2 or _trimmed(words) != words:
            continue
        if row and text[row[-1][1] : words[0].start()].strip(" \t"):
            row = []
        row.append((words[0].start(), words[-1].end()))
        if len(row) > 1:
            yield from row[-2:]


def _speakers(text: str) -> Iterator[tuple[int, int]]:
    """Who speaks again after somebody else in a conversation, ``Name: …`` at the beginning of lines."""
    lines = [words for match in person_patterns().speaking.finditer(text) if (words := _words(match))]
    turns = [
        words for before, words in zip([[], *lines], lines, strict=False) if _said(before) != _said(words)
    ]
    often = Counter(map(_said, turns))
    for match in person_patterns().stamped.finditer(text):
        if (words := _words(match)) and _trimmed(words) == words:
            yield words[0].start(), words[-1].end()
    for words in lines:
        names = _trimmed(words) == words or (len(words) == 1 and is_first_name(words[0][0]))
        if often[_said(words)] > 1 and names:
            yield words[0].start(), words[-1].end()


def _said(words: Words) -> str:
    return " ".join(word[0] for word in words)


def _unannounced(match: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Names in a row of capitalised words that nothing announces."""
    words = _words(match)
    begins = not _WITHIN.search(match.string, max(0, match.start() - 4), match.start())
    yield from _listed(words, begins=begins)
    while words and is_no_name(words[0][0]):
        words = words[1:]
        begins = False
    if len(words) == 1 and is_first_name(words[0][0]) and not is_ambiguous(words[0][0]):
        title = _TITLE.fullmatch(match.string, words[0].start(), words[0].end() + 1)
        if not (title and title[0].endswith(".")):
            yield words[0].start(), words[0].end()
    if (
        len(words) == 2
        and not begins
        and not announces(words[0][0])
        and is_surname(words[1][0])
        and _trimmed(words) == words
    ):
        yield words[0].start(), words[1].end()


def _in_a_row(words: Words) -> Iterator[tuple[int, int]]:
    """Two words or more that belong to no field or company, known or not."""
    while words and (is_no_name(words[0][0]) or announces(words[0][0])):
        words = words[1:]
    words = _trimmed(words, told=True)
    if len(words) > 1:
        yield words[0].start(), words[-1].end()


def _listed(words: Words, *, begins: bool) -> Iterator[tuple[int, int]]:
    """A first name with what follows it, anywhere in a row of capitalised words, and with the word before unless that
    ``begins`` a sentence."""
    at = 0
    while at < len(words) - 1:
        first = words[at][0]
        rest = _trimmed(words[at : at + _MOST_WORDS])[1:]
        last = rest[-1][0].rstrip(".") if rest else ""
        usable = is_first_name(first) and not is_no_name(first) and not announces(first)
        if usable and len(last) > 1 and (is_surname(last) or not is_ambiguous(first)):
            before = at - 1 if at > begins and _may_lead(words[at - 1][0]) else at
            yield words[before].start(), rest[-1].end()
            at += len(rest)
        at += 1


def _may_lead(word: str) -> bool:
    return not (is_no_name(word) or word.islower() or announces(word))
