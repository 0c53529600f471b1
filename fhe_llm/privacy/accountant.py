"""Accountants turn events of one unit into (ε, δ). ``dp-accounting`` does the mathematics; here is what it is told.

Every claim is for the events' own adjacency: texts of as many tokens, any vector for any other. Metric ε is read at
distance 1. An accountant that composes in advance is an odometer: a report. What may be spent next is a filter's
question (:mod:`fhe_llm.privacy.privacy_filter`), since the next request depends on earlier answers.
"""

from __future__ import annotations

import abc
import functools
import importlib
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Final

from fhe_llm.errors import PrivacyError, PrivacyParameterError
from fhe_llm.privacy.charge import Unit, check_delta
from fhe_llm.privacy.events import Event, TokensReplaced, VectorsNoised

PLD_CELLS: Final = 200_000
"""Cells of a privacy loss distribution on each side of zero at most: composing costs about n·log n of it."""
FINEST_CELL: Final = 1e-4


class Accountant(abc.ABC):
    """What every accountant does. Events of one unit only: plain and metric ε do not add up."""

    units: ClassVar[frozenset[Unit]]

    def __init__(self) -> None:
        self._unit: Unit | None = None

    @property
    def unit(self) -> Unit | None:
        """The unit of what was composed; None before the first event."""
        return self._unit

    def supports(self, event: Event) -> bool:
        """Whether the event has a unit this accountant can count, and the one counted so far."""
        unit = unit_of(event)
        return unit in self.units and self._unit in (None, unit)

    def compose(self, event: Event) -> None:
        """Add an event. Raises :class:`PrivacyParameterError` for one that is not supported; nothing changes then."""
        if not self.supports(event):
            raise PrivacyParameterError(
                f"cannot count {event.name!r} in {type(self).__name__}: its unit is {unit_of(event)}, "
                f"not {self._unit or 'one it knows'}. Use one accountant for each unit."
            )
        if isinstance(event, TokensReplaced):
            self._pure(event.epsilon, event.tokens)
        elif isinstance(event, VectorsNoised):
            self._gaussian(event.noise_multiplier, event.vectors)
        self._unit = unit_of(event)

    def epsilon(self, delta: float) -> float:
        """The smallest ε this accountant can prove together with ``delta``; 0 before the first event.

        Raises :class:`PrivacyParameterError` for δ outside (0, 1).
        """
        check_delta(delta)
        return 0.0 if self._unit is None else self._epsilon(delta)

    @abc.abstractmethod
    def _pure(self, epsilon: float, count: int) -> None: ...

    @abc.abstractmethod
    def _gaussian(self, noise_multiplier: float, count: int) -> None: ...

    @abc.abstractmethod
    def _epsilon(self, delta: float) -> float: ...


class PureAccountant(Accountant):
    """Basic composition (Dwork, McSherry, Nissim and Smith 2006): ε adds up, and δ buys nothing."""

    units = frozenset({"epsilon", "group-epsilon", "metric-epsilon"})

    def __init__(self) -> None:
        super().__init__()
        self._sum = Fraction(0)

    def _pure(self, epsilon: float, count: int) -> None:
        self._sum += Fraction(repr(float(epsilon))) * count

    def _gaussian(self, noise_multiplier: float, count: int) -> None:
        raise NotImplementedError  # not among the units

    def _epsilon(self, delta: float) -> float:  # noqa: ARG002  the same for all δ
        return float(self._sum)

    @property
    def total(self) -> Fraction:
        """The sum, exactly."""
        return self._sum


class RdpAccountant(Accountant):
    """Rényi differential privacy (Mironov 2017) over ``dp-accounting``'s default orders.

    A mechanism of pure ε is counted as randomised response between two values, which no mechanism of that ε exceeds
    (Kairouz, Oh and Viswanath 2015, Theorem 3.4).
    """

    units = frozenset({"epsilon", "group-epsilon", "metric-epsilon", "rho"})

    def __init__(self, orders: Sequence[float] | None = None) -> None:
        super().__init__()
        self._orders = orders

    def _pure(self, epsilon: float, count: int) -> None:
        self._text.compose(_dp("dp_event").RandomizedResponseDpEvent(_noise_parameter(epsilon), 2), count)

    def _gaussian(self, noise_multiplier: float, count: int) -> None:
        self._vectors.compose(_dp("dp_event").GaussianDpEvent(noise_multiplier), count)

    def _epsilon(self, delta: float) -> float:
        return float(self._counted.get_epsilon(delta))

    @property
    def _counted(self) -> Any:
        return self._vectors if self._unit == "rho" else self._text

    @cached_property
    def _text(self) -> Any:
        relation = _dp("privacy_accountant").NeighboringRelation.REPLACE_ONE
        return _dp("rdp").RdpAccountant(self._orders, relation)

    @cached_property
    def _vectors(self) -> Any:
        # the multiplier is over the sensitivity of a replacement already, so the relation must not double it
        relation = _dp("privacy_accountant").NeighboringRelation.ADD_OR_REMOVE_ONE
        return _dp("rdp").RdpAccountant(self._orders, relation)


