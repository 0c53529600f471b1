"""Text to tokens and back. Of a text that is perturbed token by token, the number of its tokens stays as it was, and
nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

_TOKEN: Final = re.compile(r"[^\W_]+|[^\w\s]|_")
_DROPPED: Final = frozenset({"Mn", "Cc", "Cf", "Cs"})
_NO_SPACE_BEFORE: Final = frozenset(".,;:!?)]}%'’…-/")
_NO_SPACE_AFTER: Final = frozenset("([{$#@'’-/")


def tokens_of(text: str) -> list[str]:
    """Words, numbers and single marks of ``text`` in order, lower-cased.

    Lost: white space, case, accents, and characters that show nothing (controls, zero-width ones, lone surrogates);
    compatibility forms become plain ones (NFKD). ``tokens_of(token) == [token]`` for every token it returns.
    """
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).lower())
    kept = (c for c in plain if c.isspace() or unicodedata.category(c) not in _DROPPED)
    return _TOKEN.findall("".join(kept))


def joined(tokens: Sequence[str]) -> str:
    """``tokens`` as one text, with spaces that follow from these tokens alone."""
    parts: list[str] = []
    for i, token in enumerate(tokens):
        if i and token not in _NO_SPACE_BEFORE and tokens[i - 1] not in _NO_SPACE_AFTER:
            parts.append(" ")
        parts.append(token)
    return "".join(parts)
