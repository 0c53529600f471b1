"""What recognisers find of what was planted, by type, and whether answers about it come back as they should."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from identifier_documents import Document

from fhe_llm.privacy import Pseudonymiser
from fhe_llm.privacy.identifiers import Pseudonyms
from fhe_llm.privacy.identifiers.contract import Identifier


@dataclass
class Score:
    """Counts of one type.

    Exact: same start, same end, same type. Overlapping: a character in common, same type. ``leaked``: planted ones of
    which a letter or digit would have left, whatever type the rest was taken for; ``left_whole``: all of it.
    """

    planted: int = 0
    found: int = 0
    exact: int = 0
    planted_overlapped: int = 0
    found_overlapping: int = 0
    leaked: int = 0
    left_whole: int = 0

    def __iadd__(self, other: Score) -> Score:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def plain(self) -> dict[str, Any]:
        """Counts and the shares they make."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "exact_match": _shares(self.exact, self.planted, self.exact, self.found),
            "overlap": _shares(self.planted_overlapped, self.planted, self.found_overlapping, self.found),
            "leak_rate": _share(self.leaked, self.planted),
        }


@dataclass
class Judged:
    """Scores by type, answers that came back exactly, and what went wrong: (document, type, text) of each."""

    kinds: dict[str, Score] = field(default_factory=dict)
    documents: int = 0
    restored: int = 0
    leaks: list[tuple[int, str, str]] = field(default_factory=list)
    wrong: list[tuple[int, str, str]] = field(default_factory=list)

    def total(self) -> Score:
        """All types together."""
        whole = Score()
        for score in self.kinds.values():
            whole += score
        return whole

    def plain(self) -> dict[str, Any]:
        """As it stands in the record."""
        kinds = {kind: score.plain() for kind, score in sorted(self.kinds.items())}
        return {
            "all": self.total().plain(),
            "kinds": kinds,
            "restored_exactly": self.restored,
            "documents": self.documents,
        }


def judged(documents: Sequence[Document], pseudonymiser: Pseudonymiser, seed: int = 0) -> Judged:
    """Every document as a conversation of its own."""
    result = Judged(documents=len(documents))
    draw = random.Random(seed)
    for number, document in enumerate(documents):
        pseudonyms = pseudonymiser.start()
        (found,) = pseudonyms.find([document.text])
        _count(result, number, document, found)
        result.restored += answered_exactly(document.text, pseudonyms, draw)
    return result


def _count(result: Judged, number: int, document: Document, found: list[Identifier]) -> None:
    text = document.text
    covered = {at for one in found for at in range(one.start, one.end)}
    spans = Counter((one.start, one.end, one.entity_type) for one in found)
    for one in document.planted:
        score = result.kinds.setdefault(one.entity_type, Score())
        letters = [at for at in range(one.start, one.end) if text[at].isalnum()]
        left = sum(at not in covered for at in letters)
        score.planted += 1
        score.exact += (one.start, one.end, one.entity_type) in spans
        score.planted_overlapped += _overlapped(one, found)
        score.leaked += left > 0
        score.left_whole += left == len(letters)
        if left:
            result.leaks.append((number, one.entity_type, text[one.start : one.end]))
    for other in found:
        score = result.kinds.setdefault(other.entity_type, Score())
        right = _overlapped(other, document.planted)
        score.found += 1
        score.found_overlapping += right
        if not right:
            result.wrong.append((number, other.entity_type, text[other.start : other.end]))


def _overlapped(one: Any, others: Iterable[Any]) -> bool:
    return any(
        one.start < other.end and other.start < one.end and one.entity_type == other.entity_type
        for other in others
    )


def answered_exactly(text: str, pseudonyms: Pseudonyms, draw: random.Random) -> bool:
    """Whether the echo of a text, a list of all that was replaced in the ways models write placeholders, and a tool
    call about it come back with the right originals: whole, in pieces cut at random, and inside JSON."""
    found = pseudonyms.find([text])[0]
    sent = pseudonyms.replace([text]).value[0]
    placeholders = re.findall(r"\[[A-Z]+_[0-9]+(?:_[0-9]+)?\]", sent)
    originals = [text[one.start : one.end] for one in found]
    if len(placeholders) != len(originals):
        return False
    answer = "\n".join(f"- {_as_a_model_writes(one, draw)}: noted" for one in placeholders)
    wanted = "\n".join(f"- {one}: noted" for one in originals)
    call = pseudonyms.restore_json(json.dumps({"about": sent, "who": placeholders}))
    return (
        pseudonyms.restore(sent) == text
        and pseudonyms.restore(answer) == wanted
        and _streamed(answer, pseudonyms, draw) == wanted
        and json.loads(call) == {"about": text, "who": originals}
    )


def _as_a_model_writes(placeholder: str, draw: random.Random) -> str:
    bare = placeholder.strip("[]")
    escaped = placeholder.replace("[", r"\[").replace("_", r"\_").replace("]", r"\]")
    return draw.choice((placeholder, placeholder.lower(), placeholder.title(), bare, escaped))


def _streamed(answer: str, pseudonyms: Pseudonyms, draw: random.Random) -> str:
    stream, shown, at = pseudonyms.stream(), "", 0
    while at < len(answer):
        end = at + draw.randint(1, 7)
        shown += stream.feed(answer[at:end])
        at = end
    return shown + stream.finish()


def _shares(hits: int, planted: int, right: int, found: int) -> dict[str, float]:
    recall, precision = _share(hits, planted), _share(right, found)
    both = recall + precision
    return {
        "recall": recall,
        "precision": precision,
        "f1": round(2 * recall * precision / both, 4) if both else 0.0,
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
