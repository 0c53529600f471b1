"""Originals put back into what a model wrote: whole, inside JSON, or piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

from fhe_llm.errors import RequestError
from fhe_llm.privacy.identifiers.placeholders import Placeholder, PlaceholderForm

OriginalOf = Callable[[Placeholder], str | None]
"""The original behind a placeholder; None for one that was never given out."""

_JSON_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def restored(text: str, form: PlaceholderForm, original_of: OriginalOf) -> str:
    """``text`` with every placeholder that was given out replaced by its original, in one pass: originals that look
    like placeholders stay as they are."""
    return form.pattern.sub(lambda match: _original(match, form, original_of), text)


def strings(text: str) -> list[str]:
    """What each string of JSON ``text`` says, keys included; without those that do not decode or do not end."""
    return [said for said in map(_said, _JSON_STRING.findall(text)) if said is not None]


def changed_strings(text: str, change: Callable[[str], str]) -> str:
    """JSON ``text`` with ``change`` applied to each of its :func:`strings`, escaped anew; the rest byte for byte."""

    def one(match: re.Match[str]) -> str:
        said = _said(match[0])
        new = None if said is None else change(said)
        return match[0] if new is None or new == said else json.dumps(new, ensure_ascii=False)

    return _JSON_STRING.sub(one, text)


def _said(string: str) -> str | None:
    try:
        return str(json.loads(string, strict=False))
    except ValueError:
        return None


class StreamRestorer:
    """Restores an answer that comes in pieces: all that :meth:`feed` and :meth:`finish` return, joined, is what the
    joined pieces are restored to at once. Holds back at most one possible placeholder. For one answer only."""

    def __init__(self, form: PlaceholderForm, original_of: OriginalOf) -> None:
        self._form = form
        self._original_of = original_of
        self._before = ""
        self._held = ""
        self._finished = False

    def __repr__(self) -> str:
        return f"StreamRestorer(held={len(self._held)} characters, finished={self._finished})"

    def feed(self, text: str) -> str:
        """What of the answer so far is certain and was not returned yet; may be empty.

        Raises :class:`RequestError` after :meth:`finish`.
        """
        self._check()
        buffer = self._before + self._held + text
        start = len(self._before)
        return self._release(buffer, start, self._form.settled_until(buffer, start))

    def finish(self) -> str:
        """The rest. Raises :class:`RequestError` when called twice."""
        self._check()
        self._finished = True
        buffer = self._before + self._held
        return self._release(buffer, len(self._before), len(buffer))

    def _release(self, buffer: str, start: int, end: int) -> str:
        pieces, at = [], start
        for match in self._form.pattern.finditer(buffer, start):
            if match.start() >= end:
                break
            pieces += [buffer[at : match.start()], _original(match, self._form, self._original_of)]
            at = match.end()
        pieces.append(buffer[at:end])
        # one character back decides whether a bare placeholder stands on its own
        self._before, self._held = buffer[max(0, end - 1) : end], buffer[end:]
        return "".join(pieces)

    def _check(self) -> None:
        if self._finished:
            raise RequestError(
                "cannot restore more text: this answer was finished. Start another StreamRestorer."
            )


def _original(match: re.Match[str], form: PlaceholderForm, original_of: OriginalOf) -> str:
    original = original_of(form.read(match))
    return match[0] if original is None else original
