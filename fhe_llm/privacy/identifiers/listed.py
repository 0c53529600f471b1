"""Words that the user lists: names of projects, customers or employees that no pattern tells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.identifiers.contract import CHECKSUM, Identifier, check_entity_type

_WORD: Final = re.compile(r"[^\W_]+")


class ListedRecogniser:
    """Finds ``entries`` wherever they stand as whole words, in any case, whatever stands between their words.

    Its finds win over all others. Raises :class:`PrivacyParameterError` for a type that is not 2 to 24 capital letters,
    no entries, or one without a letter or digit.
    """

    def __init__(self, entity_type: str, entries: Iterable[str]) -> None:
        check_entity_type(entity_type)
        if isinstance(entries, str):
            entries = (entries,)
        self._entity_type = entity_type
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        for words in {tuple(_words(entry)) for entry in entries}:
            if not words:
                raise PrivacyParameterError(
                    "cannot list an entry without a letter or digit: it would be found nowhere. Leave it out."
                )
            self._by_first.setdefault(words[0], []).append(words)
        if not self._by_first:
            raise PrivacyParameterError(
                "cannot recognise listed words: the list is empty. Name at least one."
            )
        for sharing in self._by_first.values():
            sharing.sort(key=len, reverse=True)

    def __repr__(self) -> str:
        return f"ListedRecogniser({self._entity_type!r}, {sum(map(len, self._by_first.values()))} entries)"

    @property
    def entity_types(self) -> frozenset[str]:
        """See :attr:`Recogniser.entity_types`."""
        return frozenset({self._entity_type})

    def find(self, text: str) -> list[Identifier]:
        """See :meth:`Recogniser.find`; the longest entry that begins at a word counts."""
        matches = list(_WORD.finditer(text))
        said = [match[0].casefold() for match in matches]
        found = []
        for at, first in enumerate(said):
            for words in self._by_first.get(first, ()):
                if tuple(said[at : at + len(words)]) == words:
                    end = matches[at + len(words) - 1].end()
                    found.append(Identifier(matches[at].start(), end, self._entity_type, CHECKSUM))
                    break
        return found


def _words(entry: str) -> list[str]:
    return [match[0].casefold() for match in _WORD.finditer(entry)]
