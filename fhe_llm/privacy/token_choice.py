"""The three distributions a token's replacement is drawn from, and the claim each of them carries."""

from __future__ import annotations

import abc
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import ClassVar, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fhe_llm.privacy.embedding_table import RADIUS, STEPS, EmbeddingTable, Grid
from fhe_llm.privacy.events import TextUnit
from fhe_llm.privacy.exact_weights import BITS, LevelWeights, TwoWeights
from fhe_llm.privacy.token_groups import grouped

REMEMBERED: Final = 256
"""Tokens whose candidates are kept, at most 200 KB each."""
BLOCK: Final = 32
"""Tokens whose distances are computed by one matrix product, which takes a tenth of the time of one by one."""
LEVELS: Final = 2 * STEPS * 4096 // RADIUS + 1
"""No two vectors on the grid are further apart than 2·4096."""

Places = NDArray[np.intp]
Urn = tuple[int, Callable[[int], int]]
C = TypeVar("C")


class TokenChoice(abc.ABC, Generic[C]):
    """One independent draw from the words of a table for each token. Thread-safe; randomness from the operating
    system's generator.

    Takes tokens that :meth:`knows` is true of. ``C`` is what a draw needs to know of a token: a function of the token
    alone, so a draw depends on no other token of the text.
    """

    unit: ClassVar[TextUnit]
    name: ClassVar[str]

    def __init__(self, table: EmbeddingTable) -> None:
        self.table = table
        self._remembered: OrderedDict[str, C] = OrderedDict()
        self._lock = Lock()

    def knows(self, token: str) -> bool:
        """Whether ``token`` is a legal input."""
        return self.table.vector(token) is not None

    def draws(self, tokens: Sequence[str]) -> list[int]:
        """For each token the index of the word that stands for it this time."""
        places: dict[str, list[int]] = {}
        for place, token in enumerate(tokens):
            places.setdefault(token, []).append(place)
        distinct, drawn = list(places), [0] * len(tokens)
        for start in range(0, len(distinct), BLOCK):
            block = distinct[start : start + BLOCK]
            for token, candidates in zip(block, self._candidates(block), strict=True):
                total, pick = self._urn(candidates)
                for place in places[token]:
                    drawn[place] = pick(secrets.randbelow(total))
        return drawn

    def total(self, token: str) -> int:
        """The sum of :meth:`weights`."""
        return self._urn(self._candidates([token])[0])[0]

    def pick(self, token: str, number: int) -> int:
        """The word that a uniform ``number`` from 0 to ``total`` - 1 stands for; each for as many as its weight."""
        return self._urn(self._candidates([token])[0])[1](number)

    def weights(self, token: str) -> list[int]:
        """The distribution: word i is drawn with probability ``weights[i] / total``, exactly."""
        return self._weights(self._candidates([token])[0])

    def _candidates(self, tokens: Sequence[str]) -> list[C]:
        found = self._recalled(tokens)
        missing = [token for token in tokens if token not in found]
        if missing:
            found |= zip(missing, self._find(missing), strict=True)
        self._remember({token: found[token] for token in tokens})
        return [found[token] for token in tokens]

    # Whoever does not get the lock at once does without: a forked child may find it held by a thread it does not have.

    def _recalled(self, tokens: Sequence[str]) -> dict[str, C]:
        if not self._lock.acquire(blocking=False):
            return {}
        try:
            return {token: self._remembered[token] for token in tokens if token in self._remembered}
        finally:
            self._lock.release()

    def _remember(self, found: Mapping[str, C]) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            for token, candidates in found.items():
                self._remembered[token] = candidates
                self._remembered.move_to_end(token)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        finally:
            self._lock.release()

    def _vectors(self, tokens: Sequence[str]) -> Grid:
        """[n, d]; zeros for a token without a vector."""
        zeros = np.zeros(self.table.dimensions, dtype=np.float32)
        found = (self.table.vector(token) for token in tokens)
        return np.array([zeros if vector is None else vector for vector in found])

    @abc.abstractmethod
    def _find(self, tokens: Sequence[str]) -> list[C]: ...

    @abc.abstractmethod
    def _urn(self, candidates: C) -> Urn:
        """The sum of the weights, and which word a number below it stands for."""

    @abc.abstractmethod
    def _weights(self, candidates: C) -> list[int]: ...


class WholeTableChoice(TokenChoice["Places | None"]):
    """Any word for any token: the ``near`` nearest with a weight e^ε times that of every other word.

    Claim: P[y|x] ≤ e^ε·P[y|x'] for ANY two tokens x, x' and every word y, because every probability is one of two whose
    ratio is at most e^ε. It holds for any set of ``near`` words, so no property of the vectors is part of it.
    """

    unit = "epsilon"
    name = "exponential mechanism over the whole table"

    def __init__(
        self, table: EmbeddingTable, epsilon: Fraction, near: int | None, *, uniform_unknown: bool
    ) -> None:
        super().__init__(table)
        self._uniform_unknown = uniform_unknown
        self._two = TwoWeights.of(len(table), epsilon, near)

    def knows(self, token: str) -> bool:
        """See :meth:`TokenChoice.knows`. A token without a vector is replaced by any word alike where that was asked
        for: 1/V lies between the two probabilities, so the claim covers it."""
        return self._uniform_unknown or super().knows(token)

    def _find(self, tokens: Sequence[str]) -> list[Places | None]:
        vectors = self._vectors(tokens)
        rows = self.table.squared_distances(vectors)
        known: list[bool] = (np.abs(vectors).max(axis=1) > 0).tolist()
        return [
            nearest(row, self._two.near) if there else None for row, there in zip(rows, known, strict=True)
        ]

    def _urn(self, candidates: Places | None) -> Urn:
        if candidates is None:
            return len(self.table), lambda number: number
        return self._two.total, partial(place_of, self._two, candidates)

    def _weights(self, candidates: Places | None) -> list[int]:
        return [1] * len(self.table) if candidates is None else row_of(self._two, candidates)


