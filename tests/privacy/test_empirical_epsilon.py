"""No mechanism's draws refute its claim, and draws of a twin with one mistake do.

Inputs are adjacent and the worst there are for the mechanism; a claim is read off the event that the mechanism itself
returns. Each bound is wrong with a probability of 1e-9.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from broken_twins import (
    ClippedByCoordinate,
    CoarseNoise,
    KeepsUnknown,
    OneNoiseForAll,
    ThinGaussian,
    Unclipped,
    flooding_for_one,
    louder,
    one_draw_for_each_word,
    own_neighbours,
    rounded_shares,
    rounded_weights,
    thin_flooding,
    without_the_half,
)
from empirical_epsilon import advantage, approximate_epsilon, pure_epsilon, share_above, share_below
from numpy.typing import NDArray
from small_tables import crowded, scattered

from fhe_llm.privacy.accountant import PldAccountant
from fhe_llm.privacy.disclosure import NoiseFlooding
from fhe_llm.privacy.embedding_noise import GaussianEmbedding
from fhe_llm.privacy.events import TokensReplaced, VectorsNoised
from fhe_llm.privacy.infer_dpt import InferDpt
from fhe_llm.privacy.mechanism import TextMechanism
from fhe_llm.privacy.token_mechanism import TokenMechanism

DELTAS = (0.1, 1e-3)
LONG = 1e6
"""Longer than any clip."""

TABLE, CROWDED = scattered(6), crowded()
GROUP_OF_FOUR = scattered(8)
PAIRS = {
    "plain": (lambda: TokenMechanism(1.0, table=TABLE), "ant", "bee"),
    "plain, one near": (lambda: TokenMechanism(2.0, table=TABLE, near=1), "ant", "fox"),
    "plain, small": (lambda: TokenMechanism(0.1, table=TABLE, near=1), "cat", "dog"),
    "plain, unknown": (lambda: TokenMechanism(1.0, table=TABLE, unknown="uniform"), "ant", "secret"),
    "plain, one of two tokens": (lambda: TokenMechanism(1.0, table=TABLE), "ant bee", "ant fox"),
    "plain, the same token twice": (lambda: TokenMechanism(1.0, table=TABLE), "ant ant", "ant bee"),
    "plain, both tokens": (lambda: TokenMechanism(0.5, table=TABLE, near=1), "ant bee", "fox cat"),
    "metric": (lambda: TokenMechanism(2.25, table=CROWDED, metric=True), "far", "c0"),
    "metric, close": (lambda: TokenMechanism(9.0, table=CROWDED, metric=True), "c0", "c29"),
    "group": (lambda: TokenMechanism(1.0, table=GROUP_OF_FOUR, neighbourhood=4), *("bee", "cat")),
    "InferDPT": (lambda: InferDpt(TokenMechanism(1.0, table=TABLE), str.upper), "cat", "eel"),
}
BROKEN = {
    "more ε than claimed": (lambda: louder(2.0, TABLE, near=1), "ant", "fox"),
    "more metric ε than claimed": (lambda: louder(2.25, CROWDED, metric=True), "far", "c0"),
    "more ε in a group": (lambda: louder(2.0, scattered(4), neighbourhood=4), "ant", "bee"),
    "weights rounded": (lambda: rounded_weights(0.45, scattered(3)), "ant", "bee"),
    "shares rounded": (lambda: rounded_shares(4.5, CROWDED), "far", "c0"),
    "the half forgotten": (lambda: without_the_half(2.25, CROWDED), "far", "c0"),
    "one draw for each word": (lambda: one_draw_for_each_word(1.0, TABLE), "ant ant", "ant bee"),
    "own neighbours": (lambda: own_neighbours(1.0, GROUP_OF_FOUR, 4), "bee", "cat"),
    "unknown words kept": (lambda: KeepsUnknown(1.0, table=TABLE, unknown="uniform"), "ant", "secret"),
    "InferDPT around a broken one": (lambda: InferDpt(louder(2.0, TABLE, near=1), str), "ant", "fox"),
}


AT_LENGTH = ("plain", "plain, one near", "metric", "group", "InferDPT")
"""One of each mechanism: a million draws for each of the two texts."""


def with_a_million(names: Iterable[str], at_length: Sequence[str], few: int) -> list[Any]:
    """Every name with ``few`` draws, and those ``at_length`` with a million."""
    long = [pytest.param(name, 1_000_000, marks=pytest.mark.slow) for name in at_length]
    return [*((name, few) for name in names), *long]


def table_of(mechanism: TextMechanism) -> Any:
    return getattr(getattr(mechanism, "_mechanism", mechanism), "table")  # noqa: B009


def text_claim(mechanism: TextMechanism, one: str, other: str) -> float:
    """What the mechanism's own event says about two texts."""
    event = mechanism.quote([one])
    assert isinstance(event, TokensReplaced)
    differing = [(a, b) for a, b in zip(one.split(), other.split(), strict=True) if a != b]
    if event.unit == "metric-epsilon":
        return event.epsilon * float(sum(table_of(mechanism).distance(a, b) for a, b in differing))
    return event.epsilon * len(differing)


