"""Accountants keep the contract and agree with ``dp-accounting`` on random sequences of events."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from accountant_contract import DELTA, AccountantContract, random_events, tokens, vectors
from dp_accounting import dp_event, pld, rdp
from dp_accounting.privacy_accountant import NeighboringRelation

from fhe_llm.errors import BudgetExhaustedError, PrivacyParameterError
from fhe_llm.privacy.accountant import (
    Accountant,
    PldAccountant,
    PureAccountant,
    RdpAccountant,
    ZcdpAccountant,
)
from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.charge import UNIT_INFO, zcdp_budget
from fhe_llm.privacy.events import Event, TokensReplaced
from fhe_llm.privacy.privacy_filter import PrivacyFilter, PureFilter, RenyiFilter, ZcdpFilter


class TestPure(AccountantContract):
    gaussian = False

    def make(self) -> Accountant:
        return PureAccountant()


class TestRdp(AccountantContract):
    def make(self) -> Accountant:
        return RdpAccountant()


class TestZcdp(AccountantContract):
    def make(self) -> Accountant:
        return ZcdpAccountant()


class TestPld(AccountantContract):
    def make(self) -> Accountant:
        return PldAccountant()


def theirs(make: Callable[..., Any], events: Sequence[Event]) -> float:
    """ε by ``dp-accounting``'s own accountant, told of every token and vector one by one."""
    gaussian = not isinstance(events[0], TokensReplaced)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE if gaussian else NeighboringRelation.REPLACE_ONE
    counted = make(neighboring_relation=relation)
    for event in events:
        if isinstance(event, TokensReplaced):
            for _ in range(event.tokens):
                noise = 2 / (1 + math.exp(event.epsilon))
                counted.compose(dp_event.RandomizedResponseDpEvent(noise, 2))
        else:
            for _ in range(event.vectors):  # type: ignore[attr-defined]
                counted.compose(dp_event.GaussianDpEvent(event.noise_multiplier))  # type: ignore[attr-defined]
    return float(counted.get_epsilon(DELTA))


@pytest.mark.parametrize(
    ("seed", "gaussian", "kind"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] != 1 and case[1:] == (True, "pld") else ())
        for case in itertools.product(range(3), [False, True], ["rdp", "pld"])
    ],
)
def test_random_sequences_cost_what_dp_accounting_says(seed: int, gaussian: bool, kind: str) -> None:
    events = random_events(seed, gaussian)
    ours = RdpAccountant() if kind == "rdp" else PldAccountant()
    for event in events:
        ours.compose(event)
    make = rdp.RdpAccountant if kind == "rdp" else pld.PLDAccountant
    assert ours.epsilon(DELTA) == pytest.approx(theirs(make, events), rel=2e-3)


def test_the_library_still_counts_a_repeated_response_once_which_we_go_around() -> None:
    repeated = pld.PLDAccountant(NeighboringRelation.REPLACE_ONE)
    event = dp_event.RandomizedResponseDpEvent(2 / (1 + math.e), 2)
    repeated.compose(dp_event.SelfComposedDpEvent(event, 10))
    ours = PldAccountant()
    ours.compose(tokens(10, 1.0))
    assert ours.epsilon(DELTA) == pytest.approx(10.0, rel=1e-3)
    assert repeated.get_epsilon(DELTA) < 1.01, (
        "mended upstream: PldAccountant may use the library's accountant"
    )


def test_tighter_accountants_never_claim_more() -> None:
    for gaussian in (False, True):
        events = random_events(9, gaussian)
        pure = [PureAccountant()] if not gaussian else []
        counted = [PldAccountant(), RdpAccountant(), ZcdpAccountant(), *pure]
        for accountant in counted:
            for event in events:
                accountant.compose(event)
        tight, renyi, zcdp, *basic = (accountant.epsilon(DELTA) for accountant in counted)
        assert tight <= renyi * (1 + 1e-3)
        assert renyi <= zcdp * (1 + 1e-2)
        assert all(tight <= value * (1 + 1e-9) for value in basic)


def test_a_hundred_tokens_at_one_are_a_hundred() -> None:
    assert charge_of(tokens(100, 1.0)) == {"epsilon": 100 * UNIT_INFO["epsilon"].scale}
    assert charge_of(tokens(100, 0.1)) == {"epsilon": 10 * UNIT_INFO["epsilon"].scale}


def test_charges_are_rounded_up_never_down() -> None:
    assert charge_of(tokens(3, 0.0000001)) == {"epsilon": 3}
    assert charge_of(vectors(1, 1e6)) == {"rho": 1}
    scale = UNIT_INFO["rho"].scale
    assert charge_of(vectors(1, 1.0)) == {"rho": scale // 2}
    assert charge_of(vectors(1, 3.0))["rho"] / scale >= 1 / 18


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-6), (8.0, 1e-9), (0.01, 1e-3), (100.0, 0.5)])
def test_a_zcdp_budget_never_exceeds_what_it_stands_for(epsilon: float, delta: float) -> None:
    rho = zcdp_budget(epsilon, delta)
    assert rho + 2 * math.sqrt(rho * math.log(1 / delta)) <= epsilon
    more = rho * (1 + 1e-9)
    assert more + 2 * math.sqrt(more * math.log(1 / delta)) > epsilon


@pytest.mark.parametrize(
    "make", [lambda: PureFilter(10.0), lambda: ZcdpFilter(10.0, 1e-6), lambda: RenyiFilter(10.0, 1e-6, 8.0)]
)
def test_a_filter_refuses_what_would_overspend_and_nothing_else(make: Callable[[], PrivacyFilter]) -> None:
    kept, event, spent = make(), tokens(1, 0.3), 0
    while kept.admits(event):
        kept.spend(event)
        spent += 1
    with pytest.raises(BudgetExhaustedError, match=r"left of ε=10"):
        kept.spend(event)
    left = kept.remaining
    assert left >= 0
    if kept.admits(tokens(1, 0.01)):
        kept.spend(tokens(1, 0.01))
        assert kept.remaining < left
    counted = RdpAccountant() if not isinstance(kept, PureFilter) else PureAccountant()
    for _ in range(spent):
        counted.compose(event)
    assert counted.epsilon(1e-6) <= 10.0 * (1 + 1e-9)


def test_filters_refuse_what_makes_no_sense() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PrivacyParameterError):
            PureFilter(bad)
        with pytest.raises(PrivacyParameterError):
            ZcdpFilter(bad, 1e-6)
    with pytest.raises(PrivacyParameterError, match="order"):
        RenyiFilter(1.0, 1e-6, 2.0)
    with pytest.raises(PrivacyParameterError, match="unit"):
        PureFilter(1.0).spend(vectors(1, 1.0))
