"""A mechanism takes a private value and returns one that may leave, with the event that tells what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fhe_llm.privacy.events import Event

V = TypeVar("V", covariant=True)


@dataclass(frozen=True, slots=True)
class Protected(Generic[V]):
    """A ``value`` that may leave, and the ``event`` that has to be paid before it does."""

    value: V
    event: Event


class TextMechanism(Protocol):
    """Changes text under a claim. Thread-safe; draws anew at every call."""

    @property
    def name(self) -> str:
        """Short, for reports."""
        ...

    def quote(self, texts: Sequence[str]) -> Event:
        """What :meth:`protect` will cost for these texts together, told before anything is drawn.

        Raises :class:`UnknownTextError`.
        """
        ...

    def protect(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        """The texts that may leave, in the same order, with one event for them all: that of :meth:`quote`.

        Raises :class:`UnknownTextError` before anything is drawn.
        """
        ...