class GroupChoice(TokenChoice[tuple[Places, TwoWeights, Places]]):
    """Only words of the token's own group (Chen et al., 2023, "A Customized Text Sanitization Mechanism with
    Differential Privacy"; here groups are disjoint and every word has one).

    Claim: P[y|x] ≤ e^ε·P[y|x'] for two tokens of one group. Which group it is shows in every draw. A string outside
    the table belongs to the group of its nearest word.
    """

    unit = "group-epsilon"
    name = "exponential mechanism in groups"

    def __init__(self, table: EmbeddingTable, epsilon: Fraction, size: int) -> None:
        super().__init__(table)
        self.groups = grouped(table, size)
        self._group_of = np.empty(len(table), dtype=np.intp)
        for number, members in enumerate(self.groups):
            self._group_of[members] = number
        self._two = {
            count: TwoWeights.of(count, epsilon) for count in {members.size for members in self.groups}
        }

    def group(self, token: str) -> int:
        """The number of the token's group, which a draw does not hide."""
        index = self.table.index(token)
        if index is None:
            index = int(np.argmin(self.table.squared_distances(self._vectors([token])[0])))
        return int(self._group_of[index])

    def _find(self, tokens: Sequence[str]) -> list[tuple[Places, TwoWeights, Places]]:
        found = []
        for token, vector in zip(tokens, self._vectors(tokens), strict=True):
            members = self.groups[self.group(token)]
            two = self._two[members.size]
            near = nearest(self.table.squared_distances(vector, members), two.near)
            found.append((members, two, near))
        return found

    def _urn(self, candidates: tuple[Places, TwoWeights, Places]) -> Urn:
        members, two, near = candidates
        return two.total, lambda number: int(members[place_of(two, near, number)])

    def _weights(self, candidates: tuple[Places, TwoWeights, Places]) -> list[int]:
        members, two, near = candidates
        row = [0] * len(self.table)
        for index, weight in zip(members.tolist(), row_of(two, near), strict=True):
            row[index] = weight
        return row


class MetricChoice(TokenChoice[tuple[NDArray[np.int32], list[int]]]):
    """Any word, with weight r^-l for the level l = ⌊256·distance⌋ and r ≤ e^(ε/512): exp(-ε·distance/2) in steps.

    Claim: P[y|x] ≤ e^(ε·d(x, x'))·P[y|x'], d being :meth:`EmbeddingTable.distance`, rounded up to 1/256. By the
    triangle inequality the level of no word differs by more than 256·d (⌊u⌋ - ⌊v⌋ ≤ ⌈u - v⌉), which a weight and the
    sum of the weights change by a factor of at most e^(ε·d/2) each. It is SanText's mechanism (Yue et al., 2021,
    "Differential Privacy for Text Analytics via Natural Text Sanitization") with exact arithmetic.
    """

    unit = "metric-epsilon"
    name = "exponential mechanism by distance"

    def __init__(self, table: EmbeddingTable, epsilon: Fraction) -> None:
        super().__init__(table)
        self._levels = LevelWeights.of(LEVELS, epsilon / (2 * STEPS))

    def _find(self, tokens: Sequence[str]) -> list[tuple[NDArray[np.int32], list[int]]]:
        """Words in the order of their levels, and how many each level has."""
        rows = levels_of(self.table.squared_distances(self._vectors(tokens)))
        orders = (np.argsort(row, kind="stable").astype(np.int32) for row in rows)
        return [
            (order, np.bincount(row, minlength=LEVELS).tolist())
            for order, row in zip(orders, rows, strict=True)
        ]

    def _urn(self, candidates: tuple[NDArray[np.int32], list[int]]) -> Urn:
        order, counts = candidates
        cumulative = self._levels.cumulative(counts)
        first = list(accumulate(counts, initial=0))

        def pick(number: int) -> int:
            level, place = self._levels.pick(number, cumulative)
            return int(order[first[level] + place])

        return cumulative[-1], pick

    def _weights(self, candidates: tuple[NDArray[np.int32], list[int]]) -> list[int]:
        order, counts = candidates
        row = [0] * order.size
        for index, level in zip(order.tolist(), np.repeat(np.arange(LEVELS), counts).tolist(), strict=True):
            row[index] = self._levels.weights[level]
        return row


def nearest(distances: NDArray[np.int32], count: int) -> Places:
    """Places of the ``count`` smallest distances, sorted; of equal ones, the earlier: one set for one row."""
    unique = distances.astype(np.int64) * distances.size + np.arange(distances.size)
    return np.sort(np.argpartition(unique, count - 1)[:count])


def levels_of(squares: NDArray[np.int32]) -> NDArray[np.int16]:
    """⌊256·distance⌋ of squared distances on the grid. Exact: IEEE 754 rounds the root of a whole number below 2^52
    correctly, so never up to the next whole number."""
    scaled = squares.astype(np.int64) * STEPS**2 // RADIUS**2
    levels: NDArray[np.int16] = np.sqrt(scaled.astype(np.float64)).astype(np.int16)
    return levels


def place_of(weights: TwoWeights, near: Places, number: int) -> int:
    """The candidate that ``number`` falls on; ``near`` is sorted."""
    is_near, place = weights.pick(number)
    if is_near:
        return int(near[place])
    return place + int(np.searchsorted(near - np.arange(near.size), place, side="right"))


def row_of(weights: TwoWeights, near: Places) -> list[int]:
    """The weight of every candidate."""
    row = [1 << BITS] * weights.size
    for place in near.tolist():
        row[place] = weights.high
    return row
