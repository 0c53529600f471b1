"""One of many processes that spend from one ledger; whoever started it may kill it at any moment, and starts it anew.

It has keys of its own and tries them in turn. When a call for a key has returned, it writes the key and what came of
it to its own file, from which a successor goes on: with the very next key, whose call may have been cut short.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ledger_kit import work

from fhe_llm.errors import BudgetExhaustedError, IdempotencyError, LedgerError
from fhe_llm.privacy.ledger import Ledger
from fhe_llm.privacy.ledger_place import open_ledger

T = TypeVar("T")
PATIENCE_S = 120.0
"""How long to wait for a ledger that is being started again."""


def amount_of(number: int) -> int:
    """What the key of this number costs in the end; 0 for one that is given back."""
    return 0 if number % 5 == 2 else 1 + number % 3


def spend(ledger: Ledger, key: str, number: int) -> str:
    """Take the key's amount in one of four ways; says what it came to."""
    cost = work(amount_of(number))
    try:
        if number % 5 == 1:
            ledger.commit(ledger.reserve("ann", work(amount_of(number) + 2), key=key), cost)
        elif number % 5 == 2:
            ledger.release(ledger.reserve("ann", work(2), key=key))
            return "released"
        else:
            ledger.charge("ann", cost, key=key)
            if number % 5 == 3 and not ledger.charge("ann", cost, key=key).replayed:
                return "charged twice"
    except BudgetExhaustedError:
        return "refused"
    except IdempotencyError as error:
        return "released" if "given back" in str(error) else f"failed: {error}"
    return "committed"


def main(where: str, name: str, keys: int, told: Path) -> None:
    with told.open("a+b", buffering=0) as file:
        file.seek(0)
        first = file.read().count(b"\n")
        ledger = patiently(lambda: open_ledger(where))
        for number in range(first, keys):
            key = f"{name}-{number}"
            outcome = patiently(lambda key=key, number=number: spend(ledger, key, number))  # type: ignore[misc]
            file.write(f"{key} {outcome}\n".encode())
        ledger.close()


def patiently(call: Callable[[], T]) -> T:
    """Repeat it until the ledger can be used: with the same key, so that nothing is charged twice."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except LedgerError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


if __name__ == "__main__":
    main(os.environ["FHE_LLM_TEST_PLACE"], sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
