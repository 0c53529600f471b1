"""A principal at a ledger: who pays for what leaves."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import platformdirs

from fhe_llm.errors import IdempotencyError, LedgerError
from fhe_llm.privacy.events import Event
from fhe_llm.privacy.ledger import Balance, Budget, Ledger, checked_name
from fhe_llm.privacy.ledger_place import open_ledger
from fhe_llm.privacy.mechanism import Protected

logger = logging.getLogger(__name__)
T = TypeVar("T")

LEDGER_VARIABLE: Final = "FHE_LLM_LEDGER"


def default_ledger() -> str:
    """``$FHE_LLM_LEDGER``, else a file in the user's data directory."""
    folder = Path(platformdirs.user_data_dir("fhe-llm", appauthor=False))
    return os.environ.get(LEDGER_VARIABLE) or str(folder / "ledger.sqlite")


@dataclass(frozen=True, slots=True)
class Account:
    """``principal`` is whose exposure is counted: a user, a service, a data set. Threads and processes may share it."""

    ledger: Ledger
    principal: str

    def __post_init__(self) -> None:
        checked_name(self.principal, "principal")

    @classmethod
    def open(cls, principal: str, where: str | Path | None = None, *budgets: Budget) -> Account:
        """An account at the ledger in a file or at a Redis URL (default: :func:`default_ledger`).

        Each of ``budgets`` is set where the principal has none of that unit and window yet; one that was set before
        stays as it is. Raises :class:`LedgerError`.
        """
        account = cls(open_ledger(where if where is not None else default_ledger()), principal)
        present = {(budget.unit, budget.window) for budget in account.ledger.budgets(principal)}
        for budget in budgets:
            if (budget.unit, budget.window) not in present:
                account.ledger.set_budget(principal, budget)
        return account

    def balances(self) -> tuple[Balance, ...]:
        """See :meth:`Ledger.balances`."""
        return self.ledger.balances(self.principal)

    def pay(self, event: Event, draw: Callable[[], Protected[T]], *, key: str | None = None) -> Protected[T]:
        """Reserve ``event``, ``draw`` what it pays for, commit, and only then hand it out.

        Where ``draw`` raises, nothing left and the charge is given back. Raises :class:`BudgetExhaustedError`,
        :class:`LedgerError`, and :class:`IdempotencyError` for a key that has paid before: drawing again for it would
        be another release.
        """
        reservation = self.ledger.reserve(self.principal, event, key=key or new_key())
        if reservation.replayed and reservation.charge:
            raise IdempotencyError(
                "cannot draw again for this key: it has paid once, and a second draw would be a second release. "
                "Use a new key."
            )
        try:
            drawn = draw()
        except BaseException:
            self.ledger.release(reservation)
            raise
        self.ledger.commit(reservation, drawn.event)
        return drawn

    def record(self, event: Event) -> None:
        """Write down an event that costs nothing. A ledger that cannot be written is logged: nothing is owed."""
        try:
            self.ledger.charge(self.principal, event, key=new_key())
        except LedgerError:
            logger.exception("an event of cost zero is missing in the ledger")

    def __repr__(self) -> str:
        return f"Account(principal={self.principal!r})"


def new_key() -> str:
    """An idempotency key that was never used."""
    return f"call-{secrets.token_hex(16)}"
