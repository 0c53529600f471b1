"""What every accountant must do, whatever it counts with."""

from __future__ import annotations

import math
import random

import pytest

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.accountant import Accountant
from fhe_llm.privacy.events import Event, IdentifiersReplaced, TokensReplaced, VectorsNoised

DELTA = 1e-6


def tokens(count: int, epsilon: float, unit: str = "epsilon") -> TokensReplaced:
    return TokensReplaced(tokens=count, epsilon=epsilon, unit=unit, mechanism="exponential")  # type: ignore[arg-type]


def vectors(count: int, multiplier: float) -> VectorsNoised:
    return VectorsNoised(vectors=count, noise_multiplier=multiplier, clip=1.0, dimensions=8)


def random_events(seed: int, gaussian: bool) -> list[Event]:
    draw = random.Random(seed)
    if gaussian:
        return [vectors(draw.randint(1, 20), round(draw.uniform(1.0, 20.0), 3)) for _ in range(8)]
    return [tokens(draw.randint(1, 12), draw.choice([0.05, 0.1, 0.25, 0.5, 1.0])) for _ in range(8)]


class AccountantContract:
    """Inherit and give ``make``; ``gaussian`` where vectors are counted too."""

    gaussian = True

    def make(self) -> Accountant:
        raise NotImplementedError

    def test_nothing_costs_nothing(self) -> None:
        assert self.make().epsilon(DELTA) == 0.0
        assert self.make().unit is None

    def test_every_event_costs_more(self) -> None:
        counted, last = self.make(), 0.0
        for _ in range(5):
            counted.compose(tokens(2, 0.5))
            assert counted.epsilon(DELTA) > last
            last = counted.epsilon(DELTA)

    def test_counts_are_the_same_as_repeated_events(self) -> None:
        at_once, one_by_one = self.make(), self.make()
        at_once.compose(tokens(30, 0.2))
        for _ in range(30):
            one_by_one.compose(tokens(1, 0.2))
        assert at_once.epsilon(DELTA) == pytest.approx(one_by_one.epsilon(DELTA), rel=1e-3)

    def test_the_order_of_events_does_not_matter(self) -> None:
        for gaussian in (False, *([True] if self.gaussian else [])):
            events = random_events(3, gaussian)
            forward, backward = self.make(), self.make()
            for event in events:
                forward.compose(event)
            for event in reversed(events):
                backward.compose(event)
            assert forward.epsilon(DELTA) == pytest.approx(backward.epsilon(DELTA), rel=1e-6)

    def test_units_are_never_added_to_each_other(self) -> None:
        counted = self.make()
        counted.compose(tokens(1, 1.0))
        before = counted.epsilon(DELTA)
        for other in (tokens(1, 1.0, "metric-epsilon"), tokens(1, 1.0, "group-epsilon"), vectors(1, 1.0)):
            assert not counted.supports(other)
            with pytest.raises(PrivacyParameterError, match="one accountant for each unit"):
                counted.compose(other)
        assert counted.epsilon(DELTA) == before

    def test_events_without_a_claim_are_refused(self) -> None:
        with pytest.raises(PrivacyParameterError, match="identifiers-replaced"):
            self.make().compose(IdentifiersReplaced(replaced=1))

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, math.nan, True])
    def test_a_delta_that_makes_no_sense_is_refused(self, delta: float) -> None:
        with pytest.raises(PrivacyParameterError, match="delta"):
            self.make().epsilon(delta)

    def test_very_large_sums_stay_finite_and_quick(self) -> None:
        counted = self.make()
        counted.compose(tokens(5000, 20.0))
        assert 0 < counted.epsilon(DELTA) < math.inf
