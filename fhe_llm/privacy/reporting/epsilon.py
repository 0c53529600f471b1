"""What an amount of ρ means as (ε, δ), by the accountants."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from fhe_llm.errors import PrivacyError
from fhe_llm.privacy.accountant import Accountant, RdpAccountant, ZcdpAccountant
from fhe_llm.privacy.charge import UNIT_INFO, Unit, check_delta
from fhe_llm.privacy.events import VectorsNoised

DELTA: Final = 1e-6


@dataclass(frozen=True, slots=True)
class EpsilonAtDelta:
    """``spent`` and ``limit`` of a ρ budget as ε at ``delta``. ``accountant`` is "zCDP", which also holds while
    requests depend on earlier answers, or "RDP": tighter, for vectors whose noise was fixed beforehand."""

    accountant: str
    delta: float
    spent: float
    limit: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def epsilons(unit: Unit, spent: int, limit: int | None, delta: float) -> tuple[EpsilonAtDelta, ...]:
    """By each accountant that is installed (RDP takes ``dp-accounting``); none for units that are ε already.

    Raises :class:`PrivacyParameterError` for ``delta`` outside (0, 1).
    """
    check_delta(delta)
    if unit != "rho":
        return ()
    found = []
    for name, accountant in (("zCDP", ZcdpAccountant), ("RDP", RdpAccountant)):
        try:
            most = None if limit is None else _epsilon(accountant(), limit, delta)
            found.append(EpsilonAtDelta(name, delta, _epsilon(accountant(), spent, delta), most))
        except PrivacyError:
            continue  # without dp-accounting the other one still says it
    return tuple(found)


def _epsilon(accountant: Accountant, rho: int, delta: float) -> float:
    """Gaussians compose to the one Gaussian whose ρ is their sum; rounded towards less noise."""
    if not rho:
        return 0.0
    noise = math.sqrt(UNIT_INFO["rho"].scale / (2 * rho)) * (1 - 2**-50)
    accountant.compose(VectorsNoised(vectors=1, noise_multiplier=noise, clip=1.0, dimensions=1))
    return accountant.epsilon(delta)
