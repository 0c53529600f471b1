"""What stands between a conversation and a provider that reads it: a mechanism, pseudonyms, or nothing at all."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from fhe_llm.errors import RequestError
from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.charge import Charge, total
from fhe_llm.privacy.events import Event, TextInClear
from fhe_llm.privacy.identifiers import Pseudonymiser
from fhe_llm.privacy.mechanism import Protected, TextMechanism

Message: TypeAlias = Mapping[str, Any]
Messages: TypeAlias = tuple[Message, ...]
REMEMBERED: Final = 256
"""Conversations whose released history is kept, in memory."""
_SENT: Final = ("role", "content", "tool_calls", "tool_call_id")
"""Fields of a message that leave; anything else a caller put there stays here."""


class TextStream(Protocol):
    """Restores a streamed answer: pieces in, pieces out, the rest at the end."""

    def feed(self, text: str) -> str:
        """What is certain by now."""
        ...

    def finish(self) -> str:
        """What was held back."""
        ...


class Restoring(Protocol):
    """Undoes in an answer what was done to the question."""

    def restore(self, text: str) -> str:
        """A text."""
        ...

    def restore_json(self, text: str) -> str:
        """The strings in a JSON text."""
        ...

    def stream(self) -> TextStream:
        """A text in pieces."""
        ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent, the event it costs, and how to read the answer. ``before`` is what the conversation cost so far."""

    messages: Messages
    event: Event
    restoring: Restoring
    before: Charge = field(default_factory=dict)

    @property
    def conversation(self) -> dict[Any, int]:
        """What the conversation cost with this request."""
        return total([self.before, charge_of(self.event)])


class Guard(Protocol):
    """Decides what leaves. Thread-safe."""

    guarantee: str

    def quote(self, messages: Messages) -> tuple[Event, Charge]:
        """What sending these messages would cost now, and what the conversation cost before."""
        ...

    def release(self, messages: Messages, pay: Pay) -> Outgoing:
        """Pay for what is new and give what may be sent."""
        ...

    def answered(self, messages: Messages, outgoing: Outgoing, shown: Message, raw: Message) -> None:
        """The provider wrote ``raw``, and the conversation goes on with ``shown``."""
        ...


Pay: TypeAlias = Callable[[Event, Callable[[], Protected[tuple[str, ...]]]], Protected[tuple[str, ...]]]
"""Reserves an event's charge, draws, commits: :meth:`fhe_llm.privacy.account.Account.pay`."""


class MechanismGuard:
    """Every message is perturbed once, when it is new; later requests of the conversation send the same again.

    A history counts as sent before only up to an answer that this object gave for it, since that is all the provider
    has seen. The same question in a new conversation is drawn and paid for anew: sending the old draw would tell that
    the questions are equal.
    """

    guarantee = "differential privacy"

    def __init__(self, mechanism: TextMechanism, *, public_system: bool) -> None:
        self.mechanism = mechanism
        self._public_system = public_system
        self._past = _Past()

    def quote(self, messages: Messages) -> tuple[Event, Charge]:
        """See :class:`Guard`."""
        known, before = self._past.find(messages)
        return self.mechanism.quote(self._texts(messages[len(known) :])), before

    def release(self, messages: Messages, pay: Pay) -> Outgoing:
        """See :class:`Guard`."""
        known, before = self._past.find(messages)
        new = messages[len(known) :]
        texts = self._texts(new)
        drawn = pay(self.mechanism.quote(texts), lambda: self.mechanism.protect(texts))
        values = iter(drawn.value)
        sent = [
            {**fields(message), "content": next(values)} if self._private(message) else fields(message)
            for message in new
        ]
        return Outgoing((*known, *sent), drawn.event, AsItIs(), before)

    def answered(self, messages: Messages, outgoing: Outgoing, shown: Message, raw: Message) -> None:
        """See :class:`Guard`."""
        self._past.keep((*messages, shown), (*outgoing.messages, raw), outgoing.conversation)

    def _private(self, message: Message) -> bool:
        return bool(message["content"]) and not (self._public_system and message["role"] == "system")

    def _texts(self, new: Messages) -> list[str]:
        if any(message.get("tool_calls") for message in new):
            raise RequestError(
                "cannot send this history: it has tool calls that this object has not received from the provider, "
                "and a mechanism for text cannot change them. Send the messages of one conversation to one object."
            )
        return [message["content"] for message in new if self._private(message)]


