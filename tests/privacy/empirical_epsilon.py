"""Lower bounds of ε from draws alone: what was claimed is refuted if a bound exceeds it.

A bound holds with probability 1 - ``failure`` whatever the mechanism does, so a sound one is accused so rarely and no
more. Shares are bounded by Clopper and Pearson (1934), and ``failure`` is divided among all bounds that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

FAILURE = 1e-9
THRESHOLDS = 400


def share_above(hits: int, draws: int, failure: float) -> float:
    """No smaller than the probability of a hit, but for ``failure``."""
    return 1.0 if hits == draws else float(beta.isf(failure, hits + 1, draws - hits))


def share_below(hits: int, draws: int, failure: float) -> float:
    """No larger than the probability of a hit, but for ``failure``."""
    return 0.0 if hits == 0 else float(beta.ppf(failure, hits, draws - hits + 1))


def loss_below(
    hits: int, draws: int, other_hits: int, other_draws: int, *, delta: float = 0.0, failure: float
) -> float:
    """No larger than ln((p - δ)/p') for one event of probability p on one input and p' on the other."""
    often = share_below(hits, draws, failure / 2) - delta
    return math.log(often / share_above(other_hits, other_draws, failure / 2)) if often > 0 else -math.inf


def pure_epsilon(one: Mapping[str, int], other: Mapping[str, int], *, failure: float = FAILURE) -> float:
    """ε is at least this, by how often each outcome came of one input and of the other: of the single outcomes the
    worst, both ways round."""
    outcomes = one.keys() | other.keys()
    draws, other_draws = sum(one.values()), sum(other.values())
    each = failure / (2 * len(outcomes))
    return max(
        max(
            loss_below(one.get(outcome, 0), draws, other.get(outcome, 0), other_draws, failure=each),
            loss_below(other.get(outcome, 0), other_draws, one.get(outcome, 0), draws, failure=each),
        )
        for outcome in outcomes
    )


def approximate_epsilon(
    one: NDArray[np.float64], other: NDArray[np.float64], delta: float, *, failure: float = FAILURE
) -> float:
    """ε at ``delta`` is at least this: half of the draws choose a threshold for either way round, and the other half
    counts how often it is passed."""
    (choose, count), (choose_other, count_other) = _halves(one), _halves(other)
    best = -math.inf
    for sign in (1.0, -1.0):
        cut = _threshold(sign * choose, sign * choose_other, delta)
        for above, below, edge in ((count, count_other, cut[0]), (count_other, count, cut[1])):
            hits, other_hits = int((sign * above >= edge).sum()), int((sign * below >= edge).sum())
            found = loss_below(hits, above.size, other_hits, below.size, delta=delta, failure=failure / 4)
            best = max(best, found)
    return best


def advantage(one: NDArray[np.float64], other: NDArray[np.float64], *, failure: float = FAILURE) -> float:
    """The total variation distance of two distributions is at least this; a threshold chosen as above."""
    (choose, count), (choose_other, count_other) = _halves(one), _halves(other)
    edges = np.quantile(np.concatenate([choose, choose_other]), np.linspace(0.01, 0.99, THRESHOLDS))
    gaps = _passed(choose, edges) / choose.size - _passed(choose_other, edges) / choose_other.size
    edge, sign = edges[np.abs(gaps).argmax()], np.sign(gaps[np.abs(gaps).argmax()])
    more, less = (count, count_other) if sign >= 0 else (count_other, count)
    often = share_below(int((more >= edge).sum()), more.size, failure / 2)
    return often - share_above(int((less >= edge).sum()), less.size, failure / 2)


def _halves(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return values[: values.size // 2], values[values.size // 2 :]


def _passed(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of ``values`` reach each edge."""
    return values.size - np.searchsorted(np.sort(values), edges, side="left")


def _threshold(one: NDArray[np.float64], other: NDArray[np.float64], delta: float) -> tuple[float, float]:
    """The thresholds that show most, of one input against the other and the other way round, with room for chance."""
    edges = np.quantile(np.concatenate([one, other]), np.linspace(0, 1, THRESHOLDS))
    counts, other_counts = _passed(one, edges), _passed(other, edges)
    found = []
    for hits, draws, rival, rival_draws in (
        (counts, one.size, other_counts, other.size),
        (other_counts, other.size, counts, one.size),
    ):
        losses = [
            loss_below(int(h), draws, int(r), rival_draws, delta=delta, failure=1e-6)
            for h, r in zip(hits, rival, strict=True)
        ]
        found.append(float(edges[int(np.argmax(losses))]))
    return found[0], found[1]
