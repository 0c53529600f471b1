"""Names of people: behind titles, labels, introductions and greetings, in signatures, and by lists of first names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Final

from fhe_llm.privacy.identifiers.contract import HEURISTIC, Identifier
from fhe_llm.privacy.identifiers.gazetteer import is_ambiguous, is_first_name, is_no_name, is_surname
from fhe_llm.privacy.identifiers.person_patterns import TOKEN, person_patterns

_TOLD: Final = HEURISTIC + 0.1
_MOST_WORDS: Final = 5

Words = list[re.Match[str]]


class PersonNameRecogniser:
    """Names of people in Latin, Greek or Cyrillic script, without their titles.

    Behind a title, a label, an introduction or a greeting and in a signature any capitalised words count; elsewhere a
    known first name and a word behind it. Lone first names in running text do not.
    """

    entity_types: ClassVar = frozenset({"PERSON"})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`."""
        forms = person_patterns()
        found: set[tuple[int, int, float]] = set()
        for form in (forms.titled, forms.labelled, forms.introduced, forms.greeted, forms.signed):
            found |= {(*span, _TOLD) for match in form.finditer(text) for span in _told(_words(match))}
        for form in (forms.maybe_introduced, forms.speaking):
            found |= {(*span, HEURISTIC) for match in form.finditer(text) for span in _known(_words(match))}
        found |= {(*span, HEURISTIC) for m in forms.letterhead.finditer(text) for span in _headed(_words(m))}
        found |= {(*span, HEURISTIC) for m in forms.capitalised.finditer(text) for span in _listed(_words(m))}
        found |= {
            (match.start(1), match.end(2), HEURISTIC)
            for match in forms.reversed.finditer(text)
            if is_first_name(match[2].split()[0]) and not is_no_name(match[1])
        }
        return [Identifier(start, end, "PERSON", score) for start, end, score in found]


def _words(match: re.Match[str]) -> Words:
    return list(TOKEN.finditer(match.string, match.start(1), match.end(1)))


def _trimmed(words: Words) -> Words:
    """The words before the first that belongs to no name, without particles at the end."""
    for at, word in enumerate(words):
        if is_no_name(word[0]) and not word[0].islower():
            words = words[:at]
            break
    while words and words[-1][0].islower():
        words = words[:-1]
    return words[:_MOST_WORDS]


def _told(words: Words) -> Iterator[tuple[int, int]]:
    """All of them: what stands before says that they are a name."""
    words = _trimmed(words)
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


def _listed(words: Words) -> Iterator[tuple[int, int]]:
    """A first name with what follows it, anywhere in a row of capitalised words."""
    at = 0
    while at < len(words) - 1:
        first = words[at][0]
        rest = _trimmed(words[at + 1 : at + _MOST_WORDS])
        last = rest[-1][0].rstrip(".") if rest else ""
        usable = is_first_name(first) and not is_no_name(first)
        if usable and len(last) > 1 and (is_surname(last) or not is_ambiguous(first)):
            yield words[at].start(), rest[-1].end()
            at += len(rest)
        at += 1
