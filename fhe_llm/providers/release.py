"""What a user is told about text that leaves: the cost before, and after it what was paid and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.charge import Charge, Unit, shown
from fhe_llm.privacy.events import Event, TokensReplaced
from fhe_llm.privacy.ledger import Balance
from fhe_llm.providers.contract import ProviderFinish, ProviderToolCall, ProviderUsage
from fhe_llm.receipt import html_table


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReceipt:
    """One request's release, or with ``quoted`` what it would be.

    ``charge`` is this request's, ``conversation`` the sum over the conversation with it, ``balances`` the principal's
    with this request paid (a quote: as they are). Holds names and counts only.
    """

    provider: str
    model: str
    guarantee: str
    event: Event
    conversation: Charge
    balances: tuple[Balance, ...]
    quoted: bool = False

    @property
    def charge(self) -> dict[Unit, int]:
        """Integer amounts of this request."""
        return charge_of(self.event)

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Label and value pairs, in the order a person reads them."""
        return (
            ("guarantee", self._guarantee()),
            ("sent to" if not self.quoted else "would go to", f"{self.provider}, {self.model}"),
            ("what was done" if not self.quoted else "what will be done", self.event.describe()),
            *self._cost(),
            *((f"left {_window(balance)}", _left(balance)) for balance in self._limited()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable names."""
        return {
            "provider": self.provider,
            "model": self.model,
            "guarantee": self.guarantee,
            "event": self.event.to_dict(),
            "charge": dict(self.charge),
            "conversation": dict(self.conversation),
            "left": [
                {"unit": balance.unit, "window": balance.window, "left": balance.left}
                for balance in self._limited()
            ],
            "quoted": self.quoted,
        }

    def _guarantee(self) -> str:
        if self.guarantee == "none":
            return "none: the provider reads what is sent"
        return f"{self.guarantee}: the provider reads text that a mechanism has changed"

    def _cost(self) -> Iterator[tuple[str, str]]:
        for unit, amount in self.charge.items():
            each = ""
            if isinstance(self.event, TokensReplaced):
                each = f" ({self.event.tokens} tokens at {self.event.epsilon:g})"
            yield "this request", shown(amount, unit) + each
        for unit, amount in self.conversation.items():
            yield "this conversation", shown(amount, unit)

    def _limited(self) -> list[Balance]:
        return [
            balance
            for balance in self.balances
            if balance.budget is not None and balance.kind == self.event.kind
        ]

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.rows())
        title = "Quote" if self.quoted else "Release receipt"
        return "\n".join([title, *(f"  {label:<{width}}  {value}" for label, value in self.rows())])

    def _repr_html_(self) -> str:
        return html_table("Quote" if self.quoted else "Release receipt", self.rows())


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateAnswer:
    """A provider's answer, restored or rewritten. ``remote_text`` is what the provider wrote."""

    text: str
    finish: ProviderFinish
    model: str
    receipt: ReleaseReceipt
    remote_text: str
    tool_calls: tuple[ProviderToolCall, ...] = ()
    usage: ProviderUsage | None = None
    request_id: str | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"PrivateAnswer({len(self.text)} characters, finish={self.finish!r}, model={self.model!r})"

    def _repr_html_(self) -> str:
        return html_table("Answer", (("answer", self.text),)) + self.receipt._repr_html_()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateChunk:
    """A piece of a streamed answer; only the last one has ``answer``."""

    text: str
    answer: PrivateAnswer | None = None


def message_of(text: str, calls: tuple[ProviderToolCall, ...]) -> Mapping[str, Any]:
    """The assistant's message of an answer, as the next request of the conversation has it."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message


def _left(balance: Balance) -> str:
    return f"{shown(balance.left or 0, balance.unit)} of {balance.budget}"


def _window(balance: Balance) -> str:
    return "in all" if balance.window == "lifetime" else f"this {balance.window}"
