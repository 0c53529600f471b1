"""What the tests of ledgers share: a clock they set, short events, and what a history adds up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fhe_llm.privacy.charge import Unit
from fhe_llm.privacy.events import TokensReplaced, WorkDone
from fhe_llm.privacy.ledger import WINDOW_MS, Ledger

HOUR, DAY = WINDOW_MS["hour"], WINDOW_MS["day"]
NOON = 1_750_000_000_000 // DAY * DAY + DAY // 2


@dataclass
class Clock:
    """Milliseconds since 1970, as a test says."""

    now: int = NOON

    def __call__(self) -> int:
        return self.now


Open = Callable[..., Ledger]


def tokens(count: int, epsilon: float = 1, unit: Any = "epsilon") -> TokensReplaced:
    return TokensReplaced(tokens=count, epsilon=epsilon, unit=unit, mechanism="exponential")


def work(rounds: int = 0, sent: int = 0) -> WorkDone:
    return WorkDone(rounds=rounds, ciphertexts=0, bytes=sent, milliseconds=0)


def spent(ledger: Ledger, principal: str = "ann") -> dict[tuple[str, str], int]:
    return {(b.unit, b.window): b.spent for b in ledger.balances(principal)}


def history_sums(ledger: Ledger, principal: str) -> dict[Unit, int]:
    """What the changes in the history add up to."""
    sums: Counter[Unit] = Counter()
    for entry in ledger.history(principal):
        sums.update(entry.change)
    return {unit: amount for unit, amount in sums.items() if amount}
