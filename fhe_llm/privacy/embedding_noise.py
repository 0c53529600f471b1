"""Vectors for a store that reads them: clipped to a length and given Gaussian noise."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.charge import check_delta, check_epsilon, zcdp_budget
from fhe_llm.privacy.events import VectorsNoised
from fhe_llm.privacy.gaussian_noise import GaussianNoise, root_above
from fhe_llm.privacy.mechanism import Protected

UNIT: Final = 1 << 26
"""Whole numbers for the clipped length: vectors are rounded to a grid before noise is added."""
NOISE_RANGE: Final = (2.0**-20, 2.0**20)


class GaussianEmbedding:
    """Gaussian mechanism for vectors.

    Claim, for one vector replaced by any other: ρ-zCDP with ρ = 1/(2·noise_multiplier²), hence (ε, δ)-DP with
    ε = ρ + 2·sqrt(ρ·ln(1/δ)) for every δ (Bun and Steinke, 2016, Prop. 1.3). The ρ of several vectors add up.

    A vector becomes whole multiples of clip/2^26, rounded towards zero; that its length is at most 2^26 is checked in
    whole numbers, so two of them differ by at most 2^27, exactly, and OpenDP confirms ρ for that sensitivity. Numbers
    and dimensions of the vectors are not hidden. Thread-safe.
    """

    name = "Gaussian mechanism"

    def __init__(
        self,
        clip: float = 1.0,
        *,
        noise_multiplier: float | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
        dimensions: int | None = None,
    ) -> None:
        """``clip``: the largest length let through; sentence embeddings have length 1. Noise of standard deviation
        ``noise_multiplier``·2·clip in every coordinate, or as much as (``epsilon``, ``delta``) takes for one vector.
        ``dimensions``: refuse vectors of any other.

        Raises :class:`PrivacyParameterError`.
        """
        check_epsilon(clip, "clip")
        if (noise_multiplier is None) == (epsilon is None or delta is None):
            raise PrivacyParameterError(
                "cannot make a mechanism: give either `noise_multiplier`, or `epsilon` and `delta`."
            )
        if noise_multiplier is None:
            noise_multiplier = multiplier_for(epsilon or 0.0, delta or 0.0)
        check_epsilon(noise_multiplier, "noise_multiplier")
        least, most = NOISE_RANGE
        if not least <= noise_multiplier <= most:
            raise PrivacyParameterError(
                f"cannot use noise_multiplier={noise_multiplier!r}: it must be {least:g} to {most:g}. Change it."
            )
        self.clip = float(clip)
        self.noise_multiplier = float(noise_multiplier)
        self._dimensions = dimensions
        self._noise = GaussianNoise(2.0 * UNIT, self.rho, "whole")

    @property
    def rho(self) -> Fraction:
        """zCDP of one vector, exactly what the ledger charges before it rounds up."""
        return 1 / (2 * Fraction(self.noise_multiplier) ** 2)

    def __repr__(self) -> str:
        return f"GaussianEmbedding(clip={self.clip:g}, noise_multiplier={self.noise_multiplier:g})"

    def quote(self, vectors: ArrayLike) -> VectorsNoised:
        """What :meth:`protect` costs. Raises :class:`PrivacyParameterError` for what it does not take."""
        return self._event(self._checked(vectors))

    def protect(self, vectors: ArrayLike) -> Protected[NDArray[np.float64]]:
        """``vectors`` [n, d] or [d], clipped and noised; they are no longer of unit length. 20 µs a number.

        Raises :class:`PrivacyParameterError` for other shapes, and for NaN or infinity, before anything is drawn.
        """
        array = self._checked(vectors)
        event = self._event(array)
        flat = clipped(array.reshape(-1, array.shape[-1]), self.clip).ravel().tolist()
        noised = np.array(self._noise(flat), dtype=np.float64).reshape(array.shape)
        return Protected(noised * (self.clip / UNIT), event)

    def _checked(self, vectors: ArrayLike) -> NDArray[np.float64]:
        array = np.asarray(vectors)
        good = array.dtype.kind in "fiu" and array.ndim in (1, 2) and array.shape[-1] > 0
        if not good or (self._dimensions is not None and array.shape[-1] != self._dimensions):
            wanted = "d" if self._dimensions is None else self._dimensions
            raise PrivacyParameterError(
                f"cannot protect an array of shape {array.shape}: [n, {wanted}] or [{wanted}] real numbers are needed. "
                "Change it."
            )
        numbers = array.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise PrivacyParameterError("cannot protect vectors: one has NaN or infinity. Leave it out.")
        return numbers

    def _event(self, array: NDArray[np.float64]) -> VectorsNoised:
        return VectorsNoised(
            vectors=array.shape[0] if array.ndim == 2 else 1,
            noise_multiplier=self.noise_multiplier,
            clip=self.clip,
            dimensions=array.shape[-1],
        )


def multiplier_for(epsilon: float, delta: float) -> float:
    """The smallest noise multiplier that gives (ε, δ) by way of zCDP, rounded up; a little more than the Gaussian's
    own curve asks for (Balle and Wang, 2018), as the ledger adds in ρ. Raises :class:`PrivacyParameterError`."""
    check_epsilon(epsilon)
    check_delta(delta)
    rho = zcdp_budget(epsilon, delta)
    if rho <= 0:
        raise PrivacyParameterError(
            f"cannot calibrate noise for epsilon={epsilon!r}: it is too small. Use more."
        )
    return root_above(1 / (2 * Fraction(rho)))


def clipped(vectors: NDArray[np.float64], clip: float) -> NDArray[np.int64]:
    """``vectors`` [n, d] shortened to length ``clip`` where they are longer, as whole multiples of clip/2^26.

    Every row's sum of squares is at most 2^52, which is checked in whole numbers. Rounding is towards zero.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    safe = np.where(largest > 0, largest, 1.0)
    directions = vectors / safe  # the largest coordinate is 1, so nothing overflows below
    norms = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-300)
    with np.errstate(over="ignore"):  # a length that overflows is clipped like any other
        lengths = np.minimum(safe / clip * norms, 1.0)
    whole: NDArray[np.int64] = np.trunc(directions / norms * lengths * UNIT).astype(np.int64)
    while (long := np.square(whole).sum(axis=1) > UNIT**2).any():
        whole[long] -= np.sign(whole[long])
    return whole