def text_epsilon(mechanism: TextMechanism, one: str, other: str, draws: int) -> float:
    counts = [Counter(mechanism.protect([text] * draws).value) for text in (one, other)]
    assert all(count.total() == draws for count in counts)
    return pure_epsilon(*counts)


@pytest.mark.parametrize(("name", "draws"), with_a_million(PAIRS, AT_LENGTH, 10_000))
def test_no_draws_of_text_refute_the_claim(name: str, draws: int) -> None:
    make, one, other = PAIRS[name]
    mechanism = make()
    claim = text_claim(mechanism, one, other)
    found = text_epsilon(mechanism, one, other, draws)
    assert found <= claim
    if name in ("plain, one near", "metric", "group") and draws == 1_000_000:
        assert found > 0.85 * claim, "nothing is to be seen there"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_twin_is_caught(name: str) -> None:
    """By so far that it is missed less than once in a million times."""
    make, one, other = BROKEN[name]
    mechanism = make()
    assert text_epsilon(mechanism, one, other, 30_000) > text_claim(mechanism, one, other)


VECTOR_PAIRS = {
    "opposite": ([1.0], [-1.0]),
    "longer than the clip": ([LONG], [-LONG]),
    "short and long": ([0.0], [-LONG]),
    "all coordinates": ([LONG] * 4, [-LONG] * 4),
}


def refuted(one: NDArray[np.float64], other: NDArray[np.float64], event: VectorsNoised) -> bool:
    """Whether draws exceed, at any δ, what the tightest accountant says of the event."""
    return any(approximate_epsilon(one, other, delta) > told(event, delta) for delta in DELTAS)


@functools.cache
def told(event: VectorsNoised, delta: float) -> float:
    counted = PldAccountant()
    counted.compose(event)
    return counted.epsilon(delta)


def projected(
    draws: int, made: GaussianEmbedding, inputs: tuple[list[float], list[float]]
) -> list[NDArray[np.float64]]:
    """Draws for both inputs, along the line between them."""
    one, other = map(np.array, inputs)
    direction = (one - other) / np.linalg.norm(one - other)
    return [made.protect(np.tile(x, (draws, 1))).value @ direction for x in (one, other)]


@pytest.mark.parametrize(("name", "draws"), with_a_million(VECTOR_PAIRS, ["opposite", "longer than the clip"], 5_000))
def test_no_draws_of_vectors_refute_the_claim(name: str, draws: int) -> None:
    made = GaussianEmbedding(noise_multiplier=1.0)
    one, other = projected(draws, made, VECTOR_PAIRS[name])
    event = made.quote(VECTOR_PAIRS[name][0])
    assert not refuted(one, other, event)
    if name != "short and long" and draws == 1_000_000:
        assert approximate_epsilon(one, other, 0.1) > 0.85 * told(event, 0.1), "nothing is to be seen there"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (ThinGaussian, "opposite"),
        (Unclipped, "longer than the clip"),
        (ClippedByCoordinate, "all coordinates"),
    ],
)
def test_a_broken_gaussian_is_caught(make: Callable[..., GaussianEmbedding], name: str) -> None:
    made = make(noise_multiplier=1.0)
    assert refuted(*projected(10_000, made, VECTOR_PAIRS[name]), made.quote(VECTOR_PAIRS[name][0]))