class ZcdpAccountant(Accountant):
    """Zero-concentrated differential privacy: ρ adds up; ε = ρ + 2·sqrt(ρ·ln(1/δ)) (Bun and Steinke 2016, Prop. 1.3).

    Pure ε counts as ρ = ε²/2 (Prop. 1.4).
    """

    units = RdpAccountant.units

    def __init__(self) -> None:
        super().__init__()
        self._rho = Fraction(0)

    @property
    def rho(self) -> Fraction:
        """The sum, exactly."""
        return self._rho

    def _pure(self, epsilon: float, count: int) -> None:
        self._rho += Fraction(epsilon) ** 2 / 2 * count

    def _gaussian(self, noise_multiplier: float, count: int) -> None:
        self._rho += Fraction(count) / (2 * Fraction(noise_multiplier) ** 2)

    def _epsilon(self, delta: float) -> float:
        rho = float(self._rho)
        return rho + 2 * math.sqrt(rho * math.log(1 / delta))


class PldAccountant(Accountant):
    """Privacy loss distributions (Koskela, Jälkö and Honkela 2020), rounded towards more loss: the tightest of all.

    Distributions are made and composed directly: ``dp_accounting.pld.PLDAccountant`` 0.6.0 counts a repeated
    randomised response once. Kept per event and composed when asked, in cells that fit the total.
    """

    units = RdpAccountant.units

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[float, int] = {}

    def _pure(self, epsilon: float, count: int) -> None:
        self._counts[epsilon] = self._counts.get(epsilon, 0) + count

    def _gaussian(self, noise_multiplier: float, count: int) -> None:
        self._counts[noise_multiplier] = self._counts.get(noise_multiplier, 0) + count

    def _epsilon(self, delta: float) -> float:
        parts = [(value, count) for value, count in sorted(self._counts.items()) if count]
        if not parts:
            return 0.0
        made = _dp("pld.privacy_loss_distribution")
        if self._unit == "rho":
            # Gaussians compose to one Gaussian exactly
            deviation = 1 / math.sqrt(sum(count / value**2 for value, count in parts))
            cell = max(FINEST_CELL, _gaussian_loss(deviation, delta) / PLD_CELLS)
            found = made.from_gaussian_mechanism(deviation, value_discretization_interval=cell)
            return float(found.get_epsilon_for_delta(delta))
        cell = max(FINEST_CELL, sum(value * count for value, count in parts) / PLD_CELLS)
        each = _dp("pld.common").DifferentialPrivacyParameters
        losses = [
            made.from_privacy_parameters(each(value, 0.0), value_discretization_interval=cell).self_compose(
                count
            )
            for value, count in parts
        ]
        composed = functools.reduce(lambda one, other: one.compose(other), losses)
        # rounding up by cells may exceed what adding up proves
        return min(float(composed.get_epsilon_for_delta(delta)), sum(value * count for value, count in parts))


def unit_of(event: Event) -> Unit | None:
    """The privacy unit an event is counted in; None for events without one."""
    if isinstance(event, TokensReplaced):
        return event.unit
    return "rho" if isinstance(event, VectorsNoised) else None


def _noise_parameter(epsilon: float) -> float:
    """The parameter of randomised response over two values that has exactly this ε: 2/(1 + e^ε)."""
    return 2.0 * math.exp(-epsilon) / (1.0 + math.exp(-epsilon))


def _gaussian_loss(deviation: float, delta: float) -> float:
    """A bound of the privacy loss beyond which a Gaussian of this deviation has less mass than ``delta``."""
    return 0.5 / deviation**2 + math.sqrt(2 * math.log(2 / delta)) / deviation


def _dp(name: str) -> Any:
    try:
        return importlib.import_module(f"dp_accounting.{name}")
    except ImportError:
        raise PrivacyError(
            "cannot count privacy loss: dp-accounting is not installed. Run `pip install 'fhe-llm[privacy]'`."
        ) from None
