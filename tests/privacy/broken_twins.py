"""Mechanisms with one mistake each, of the kind that is made; otherwise the real code. They claim what the real ones
do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fhe_llm.privacy.disclosure import NoiseFlooding
from fhe_llm.privacy.embedding_noise import UNIT, GaussianEmbedding, clipped
from fhe_llm.privacy.embedding_table import STEPS, EmbeddingTable
from fhe_llm.privacy.exact_weights import BITS, LevelWeights, TwoWeights, exact_epsilon
from fhe_llm.privacy.gaussian_noise import GaussianNoise
from fhe_llm.privacy.mechanism import Protected
from fhe_llm.privacy.token_choice import LEVELS, GroupChoice, MetricChoice, TokenChoice, WholeTableChoice
from fhe_llm.privacy.token_mechanism import TokenMechanism


def with_choice(mechanism: TokenMechanism, choice: TokenChoice[Any]) -> TokenMechanism:
    """The same claim, other draws."""
    mechanism._choice = choice
    return mechanism


def louder(epsilon: float, table: EmbeddingTable, **settings: Any) -> TokenMechanism:
    """Draws with twice what it claims."""
    real = TokenMechanism(epsilon, table=table, **settings)
    return with_choice(real, TokenMechanism(2 * epsilon, table=table, **settings)._choice)


def rounded_weights(epsilon: float, table: EmbeddingTable) -> TokenMechanism:
    """e^ε as the nearest whole number."""
    choice = WholeTableChoice(table, exact_epsilon(epsilon), 1, uniform_unknown=False)
    choice._two = TwoWeights(len(table), 1, round(float(np.exp(epsilon))) << BITS)
    return with_choice(TokenMechanism(epsilon, table=table, near=1), choice)


class _RoundedShares(MetricChoice):
    def draws(self, tokens: Sequence[str]) -> list[int]:
        (token,) = set(tokens)
        weights = np.round([float(Fraction(w, self.total(token))) for w in self.weights(token)], 2)
        return random.choices(range(len(weights)), weights, k=len(tokens))


def rounded_shares(epsilon: float, table: EmbeddingTable) -> TokenMechanism:
    """Floating-point shares, rounded: the small ones become zero."""
    choice = _RoundedShares(table, exact_epsilon(epsilon))
    return with_choice(TokenMechanism(epsilon, table=table, metric=True), choice)


def without_the_half(epsilon: float, table: EmbeddingTable) -> TokenMechanism:
    """exp(-ε·distance), as if the sum of the weights did not depend on the token."""
    choice = MetricChoice(table, exact_epsilon(epsilon))
    choice._levels = LevelWeights.of(LEVELS, exact_epsilon(epsilon) / STEPS)
    return with_choice(TokenMechanism(epsilon, table=table, metric=True), choice)


class _OneDrawForEach(WholeTableChoice):
    def draws(self, tokens: Sequence[str]) -> list[int]:
        drawn: dict[tuple[int, str], int] = {}
        return [
            drawn.setdefault((place // 2, token), super(_OneDrawForEach, self).draws([token])[0])
            for place, token in enumerate(tokens)
        ]


def one_draw_for_each_word(epsilon: float, table: EmbeddingTable) -> TokenMechanism:
    """In texts of two tokens, equal ones are replaced alike."""
    choice = _OneDrawForEach(table, exact_epsilon(epsilon), None, uniform_unknown=False)
    return with_choice(TokenMechanism(epsilon, table=table), choice)


class _OwnNeighbours(GroupChoice):
    def _find(self, tokens: Sequence[str]) -> list[Any]:
        size = self.groups[0].size
        orders = [
            np.argsort(row, kind="stable") for row in self.table.squared_distances(self._vectors(tokens))
        ]
        return [(order[:size], self._two[size], np.arange(self._two[size].near)) for order in orders]


def own_neighbours(epsilon: float, table: EmbeddingTable, size: int) -> TokenMechanism:
    """Each token's own nearest words, not those of a group: some words come from one token only."""
    choice = _OwnNeighbours(table, exact_epsilon(epsilon), size)
    return with_choice(TokenMechanism(epsilon, table=table, neighbourhood=size), choice)


class KeepsUnknown(TokenMechanism):
    """Lets words through that the table does not know."""

    def protect(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        drawn = super().protect(texts)
        kept = zip(texts, drawn.value, strict=True)
        return Protected(
            tuple(out if self.table.vector(text) is not None else text for text, out in kept), drawn.event
        )


class ThinGaussian(GaussianEmbedding):
    """Noise for vectors that differ by ``clip``, not by twice that."""

    def __init__(self, clip: float = 1.0, **settings: Any) -> None:
        super().__init__(clip, **settings)
        self._noise = GaussianNoise(1.0 * UNIT, self.rho, "whole")


class _OtherClipping(GaussianEmbedding):
    def _clipped(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError

    def protect(self, vectors: ArrayLike) -> Protected[NDArray[np.float64]]:
        array = np.asarray(vectors, dtype=np.float64)
        whole = np.rint(self._clipped(array) * (UNIT / self.clip)).astype(int).ravel().tolist()
        noised = np.array(self._noise(whole), dtype=np.float64).reshape(array.shape)
        return Protected(noised * (self.clip / UNIT), self.quote(vectors))


class Unclipped(_OtherClipping):
    """Forgets to clip."""

    def _clipped(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        return array


class ClippedByCoordinate(_OtherClipping):
    """Clips numbers, not vectors."""

    def _clipped(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(array, -self.clip, self.clip)


class OneNoiseForAll(GaussianEmbedding):
    """The vectors of one call get the same noise, two by two."""

    def protect(self, vectors: ArrayLike) -> Protected[NDArray[np.float64]]:
        array = np.asarray(vectors, dtype=np.float64)
        noise = super().protect(np.zeros((len(array) // 2, array.shape[1]))).value
        whole = clipped(array, self.clip) * (self.clip / UNIT)
        return Protected(whole + np.repeat(noise, 2, axis=0), self.quote(vectors))


class CoarseNoise(GaussianEmbedding):
    """Noise of NumPy's, kept in 32 bits and added to numbers of 64."""

    def protect(self, vectors: ArrayLike) -> Protected[NDArray[np.float64]]:
        array = np.asarray(vectors, dtype=np.float64)
        noise = np.random.default_rng().normal(0, 2 * self.clip * self.noise_multiplier, array.shape)
        kept = clipped(array, self.clip) * (self.clip / UNIT) + noise.astype(np.float16)
        return Protected(kept, self.quote(vectors))


def thin_flooding(**settings: Any) -> NoiseFlooding:
    """A quarter of the noise."""
    made = NoiseFlooding(**settings)
    made._noise = NoiseFlooding(**settings | {"error_bound": settings["error_bound"] / 4})._noise
    return made


def flooding_for_one(**settings: Any) -> NoiseFlooding:
    """Noise for a single publication, whatever the limit is."""
    made = NoiseFlooding(**settings)
    made._noise = NoiseFlooding(**settings | {"query_limit": 1})._noise
    return made