@pytest.mark.parametrize(("make", "caught"), [(GaussianEmbedding, False), (OneNoiseForAll, True)])
def test_noise_is_drawn_anew_for_each_vector_of_a_call(
    make: Callable[..., GaussianEmbedding], caught: bool
) -> None:
    made = make(noise_multiplier=1.0)
    differences = []
    for second in (1.0, -1.0):
        drawn = made.protect(np.tile([[1.0], [second]], (10_000, 1))).value.reshape(-1, 2)
        differences.append(drawn[:, 0] - drawn[:, 1])
    assert refuted(*differences, made.quote(np.ones(1))) == caught


@pytest.mark.parametrize(("make", "caught"), [(GaussianEmbedding, False), (CoarseNoise, True)])
def test_the_last_bits_of_a_number_tell_nothing(make: Callable[..., GaussianEmbedding], caught: bool) -> None:
    """Mironov (2012): which sums a floating-point number can be tells what was added."""
    made = make(noise_multiplier=1.0)
    reachable = []
    for x in (1 / 3, 0.1):
        drawn = made.protect(np.full((10_000, 1), x)).value[:, 0]
        noise = drawn - float(np.trunc(2**26 / 3)) / 2**26
        reachable.append(
            (noise == noise.astype(np.float16)).astype(float) + 1e-9 * np.arange(10_000) / 10_000
        )
    assert refuted(*reachable, made.quote(np.ones(1))) == caught


def flooding(
    made: NoiseFlooding, draws: int, publications: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over publications of values whose errors are all at one end of what was promised, or at none: each value
    is one draw, moved as far as a whole publication may be."""
    shift = math.sqrt(made.values) * made.error_bound
    return tuple(  # type: ignore[return-value]
        np.mean([made.publish(np.full(draws, 5.0 + x)).value for _ in range(publications)], axis=0)
        for x in (shift, 0.0)
    )


def promised(made: NoiseFlooding, publications: int) -> tuple[VectorsNoised, float]:
    """That many Gaussian releases with the noise that its event names, and the total variation that follows."""
    event = made.quote(np.zeros(1))
    multiplier = event.noise / (math.sqrt(made.values) * made.error_bound)
    noised = VectorsNoised(vectors=publications, noise_multiplier=multiplier, clip=1.0, dimensions=1)
    return noised, 2.0**-event.statistical_bits / 2 * math.sqrt(publications / event.query_limit)


@pytest.mark.parametrize(
    ("draws", "publications"), [(4_000, 1), (2_000, 2), pytest.param(500_000, 1, marks=pytest.mark.slow)]
)
def test_no_published_values_refute_the_claim_of_flooding(draws: int, publications: int) -> None:
    made = NoiseFlooding(0.25, 2 * publications, values=draws, statistical_bits=0.01)
    found = flooding(made, draws, publications)
    event, distance = promised(made, publications)
    assert not refuted(*found, event)
    assert 0 < advantage(*found) <= distance


@pytest.mark.parametrize(("make", "publications"), [(thin_flooding, 1), (flooding_for_one, 4)])
def test_broken_flooding_is_caught(make: Callable[..., NoiseFlooding], publications: int) -> None:
    made = make(error_bound=0.25, query_limit=2 * publications, values=2_500, statistical_bits=0.01)
    assert advantage(*flooding(made, 2_500, publications)) > promised(made, publications)[1]


def test_shares_are_bounded_as_clopper_and_pearson_say() -> None:
    for hits, draws in ((0, 10), (3, 10), (10, 10)):
        low, high = share_below(hits, draws, 0.025), share_above(hits, draws, 0.025)
        chances = [math.comb(10, k) for k in range(11)]
        at_least = sum(c * low**k * (1 - low) ** (10 - k) for k, c in enumerate(chances) if k >= hits)
        at_most = sum(c * high**k * (1 - high) ** (10 - k) for k, c in enumerate(chances) if k <= hits)
        assert low == 0 if hits == 0 else at_least == pytest.approx(0.025)
        assert high == 1 if hits == draws else at_most == pytest.approx(0.025)


def test_bounds_are_rarely_above_the_truth() -> None:
    """At a failure rate of a tenth, of 200 bounds on two coins of known ε, far fewer than a third are wrong."""
    draw = np.random.default_rng(5)
    p, q = 0.6, 0.3
    wrong = 0
    for _ in range(200):
        one, other = draw.binomial(1000, p), draw.binomial(1000, q)
        counts = [{"head": int(n), "tail": 1000 - int(n)} for n in (one, other)]
        wrong += pure_epsilon(*counts, failure=0.1) > math.log(p / q)
    assert wrong < 66
