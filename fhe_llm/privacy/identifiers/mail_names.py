"""Names that an e-mail address in the same text spells: Xylan Quorbin beside ``x.quorbin@example.com``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fhe_llm.privacy.identifiers.gazetteer import folded, is_no_name

_LOCAL: Final = re.compile(r"([\w.+-]{3,64})@[\w-]")
_PART: Final = re.compile(r"[^\W\d_]+")
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-](?!s\b)[^\W\d_]+)*")
_SHORTEST: Final = 4


def names_in_mail(text: str) -> Iterator[tuple[int, int]]:
    """Capitalised words that are a part of an address before the ``@``, or all of one but its first letter, with the
    word before that begins with this letter."""
    parts = {part for match in _LOCAL.finditer(text) for part in _parts(match[1])}
    if not parts:
        return
    after_initial = {part[1:]: part[0] for part in parts}
    before: re.Match[str] | None = None
    for word in _WORD.finditer(text):
        if not _may_name(text, word):
            before = None
            continue
        said = folded(word[0]).replace("-", "")
        joined = before is not None and text[before.end() : word.start()] == " "
        if said in parts:
            yield word.start(), word.end()
        elif said in after_initial and joined and before and folded(before[0])[:1] == after_initial[said]:
            yield before.start(), word.end()
        before = word


def _parts(local: str) -> Iterator[str]:
    for part in _PART.findall(local):
        if len(part) >= _SHORTEST and not is_no_name(part):
            yield folded(part)


def _may_name(text: str, word: re.Match[str]) -> bool:
    inside = text[word.end() : word.end() + 1] in ("@", "_") or text[word.start() - 1 : word.start()] in (
        "@",
        ".",
        "_",
    )
    return word[0][0].isupper() and not inside and not is_no_name(word[0])