class PseudonymGuard:
    """Identifiers that are found are replaced, the same each time in one conversation, and put back in the answer."""

    guarantee = "none"

    def __init__(self, pseudonymiser: Pseudonymiser) -> None:
        self._pseudonymiser = pseudonymiser

    def quote(self, messages: Messages) -> tuple[Event, Charge]:
        """See :class:`Guard`."""
        return self._replaced(messages).event, {}

    def release(self, messages: Messages, pay: Pay) -> Outgoing:
        """See :class:`Guard`."""
        outgoing = self._replaced(messages)
        pay(outgoing.event, lambda: Protected((), outgoing.event))
        return outgoing

    def answered(self, messages: Messages, outgoing: Outgoing, shown: Message, raw: Message) -> None:
        """Nothing to remember: the same history gives the same pseudonyms."""

    def _replaced(self, messages: Messages) -> Outgoing:
        pseudonyms = self._pseudonymiser.start()
        places = [
            (position, call) for position, message in enumerate(messages) for call in _text_places(message)
        ]
        drawn = pseudonyms.replace([_text_at(messages[position], call) for position, call in places])
        sent = [json.loads(json.dumps(fields(message))) for message in messages]
        for (position, call), text in zip(places, drawn.value, strict=True):
            _put_text(sent[position], call, text)
        return Outgoing(tuple(sent), drawn.event, pseudonyms)


class ClearGuard:
    """Everything leaves as it is, because the owner said so."""

    guarantee = "none"

    def quote(self, messages: Messages) -> tuple[Event, Charge]:
        """See :class:`Guard`."""
        characters = sum(len(message["content"]) for message in messages)
        return TextInClear(messages=len(messages), characters=characters), {}

    def release(self, messages: Messages, pay: Pay) -> Outgoing:
        """See :class:`Guard`."""
        event, _ = self.quote(messages)
        pay(event, lambda: Protected((), event))
        return Outgoing(tuple(fields(message) for message in messages), event, AsItIs())

    def answered(self, messages: Messages, outgoing: Outgoing, shown: Message, raw: Message) -> None:
        """Nothing to remember."""


class AsItIs:
    """Restores nothing: a :class:`Restoring` and a :class:`TextStream` at once."""

    def restore(self, text: str) -> str:
        """The text."""
        return text

    def restore_json(self, text: str) -> str:
        """The text."""
        return text

    def stream(self) -> TextStream:
        """Pieces as they come."""
        return self

    def feed(self, text: str) -> str:
        """The piece."""
        return text

    def finish(self) -> str:
        """Nothing was held back."""
        return ""


class _Past:
    """What was sent, under a digest of the history as the host program shows it; the key is this object's own."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._kept: OrderedDict[bytes, tuple[Messages, Charge]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, messages: Messages) -> tuple[Messages, Charge]:
        """What was sent for the longest part of the history that ends with an answer given here."""
        found: tuple[Messages, Charge] = (), {}
        with self._lock:
            for name in self._names(messages):
                if name in self._kept:
                    self._kept.move_to_end(name)
                    found = self._kept[name]
        return found

    def keep(self, shown: Messages, sent: Messages, charge: Charge) -> None:
        *_, name = self._names(shown)
        with self._lock:
            self._kept[name] = sent, charge
            while len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)

    def _names(self, messages: Messages) -> Iterable[bytes]:
        """One for each prefix that ends with an answer."""
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for message in messages:
            digest.update(json.dumps(fields(message), sort_keys=True).encode() + b"\n")
            if message["role"] == "assistant":
                yield digest.copy().digest()


def fields(message: Message) -> dict[str, Any]:
    """The fields of a message that are sent."""
    return {name: message[name] for name in _SENT if name in message}


def _text_places(message: Message) -> Sequence[int | None]:
    """Where a message has text: None for its content, n for the arguments of its n-th tool call."""
    calls = range(len(message.get("tool_calls") or ()))
    return [*([None] if message["content"] else []), *calls]


def _text_at(message: Message, call: int | None) -> str:
    if call is None:
        return str(message["content"])
    return json.dumps(message["tool_calls"][call]["function"]["arguments"], ensure_ascii=False)


def _put_text(message: dict[str, Any], call: int | None, text: str) -> None:
    if call is None:
        message["content"] = text
        return
    try:
        message["tool_calls"][call]["function"]["arguments"] = json.loads(text)
    except ValueError:
        raise RequestError(
            "cannot send this history: a tool call's arguments are no JSON with identifiers replaced. Drop the call."
        ) from None
