"""Identifiers replaced by placeholders for one conversation, and put back in its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.events import IdentifiersReplaced
from fhe_llm.privacy.identifiers.contract import (
    Identifier,
    Recogniser,
    check_entity_type,
    check_found,
    settled,
)
from fhe_llm.privacy.identifiers.defaults import default_recognisers
from fhe_llm.privacy.identifiers.mentions import People, mentions, name_words, normalised
from fhe_llm.privacy.identifiers.placeholders import LITERAL, Placeholder, PlaceholderForm
from fhe_llm.privacy.identifiers.restoring import StreamRestorer, changed_strings, restored, strings
from fhe_llm.privacy.mechanism import Protected

PERSON: Final = "PERSON"


class Pseudonymiser:
    """Which identifiers are replaced. Thread-safe, without state of a conversation.

    ``recognisers`` are :func:`default_recognisers` unless given; ``entity_types`` narrows them to some types. Raises
    :class:`PrivacyParameterError` for no recognisers, or for types that none of them finds.
    """

    def __init__(
        self, recognisers: Sequence[Recogniser] | None = None, entity_types: Iterable[str] | None = None
    ) -> None:
        self._recognisers = tuple(default_recognisers() if recognisers is None else recognisers)
        found = frozenset[str]().union(*(one.entity_types for one in self._recognisers))
        if isinstance(entity_types, str):
            entity_types = (entity_types,)
        self._types = found if entity_types is None else frozenset(entity_types)
        for kind in (*found, *self._types):
            check_entity_type(kind)
        if not self._types or LITERAL in found or self._types - found:
            raise PrivacyParameterError(
                f"cannot replace {sorted(self._types - found) or 'identifiers'}: no recogniser finds them, or one "
                f"calls its finds {LITERAL}. The recognisers given find {sorted(found)}."
            )
        self._form = PlaceholderForm(found)

    def __repr__(self) -> str:
        return f"Pseudonymiser(entity_types={sorted(self._types)})"

    def find(self, text: str) -> list[Identifier]:
        """Disjoint identifiers in the order of ``text``, as a new conversation would replace them."""
        return self.start().find((text,))[0]

    def start(self) -> Pseudonyms:
        """The pseudonyms of a new conversation."""
        return Pseudonyms(self._recognised, self._form)

    def _recognised(self, text: str) -> list[Identifier]:
        _check_text(text)
        return [
            one
            for recogniser in self._recognisers
            for one in check_found(recogniser.find(text), len(text), recogniser)
            if one.entity_type in self._types
        ]


class Pseudonyms:
    """The placeholders of one conversation: the same identifier gets the same one in every text. A
    :class:`fhe_llm.privacy.mechanism.TextMechanism`, thread-safe.

    What they stand for is kept in this object's memory and nowhere else. Spellings of one identifier share its number
    and differ in the last part, so that each is restored exactly: ``[PHONE_1]``, ``[PHONE_1_2]``. So do short mentions
    of a person: ``Jane`` after ``Jane Doe``, unless two people are called so. Text that looked like a placeholder all
    along is replaced too (``[LITERAL_1]``); hence what is replaced and restored at once is what it was, always.
    """

    name = "identifiers"

    def __init__(self, recognised: Callable[[str], list[Identifier]], form: PlaceholderForm) -> None:
        self._recognised = recognised
        self._form = form
        self._lock = threading.RLock()
        self._given: dict[tuple[str, str], Placeholder] = {}
        self._originals: dict[Placeholder, str] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._last: dict[str, int] = {}
        self._spellings: dict[tuple[str, int], int] = {}
        self._people = People()

    def __repr__(self) -> str:
        return f"Pseudonyms({len(self._originals)} placeholders)"

    def find(self, texts: Sequence[str]) -> list[list[Identifier]]:
        """Disjoint identifiers of each text, mentions of people named in this conversation so far among them.

        Raises :class:`PrivacyParameterError` where a text is no string or a recogniser breaks its contract.
        """
        found = [self._recognised(text) for text in _checked(texts)]
        named = {
            text[one.start : one.end]
            for text, ones in zip(texts, found, strict=True)
            for one in ones
            if one.entity_type == PERSON
        }
        with self._lock:
            words = self._people.words().union(*(name_words(name) for name in named))
        return [
            settled(text, [*ones, *mentions(text, words)]) for text, ones in zip(texts, found, strict=True)
        ]

    def quote(self, texts: Sequence[str]) -> IdentifiersReplaced:
        """The event that :meth:`replace` will have for these texts; nothing is remembered."""
        return _event(self.find(texts))

    def replace(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        """The texts with placeholders for identifiers, and the event: how many and of which types. It earns no epsilon.

        Raises :class:`PrivacyParameterError` before anything is remembered.
        """
        with self._lock:
            found = self.find(texts)
            self._register(texts, found)
            replaced = tuple(self._replaced(text, ones) for text, ones in zip(texts, found, strict=True))
        return Protected(replaced, _event(found))

    def protect(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        """:meth:`replace`, under the name every text mechanism has."""
        return self.replace(texts)

    def replace_json(self, text: str) -> Protected[str]:
        """:meth:`replace` inside the strings of JSON text, such as the arguments of a tool call sent back to the model.

        Numbers are left: a replaced one would be a string. Raises :class:`PrivacyParameterError`.
        """
        _check_text(text)
        protected = self.replace(strings(text))
        changed = iter(protected.value)
        return Protected(changed_strings(text, lambda _: next(changed)), protected.event)

    def restore(self, text: str) -> str:
        """``text`` with the originals in place of the placeholders, in the forms :class:`PlaceholderForm` lists.

        Placeholders that were never given out stay. Raises :class:`PrivacyParameterError` where it is no string.
        """
        _check_text(text)
        return restored(text, self._form, self._originals.get)

    def restore_json(self, text: str) -> str:
        """:meth:`restore` inside the strings of JSON text, escaped so that it stays as valid as it was."""
        _check_text(text)
        return changed_strings(text, self.restore)

    def stream(self) -> StreamRestorer:
        """Restores one answer piece by piece."""
        return StreamRestorer(self._form, self._originals.get)

    def _register(self, texts: Sequence[str], found: list[list[Identifier]]) -> None:
        """Give numbers, to people with the longest names first: a short one is told whose it is by the long one."""
        spans = [
            (text[one.start : one.end], one.entity_type)
            for text, ones in zip(texts, found, strict=True)
            for one in ones
        ]
        spans.sort(key=lambda span: -len(name_words(span[0])) if span[1] == PERSON else 0)
        for original, kind in spans:
            self._placeholder(kind, original)

    def _placeholder(self, kind: str, original: str) -> Placeholder:
        given = self._given.get((kind, original))
        if given:
            return given
        number = self._number(kind, original)
        spelling = self._spellings[kind, number] = self._spellings.get((kind, number), 0) + 1
        made = Placeholder(kind, number, spelling)
        self._given[kind, original] = made
        self._originals[made] = original
        return made

    def _number(self, kind: str, original: str) -> int:
        key = (kind, original if kind == LITERAL else normalised(kind, original))
        number = self._numbers.get(key)
        if number is None and kind == PERSON:
            number = self._people.number_for(original)
        if number is None:
            number = self._last[kind] = self._last.get(kind, 0) + 1
        self._numbers[key] = number
        if kind == PERSON:
            self._people.add(number, original)
        return number

    def _replaced(self, text: str, found: list[Identifier]) -> str:
        pieces, at = [], 0
        for one in found:
            pieces.append(self._without_lookalikes(text[at : one.start]))
            pieces.append(str(self._placeholder(one.entity_type, text[one.start : one.end])))
            at = one.end
        pieces.append(self._without_lookalikes(text[at:]))
        return "".join(pieces)

    def _without_lookalikes(self, between: str) -> str:
        # taken by itself: beside a placeholder's bracket a word ends as it does at the end of the text
        return self._form.pattern.sub(lambda match: str(self._placeholder(LITERAL, match[0])), between)


def _spans(texts: Sequence[str], found: list[list[Identifier]]) -> list[tuple[str, str]]:
    return [
        (text[one.start : one.end], one.entity_type)
        for text, ones in zip(texts, found, strict=True)
        for one in ones
    ]


def _event(found: list[list[Identifier]]) -> IdentifiersReplaced:
    types = {one.entity_type for ones in found for one in ones}
    return IdentifiersReplaced(replaced=sum(map(len, found)), entity_types=tuple(sorted(types)))


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise PrivacyParameterError(
            "cannot replace identifiers: a single string was given for a sequence of texts. Pass [text]."
        )
    for text in texts:
        _check_text(text)
    return texts


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise PrivacyParameterError(
            f"cannot look for identifiers in {type(text).__name__}: it is no text. Pass a str."
        )
