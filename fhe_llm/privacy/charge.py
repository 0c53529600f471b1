"""Integer amounts in units that are never added to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Final, Literal, TypeAlias, get_args

from fhe_llm.errors import PrivacyParameterError

Kind = Literal["text", "embedding", "disclosure", "work"]
"""The four ledgers. A quota of work is no privacy figure; it also bounds how fast weights can be extracted."""
Unit = Literal[
    "epsilon",
    "group-epsilon",
    "metric-epsilon",
    "rho",
    "queries",
    "rounds",
    "ciphertexts",
    "bytes",
    "milliseconds",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
MAX_AMOUNT: Final = (1 << 53) - 1
"""Largest amount in a ledger: the largest integer that Redis' Lua and JSON's readers hold exactly."""

Charge: TypeAlias = Mapping[Unit, int]
"""Amounts of one event, each at least 1; empty for an event that costs nothing."""


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """``scale`` integer amounts are one of the unit; ``meaning`` is what a person must know to read the number."""

    kind: Kind
    scale: int
    label: str
    meaning: str


UNIT_INFO: Final[Mapping[Unit, UnitInfo]] = {
    "epsilon": UnitInfo(
        "text", 10**6, "ε", "plain ε: any two texts of as many tokens are hard to tell apart"
    ),
    "group-epsilon": UnitInfo(
        "text", 10**6, "ε in groups", "ε between tokens of one group only; which group it was is not hidden"
    ),
    "metric-epsilon": UnitInfo(
        "text", 10**6, "ε per distance", "ε times the distance of two tokens in the embedding table"
    ),
    "rho": UnitInfo("embedding", 10**9, "ρ", "zero-concentrated DP between any two clipped vectors"),
    "queries": UnitInfo("disclosure", 1, "disclosures", "decrypted values published with flooding noise"),
    "rounds": UnitInfo("work", 1, "rounds", "requests evaluated"),
    "ciphertexts": UnitInfo("work", 1, "ciphertexts", "ciphertexts received and sent"),
    "bytes": UnitInfo("work", 1, "bytes", "bytes received and sent"),
    "milliseconds": UnitInfo("work", 1, "ms", "milliseconds of the evaluator"),
}


def to_amount(value: float | str | Decimal, unit: Unit, what: str = "an amount") -> int:
    """``value`` of ``unit`` as an integer, rounded up: a charge is never smaller than what was spent.

    A float means the decimal number it prints as. Raises :class:`PrivacyParameterError` where it is not a finite
    number, is negative, or exceeds :data:`MAX_AMOUNT`.
    """
    try:
        exact = Decimal(repr(value) if isinstance(value, float) else value) * UNIT_INFO[unit].scale
        amount = int(exact.to_integral_value(ROUND_CEILING))
    except (ArithmeticError, ValueError, TypeError, OverflowError):
        amount = -1
    if not 0 <= amount <= MAX_AMOUNT:
        raise PrivacyParameterError(
            f"cannot use {value!r} as {what} in {unit}: it is not a number from 0 to "
            f"{MAX_AMOUNT // UNIT_INFO[unit].scale}. Change it."
        )
    return amount


def from_amount(amount: int, unit: Unit) -> Decimal:
    """The exact number of ``unit`` that ``amount`` stands for."""
    return Decimal(amount) / UNIT_INFO[unit].scale


def shown(amount: int, unit: Unit) -> str:
    """``amount`` for a person: ``0.25 ε``, ``12 rounds``."""
    number = from_amount(amount, unit)
    text = f"{number:,f}" if number == number.to_integral_value() else f"{number.normalize():,f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{text} {UNIT_INFO[unit].label}"


def checked_charge(charge: Mapping[Unit, int], kind: Kind) -> dict[Unit, int]:
    """``charge`` without zeros, in the order of :data:`UNITS`.

    Raises :class:`PrivacyParameterError` where a unit is not one of ``kind``'s or an amount is no integer from 0 to
    :data:`MAX_AMOUNT`.
    """
    for unit, amount in charge.items():
        if unit not in UNIT_INFO or UNIT_INFO[unit].kind != kind:
            raise PrivacyParameterError(
                f"cannot charge {unit!r} to {kind}: it is no unit of that ledger. Change it."
            )
        if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount <= MAX_AMOUNT:
            raise PrivacyParameterError(
                f"cannot charge {amount!r} {unit}: it is no integer from 0 to {MAX_AMOUNT}. Change it."
            )
    return {unit: charge[unit] for unit in UNITS if charge.get(unit)}


def total(charges: Iterable[Charge]) -> dict[Unit, int]:
    """The sum, unit by unit."""
    sums: dict[Unit, int] = {}
    for charge in charges:
        for unit, amount in charge.items():
            sums[unit] = sums.get(unit, 0) + amount
    return sums


def zcdp_budget(epsilon: float, delta: float) -> float:
    """The largest ρ whose ρ-zCDP implies (ε, δ)-DP by ρ + 2·sqrt(ρ·ln(1/δ)) ≤ ε (Bun and Steinke 2016, Prop. 1.3).

    Rounded down in the last place. Raises :class:`PrivacyParameterError` for ε that is not positive and finite, or δ
    outside (0, 1).
    """
    check_epsilon(epsilon)
    check_delta(delta)
    log = math.log(1 / delta)
    rho = (math.sqrt(log + epsilon) - math.sqrt(log)) ** 2
    while rho > 0 and rho + 2 * math.sqrt(rho * log) > epsilon:
        rho = math.nextafter(rho * (1 - 1e-15), 0.0)
    return rho


def check_epsilon(epsilon: float, what: str = "epsilon") -> None:
    """Raises :class:`PrivacyParameterError` unless ``epsilon`` is positive and finite."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
        raise PrivacyParameterError(
            f"cannot use {what}={epsilon!r}: it must be positive and finite. Change it."
        )


def check_delta(delta: float) -> None:
    """Raises :class:`PrivacyParameterError` unless ``delta`` lies strictly between 0 and 1."""
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        raise PrivacyParameterError(f"cannot use delta={delta!r}: it must lie between 0 and 1. Change it.")
