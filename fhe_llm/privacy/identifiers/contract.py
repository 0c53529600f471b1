"""What a recogniser is, what it finds, and how overlapping finds are settled."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from fhe_llm.errors import PrivacyParameterError

CHECKSUM: Final = 1.0
"""Score of a find whose check digits are right."""
PATTERN: Final = 0.8
"""Score of a find whose form alone tells what it is."""
HEURISTIC: Final = 0.5
"""Score of a find that rests on words around it or on a list of names."""

_ENTITY_TYPE: Final = re.compile(r"[A-Z]{2,24}")


@dataclass(frozen=True, slots=True)
class Identifier:
    """``text[start:end]`` names somebody. ``score`` lies in (0, 1]; the text itself is not kept here."""

    start: int
    end: int
    entity_type: str
    score: float


class Recogniser(Protocol):
    """Finds identifiers of some types. Thread-safe; its time is linear in the text's length."""

    @property
    def entity_types(self) -> frozenset[str]:
        """Every type :meth:`find` may return: 2 to 24 capital letters each, they become part of placeholders."""
        ...

    def find(self, text: str) -> list[Identifier]:
        """Identifiers in any order; they may overlap."""
        ...


def check_entity_type(entity_type: str) -> None:
    """Raises :class:`PrivacyParameterError` unless it is 2 to 24 capital letters."""
    if not isinstance(entity_type, str) or not _ENTITY_TYPE.fullmatch(entity_type):
        raise PrivacyParameterError(
            f"cannot use {entity_type!r} as an entity type: it is not 2 to 24 capital letters. Rename it."
        )


def check_found(found: Iterable[Identifier], length: int, recogniser: Recogniser) -> Iterator[Identifier]:
    """``found``, each checked against the text's length and the types its recogniser declares.

    Raises :class:`PrivacyParameterError` where a custom recogniser breaks the contract: nothing may leave then.
    """
    for one in found:
        if not 0 <= one.start < one.end <= length or not 0 < one.score <= 1:
            raise PrivacyParameterError(
                f"cannot use {type(recogniser).__name__}: it returned a span outside the text, an empty one, or a "
                "score outside (0, 1]. Correct it."
            )
        if one.entity_type not in recogniser.entity_types:
            raise PrivacyParameterError(
                f"cannot use {type(recogniser).__name__}: it returned {one.entity_type!r}, which is none of its "
                "entity_types. Declare it."
            )
        yield one


def settled(text: str, found: Iterable[Identifier]) -> list[Identifier]:
    """Disjoint identifiers in the order of the text, which together cover all that was found.

    The higher score wins (checksum, pattern, heuristic), then the longer, then the earlier. What a loser covers beyond
    the winner stays an identifier of its own, without spaces and punctuation at its ends: what was found never leaves.
    """
    starts: list[int] = []
    kept: list[Identifier] = []
    order = sorted(
        found, key=lambda one: (-one.score, one.start - one.end, one.start, one.end, one.entity_type)
    )
    for one in order:
        for start, end in list(_uncovered(starts, kept, one.start, one.end)):
            if (start, end) != (one.start, one.end):
                start, end = _trimmed(text, start, end)
            if start < end:
                at = bisect_left(starts, start)
                starts.insert(at, start)
                kept.insert(at, Identifier(start, end, one.entity_type, one.score))
    return kept


def _uncovered(starts: list[int], kept: list[Identifier], start: int, end: int) -> Iterator[tuple[int, int]]:
    at = bisect_right(starts, start) - 1
    if at >= 0:
        start = max(start, kept[at].end)
    for other in kept[at + 1 : bisect_left(starts, end)]:
        if start < other.start:
            yield start, other.start
        start = max(start, other.end)
    if start < end:
        yield start, end


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and not text[start].isalnum():
        start += 1
    while start < end and not text[end - 1].isalnum():
        end -= 1
    return start, end
