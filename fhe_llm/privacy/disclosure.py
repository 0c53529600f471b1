"""Decrypted CKKS values that a user publishes: flooded with noise, a fixed number of times.

The error of a CKKS decryption depends on the secret key, and exact decryptions shown to whoever holds the ciphertexts
give the key away (Li and Micciancio, 2021, "On the Security of Homomorphic Encryption on Approximate Numbers").
"""

from __future__ import annotations

from fractions import Fraction
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fhe_llm.errors import BudgetExhaustedError, PrivacyParameterError
from fhe_llm.privacy.charge import check_epsilon
from fhe_llm.privacy.events import ValuesDisclosed
from fhe_llm.privacy.gaussian_noise import GaussianNoise, root_above
from fhe_llm.privacy.mechanism import Protected

MAX_BITS: Final = 128
MAX_COUNT: Final = 1 << 32


class NoiseFlooding:
    """Adds Gaussian noise of standard deviation σ = 2^s·sqrt(q·d)·B to each published value: B is ``error_bound``, q
    ``query_limit``, d ``values`` and s ``statistical_bits`` (after Li, Micciancio, Schultz and Sorrell, CRYPTO 2022,
    "Securing Approximate Homomorphic Encryption Using Differential Privacy").

    Claim: q publications add at most 2^-s to the advantage with which anyone tells two encrypted inputs apart that have
    the same exact results, over what the encryption itself allows (IND-CPA-D against IND-CPA). Proof: a publication is
    compared with the exact results under the same noise, which contain no error. The two differ by at most sqrt(d)·B in
    L2, so their divergence is KL ≤ ρ = d·B²/(2σ²) (zCDP at order 1); q adaptive ones have KL ≤ q·ρ (chain rule), total
    variation at most sqrt(q·ρ/2) (Pinsker), twice that from one input to the other: sqrt(2·q·ρ) = 2^-s. OpenDP confirms
    ρ for the sensitivity sqrt(d)·B. Micciancio and Walter's measure (2018), which that paper uses, counts an advantage
    of 2^-s as about 2·s bits.

    It holds only if ``error_bound`` is true of EVERY published value, for whatever was computed: a proven worst case.
    A measured precision is no such bound, with whatever margin: estimates from average inputs were broken with inputs
    chosen for it (Guo et al., USENIX Security 2024, "Key Recovery Attacks on Approximate Homomorphic Encryption with
    Non-Worst-Case Noise Flooding Countermeasures"). It holds against an evaluator that follows the protocol: one that
    returns something else makes errors that no bound covers. The exact results themselves are published, under
    noise: this hides the key, not the values. How many values there are shows.
    """

    name = "noise flooding"

    def __init__(
        self, error_bound: float, query_limit: int, *, values: int, statistical_bits: float = 40.0
    ) -> None:
        """``error_bound``: the largest |decrypted - exact| of any value. ``query_limit``: publications in the life of
        the secret key, over all processes; this object allows as many, and the ledger's budget of "queries" is to be
        set to the same number. ``values``: the most in one publication. ``statistical_bits``: above 0, up to 128.

        Raises :class:`PrivacyParameterError`.
        """
        check_epsilon(error_bound, "error_bound")
        check_epsilon(statistical_bits, "statistical_bits")
        for what, count in (("query_limit", query_limit), ("values", values)):
            if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= MAX_COUNT:
                raise PrivacyParameterError(
                    f"cannot use {what}={count!r}: it must be a whole number from 1 to {MAX_COUNT}. Change it."
                )
        if not 2.0**-200 <= error_bound <= 2.0**200:
            raise PrivacyParameterError(
                f"cannot use error_bound={error_bound!r}: it must be 2^-200 to 2^200. Change the unit of the values."
            )
        if statistical_bits > MAX_BITS:
            raise PrivacyParameterError(
                f"cannot use statistical_bits={statistical_bits!r}: {MAX_BITS} is the most. Use fewer."
            )
        self.error_bound = float(error_bound)
        self.query_limit = query_limit
        self.values = values
        self.statistical_bits = float(statistical_bits)
        rho = Fraction(2.0 ** (-2 * self.statistical_bits)) * Fraction(1 - 2**-50) / (2 * query_limit)
        self._noise = GaussianNoise(root_above(values * Fraction(error_bound) ** 2), rho, "float")
        self._lock = Lock()
        self._published = 0

    @property
    def noise(self) -> float:
        """σ, the standard deviation of the noise on each value."""
        return self._noise.scale

    @property
    def left(self) -> int:
        """Publications that this object still allows."""
        return self.query_limit - self._published

    def __repr__(self) -> str:
        return (
            f"NoiseFlooding(error_bound={self.error_bound:g}, query_limit={self.query_limit}, values={self.values}, "
            f"statistical_bits={self.statistical_bits:g})"
        )

    def quote(self, values: ArrayLike) -> ValuesDisclosed:
        """What :meth:`publish` costs: one query. Raises :class:`PrivacyParameterError` for what it does not take."""
        return self._event(self._checked(values))

    def publish(self, values: ArrayLike) -> Protected[NDArray[np.float64]]:
        """``values`` [n], decrypted, with noise. Counted before anything is drawn. 50 µs a value.

        Raises :class:`PrivacyParameterError` for another shape, more values than were planned for, NaN or infinity;
        :class:`BudgetExhaustedError` once ``query_limit`` is reached.
        """
        numbers = self._checked(values)
        with self._lock:
            if self._published >= self.query_limit:
                raise BudgetExhaustedError(
                    f"cannot publish: {self.query_limit} publications were planned for this key, and all were made. "
                    "Make new keys.",
                    unit="queries",
                )
            self._published += 1
        return Protected(np.array(self._noise(numbers.tolist()), dtype=np.float64), self._event(numbers))

    def _checked(self, values: ArrayLike) -> NDArray[np.float64]:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu" or array.ndim != 1 or not 0 < array.size <= self.values:
            raise PrivacyParameterError(
                f"cannot publish an array of shape {array.shape}: the noise is for 1 to {self.values} real numbers. "
                "Change it."
            )
        numbers = array.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise PrivacyParameterError("cannot publish values: one is NaN or infinite. Leave it out.")
        return numbers

    def _event(self, numbers: NDArray[np.float64]) -> ValuesDisclosed:
        return ValuesDisclosed(
            queries=1,
            values=numbers.size,
            noise=self.noise,
            statistical_bits=self.statistical_bits,
            query_limit=self.query_limit,
        )
