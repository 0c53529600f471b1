"""The form of placeholders, ``[PERSON_1]``, and the ways a model may write them that still count."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LITERAL: Final = "LITERAL"
"""Entity type of text that looked like a placeholder before anything was replaced."""

_DIGITS: Final = "[1-9][0-9]{0,8}"
# what makes a bare PERSON_1 a part of something else: a longer word, a variable, a path, an address, an assignment
_NOT_BEFORE: Final = r"(?<![\w$@/.-])"
_NOT_AFTER: Final = r"(?![\w@/=(-]|\.\w)"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """``number`` tells identifiers of a type apart, ``spelling`` the ways one of them was written; both from 1."""

    entity_type: str
    number: int
    spelling: int = 1

    def __str__(self) -> str:
        """``[PERSON_1]``, and ``[PERSON_1_2]`` for its second spelling."""
        spelling = f"_{self.spelling}" if self.spelling > 1 else ""
        return f"[{self.entity_type}_{self.number}{spelling}]"


class PlaceholderForm:
    r"""Finds placeholders of ``entity_types`` and tells where one may still be under way at the end of a text.

    These count: ``[PERSON_1]`` in any case, with a space or hyphen for ``_``; both or none of ``\[`` and ``\]``, and
    ``\_``, as Markdown escapes them; ``PERSON_1`` without brackets, in capitals and on its own. None but the exact form
    holds the exact form inside, so that signs which stood beside a placeholder in the text are never taken for its own.
    """

    def __init__(self, entity_types: Iterable[str]) -> None:
        kinds = sorted({*entity_types, LITERAL}, key=lambda kind: (-len(kind), kind))
        kind = "|".join(kinds)
        body = rf"((?ai:{kind}))(?:\\?_|[ -])({_DIGITS})(?:(?:\\?_|[ -])({_DIGITS}))?"
        bare = rf"({kind})\\?_({_DIGITS})(?:\\?_({_DIGITS}))?"
        self.pattern: Final = re.compile(rf"\\\[{body}\\\]|\[{body}\]|{_NOT_BEFORE}{bare}{_NOT_AFTER}")
        begun = "|".join(sorted({k[:n] for k in kinds for n in range(1, len(k))}, key=len, reverse=True))
        tail = r"(?:{kind})(?:{gap}(?:[0-9]{{1,9}}(?:{gap}(?:[0-9]{{1,9}})?)?)?)?{end}"
        inside = tail.format(kind=kind, gap=r"(?:\\?_|\\|[ -])", end=r"\\?")
        alone = tail.format(kind=kind, gap=r"(?:\\?_|\\)", end=r"\\?\.?")
        self._unfinished: Final = re.compile(
            rf"(?:\\?\[(?ai:{inside}|{begun})?|\\|{_NOT_BEFORE}(?:{alone}|{begun}))\Z"
        )
        self.longest: Final = 4 + len(kinds[0]) + 2 * 12
        """Characters of the longest form, escapes included."""

    def read(self, match: re.Match[str]) -> Placeholder:
        """The placeholder that a match of :attr:`pattern` is a form of."""
        kind, number, *spelling = (group for group in match.groups() if group)
        return Placeholder(kind.upper(), int(number), int(spelling[0]) if spelling else 1)

    def settled_until(self, text: str, start: int) -> int:
        """Up to where more text cannot change which placeholders there are; ``start`` is where to look from."""
        match = self._unfinished.search(text, max(start, len(text) - self.longest - 2))
        return match.start() if match else len(text)
