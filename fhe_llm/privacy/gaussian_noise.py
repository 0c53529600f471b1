"""Gaussian noise from OpenDP: a discrete Gaussian, sampled with exact arithmetic, that is zero-concentrated DP.

OpenDP's ``make_gaussian`` draws from the discrete Gaussian exactly (Canonne, Kamath and Steinke, 2020, "The Discrete
Gaussian for Differential Privacy", Alg. 3): on whole numbers, or on the multiples of 2^-1074, which all floats are. Its
random bits are OpenSSL's, whose generator the operating system seeds, and seeds anew in a forked child. Its ρ is
(sensitivity/scale)²/2 (their Prop. 5 and Thm. 14), as for the continuous one (Bun and Steinke, 2016, Prop. 1.6).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from fhe_llm.errors import PrivacyError

if TYPE_CHECKING:
    from opendp.mod import Measurement

N = TypeVar("N", int, float)

ATTEMPTS: Final = 64


class GaussianNoise:
    """Noise for vectors that differ by at most ``sensitivity`` in L2, at the smallest ``scale`` (standard deviation)
    for which OpenDP's own privacy map, which rounds up, confirms ``rho``. Thread-safe; 20 µs a whole number, 50 µs a
    float.
    """

    def __init__(self, sensitivity: float, rho: Fraction, numbers: Literal["whole", "float"]) -> None:
        """Raises :class:`PrivacyError` where OpenDP is not installed or does not confirm ``rho``."""
        self.scale = sensitivity / math.sqrt(2 * rho)
        for _ in range(ATTEMPTS):
            confirmed: float = _measurement(self.scale, numbers).map(sensitivity)  # type: ignore[no-untyped-call]
            if confirmed <= rho:
                self._mine = _PerThread(self.scale, numbers)
                return
            self.scale = math.nextafter(self.scale * (1 + 2**-50), math.inf)
        raise PrivacyError("cannot add noise: OpenDP does not confirm the claim. Use another version of it.")

    def __call__(self, numbers: Sequence[N]) -> list[N]:
        """``numbers`` with fresh noise. What exceeds the type's range becomes its largest number, afterwards."""
        noised: list[N] = self._mine.measurement(list(numbers)) if numbers else []
        return noised


class _PerThread(threading.local):
    """A measurement for each thread: no lock that a forked child might find held by a thread it does not have."""

    def __init__(self, scale: float, numbers: Literal["whole", "float"]) -> None:
        self.measurement = _measurement(scale, numbers)


def _measurement(scale: float, numbers: Literal["whole", "float"]) -> Measurement:
    try:
        import opendp.prelude as dp
    except ImportError:
        raise PrivacyError("cannot add noise: OpenDP is missing. Install fhe-llm[privacy].") from None
    dp.enable_features("contrib")
    atoms = dp.atom_domain(T="i64") if numbers == "whole" else dp.atom_domain(T="f64", nan=False)
    return dp.m.make_gaussian(dp.vector_domain(atoms), dp.l2_distance(T="f64"), scale=scale)


def root_above(number: Fraction) -> float:
    """A float that is not below the square root of ``number`` > 0, and at most two units in the last place above."""
    root = math.sqrt(number)
    while Fraction(root) ** 2 < number:
        root = math.nextafter(root, math.inf)
    return root
