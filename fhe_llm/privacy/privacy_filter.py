"""What may still be spent when each request depends on the answers to earlier ones: privacy filters.

Composition theorems for parameters fixed in advance do not cover that (Rogers, Roth, Ullman and Vadhan 2016). Sums of
pure ε do, and so do sums of Rényi divergences of one order that was chosen beforehand (Feldman and Zrnic 2021), and
with them sums of ρ. The ledger's integer charges are the first and the last of these.
"""

from __future__ import annotations

import abc
import math
import threading
from fractions import Fraction
from typing import Any

from fhe_llm.errors import BudgetExhaustedError, PrivacyParameterError
from fhe_llm.privacy.accountant import Accountant, PureAccountant, RdpAccountant, ZcdpAccountant
from fhe_llm.privacy.charge import check_delta, check_epsilon, zcdp_budget
from fhe_llm.privacy.events import Event


class PrivacyFilter(abc.ABC):
    """Says yes to an event only while the whole interaction stays within (``epsilon``, ``delta``). Thread-safe."""

    def __init__(self, epsilon: float, delta: float) -> None:
        self.epsilon, self.delta = epsilon, delta
        self._lock = threading.Lock()
        self._spent = Fraction(0)

    @property
    def remaining(self) -> float:
        """What is left, in the filter's own measure (ε, ρ, or divergence of its order)."""
        return float(self._limit - self._spent)

    def admits(self, event: Event) -> bool:
        """Whether :meth:`spend` would accept the event now."""
        return self._spent + self._cost(event) <= self._limit

    def spend(self, event: Event) -> None:
        """Take the event's cost, before anything is drawn for it.

        Raises :class:`BudgetExhaustedError` and takes nothing where it does not fit, :class:`PrivacyParameterError`
        for an event of another unit.
        """
        cost = self._cost(event)
        with self._lock:
            if self._spent + cost > self._limit:
                raise BudgetExhaustedError(
                    f"cannot spend {float(cost):g} for {event.name!r}: {self.remaining:g} is left of "
                    f"ε={self.epsilon:g}, δ={self.delta:g}. A filter does not refresh; send less."
                )
            self._spent += cost

    @property
    @abc.abstractmethod
    def _limit(self) -> Fraction: ...

    @abc.abstractmethod
    def _cost(self, event: Event) -> Fraction: ...


class PureFilter(PrivacyFilter):
    """ε of pure differential privacy, δ = 0."""

    def __init__(self, epsilon: float) -> None:
        check_epsilon(epsilon)
        super().__init__(epsilon, 0.0)

    @property
    def _limit(self) -> Fraction:
        return Fraction(repr(float(self.epsilon)))

    def _cost(self, event: Event) -> Fraction:
        counted = PureAccountant()
        counted.compose(event)
        return counted.total


class ZcdpFilter(PrivacyFilter):
    """ρ such that (ε, δ) holds, and every event's ρ adds up (Whitehouse, Ramdas, Rogers and Wu 2023)."""

    def __init__(self, epsilon: float, delta: float) -> None:
        super().__init__(epsilon, delta)
        self._rho = Fraction(zcdp_budget(epsilon, delta))

    @property
    def _limit(self) -> Fraction:
        return self._rho

    def _cost(self, event: Event) -> Fraction:
        counted = ZcdpAccountant()
        counted.compose(event)
        return counted.rho


class RenyiFilter(PrivacyFilter):
    """Rényi divergence of one ``order`` α > 1, fixed when the filter is made, up to ε - ln(1/δ)/(α - 1) (Mironov 2017,
    Prop. 3). Choosing the order afterwards would be adaptive, and is not offered."""

    def __init__(self, epsilon: float, delta: float, order: float) -> None:
        check_epsilon(epsilon)
        check_delta(delta)
        super().__init__(epsilon, delta)
        limit = epsilon - math.log(1 / delta) / (order - 1) if order > 1 else -1.0
        if not 0 < limit < math.inf:
            raise PrivacyParameterError(
                f"cannot use order {order!r}: it leaves nothing of ε={epsilon:g} at δ={delta:g}. Use a larger one."
            )
        self.order = float(order)
        self._divergence = Fraction(limit)

    @property
    def _limit(self) -> Fraction:
        return self._divergence

    def _cost(self, event: Event) -> Fraction:
        counted = _AtOrder(self.order)
        counted.compose(event)
        return Fraction(counted.divergence)


class _AtOrder(RdpAccountant):
    """The Rényi divergence at one order."""

    def __init__(self, order: float) -> None:
        super().__init__(orders=[order])

    @property
    def divergence(self) -> float:
        counted: Any = self._counted
        return float(counted.rdp[0])


__all__ = ["Accountant", "PrivacyFilter", "PureFilter", "RenyiFilter", "ZcdpFilter"]
