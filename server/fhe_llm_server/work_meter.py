"""Work per tenant, against the ledger's quotas, without a ledger write per round.

A tenant's lease is reserved from the ledger in a block and spent in memory; every few seconds it is settled: what was
used is committed, the rest given back. After a crash an open lease stays spent, so a quota is never exceeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fhe_llm.errors import BudgetExhaustedError, LedgerError
from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.charge import Unit
from fhe_llm.privacy.events import WorkDone
from fhe_llm.privacy.ledger import Balance, Ledger, Reservation
from fhe_llm_server.refusal import Refusal

logger = logging.getLogger(__name__)
T = TypeVar("T")

BLOCK: Final = WorkDone(rounds=512, ciphertexts=8192, bytes=64 << 20, milliseconds=20_000)
"""What one lease asks for where the quota has it: a busy client's few seconds."""
SETTLE_SECONDS: Final = 5.0
_MS: Final = 1_000_000
"""Nanoseconds of a millisecond: time adds up in integers."""


@dataclass(frozen=True, slots=True)
class RoundWork:
    """One round before it is evaluated: ciphertexts and bytes both ways."""

    ciphertexts: int
    bytes: int


@dataclass(slots=True)
class _Lease:
    """What was reserved and what was used of it; touched on the event loop only."""

    reservation: Reservation | None = None
    rounds: int = 0
    ciphertexts: int = 0
    bytes: int = 0
    nanoseconds: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def used(self) -> WorkDone:
        milliseconds = -(-self.nanoseconds // _MS)
        return WorkDone(
            rounds=self.rounds, ciphertexts=self.ciphertexts, bytes=self.bytes, milliseconds=milliseconds
        )

    def holds(self, work: RoundWork) -> bool:
        """Whether one more such round fits; its time is not known before, so some must be left."""
        if self.reservation is None:
            return False
        held = self.reservation.charge
        return (
            self.rounds + 1 <= held.get("rounds", 0)
            and self.ciphertexts + work.ciphertexts <= held.get("ciphertexts", 0)
            and self.bytes + work.bytes <= held.get("bytes", 0)
            and self.nanoseconds < _MS * held.get("milliseconds", 0)
        )

    def take(self) -> tuple[Reservation, WorkDone] | None:
        """The reservation and what was used of it; what it does not cover stays, owed by the next one."""
        reservation, used = self.reservation, self.used()
        if reservation is None:
            return None
        held = reservation.charge
        covered = WorkDone(
            rounds=min(used.rounds, held.get("rounds", 0)),
            ciphertexts=min(used.ciphertexts, held.get("ciphertexts", 0)),
            bytes=min(used.bytes, held.get("bytes", 0)),
            milliseconds=min(used.milliseconds, held.get("milliseconds", 0)),
        )
        self.reservation = None
        self.rounds -= covered.rounds
        self.ciphertexts -= covered.ciphertexts
        self.bytes -= covered.bytes
        self.nanoseconds = max(0, self.nanoseconds - _MS * covered.milliseconds)
        return reservation, covered


class WorkMeter:
    """Counts on one event loop; the ledger is used in threads. ``close`` settles everything."""

    def __init__(self, open_ledger: Callable[[], Ledger], settle_seconds: float = SETTLE_SECONDS) -> None:
        self._open = open_ledger
        self._ledger: Ledger | None = None
        self._every = settle_seconds
        self._leases: dict[str, _Lease] = {}
        self._settling: asyncio.Task[None] | None = None
        self._renewals: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the ledger. Raises :class:`LedgerError` where it cannot be used."""
        self._ledger = await asyncio.to_thread(self._open)
        self._settling = asyncio.create_task(self._settle_regularly())

    async def close(self) -> None:
        """Settle every lease and let go of the ledger; a lease that cannot be settled stays spent."""
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, *self._renewals, return_exceptions=True)
        await self._settle_all()
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)

    async def admit(self, tenant: str, work: RoundWork) -> None:
        """Take one round from the tenant's lease before it is evaluated.

        Raises :class:`Refusal`: ``budget_exhausted`` with what is left and when it refreshes, ``ledger_unusable``.
        """
        lease = self._leases.setdefault(tenant, _Lease())
        while not lease.holds(work):
            # a client that hangs up must not leave a reservation that nobody knows of
            renewal = asyncio.create_task(self._renew(tenant, lease, work))
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewals.discard)
            await asyncio.shield(renewal)
        lease.rounds += 1
        lease.ciphertexts += work.ciphertexts
        lease.bytes += work.bytes

    def count_seconds(self, tenant: str, seconds: float) -> None:
        """Add the evaluator's time of an admitted round. What a lease no longer covers is owed by the next one."""
        self._leases.setdefault(tenant, _Lease()).nanoseconds += round(1e9 * seconds)

    async def balances(self, tenant: str) -> tuple[Balance, ...]:
        """The tenant's work so far, the lease settled first. Raises :class:`Refusal` ``ledger_unusable``."""
        if (lease := self._leases.get(tenant)) is not None:
            async with lease.lock:
                await self._settle(lease)
        return await self._in_thread(lambda: self._used_ledger().balances(tenant))

    async def _renew(self, tenant: str, lease: _Lease, work: RoundWork) -> None:
        async with lease.lock:
            if not lease.holds(work):
                await self._settle(lease)
                owed = lease.used()
                lease.reservation = await self._in_thread(lambda: self._reserve(tenant, owed, work))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except BudgetExhaustedError as error:
            later = error.refreshes_at and max(0, error.refreshes_at - self._used_ledger().now())
            raise Refusal("budget_exhausted", str(error), retry_after_ms=later) from None
        except LedgerError:
            logger.exception("the work ledger cannot be used")
            message = "cannot serve this request: the work ledger cannot be written. Retry a little later."
            raise Refusal("ledger_unusable", message, retry_after_ms=5000) from None

    def _reserve(self, tenant: str, owed: WorkDone, work: RoundWork) -> Reservation:
        """A block, or what the quotas have left of one; enough for what is owed and one round in any case."""
        ledger = self._used_ledger()
        least = WorkDone(
            rounds=owed.rounds + 1,
            ciphertexts=owed.ciphertexts + work.ciphertexts,
            bytes=owed.bytes + work.bytes,
            milliseconds=owed.milliseconds + 1,
        )
        left: dict[Unit, int] = {}
        for balance in ledger.balances(tenant):
            if balance.left is not None:
                left[balance.unit] = min(balance.left, left.get(balance.unit, balance.left))
        needed, block = charge_of(least), charge_of(BLOCK)
        amounts: dict[Unit, int] = {
            unit: max(amount, min(amount + block[unit], left.get(unit, amount + block[unit])))
            for unit, amount in needed.items()
        }
        return ledger.reserve(tenant, WorkDone(**amounts), key=f"lease-{secrets.token_hex(16)}")

    async def _settle(self, lease: _Lease) -> None:
        """Commit what was used of a lease. One that cannot be committed stays spent whole."""
        taken = lease.take()
        if taken is None:
            return
        reservation, used = taken
        ledger = self._used_ledger()
        if any(charge_of(used).values()):
            await self._in_thread(lambda: ledger.commit(reservation, used))
        else:
            await self._in_thread(lambda: ledger.release(reservation))

    def _used_ledger(self) -> Ledger:
        if self._ledger is None:
            raise LedgerError("cannot use the work ledger: it is not open. Start the proxy.")
        return self._ledger

    async def _settle_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            await self._settle_all()

    async def _settle_all(self) -> None:
        for lease in list(self._leases.values()):
            async with lease.lock:
                with contextlib.suppress(Refusal):  # logged where it was made
                    await self._settle(lease)
