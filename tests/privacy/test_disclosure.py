"""Publications of decrypted values: as many as were planned, under noise for all of them, and none without a budget."""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forking import forked

from fhe_llm.errors import BudgetExhaustedError, PrivacyParameterError
from fhe_llm.privacy.account import Account
from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.disclosure import NoiseFlooding
from fhe_llm.privacy.events import ValuesDisclosed
from fhe_llm.privacy.ledger import Budget


@pytest.mark.parametrize(
    ("bound", "queries", "values", "bits"), [(1.0, 1, 1, 40.0), (2.0**-20, 1000, 768, 128.0)]
)
def test_the_noise_is_what_the_formula_asks_for(bound: float, queries: int, values: int, bits: float) -> None:
    made = NoiseFlooding(bound, queries, values=values, statistical_bits=bits)
    assert made.noise == pytest.approx(2**bits * math.sqrt(queries * values) * bound, rel=1e-9)
    rho = Fraction(values) * Fraction(bound) ** 2 / (2 * Fraction(made.noise) ** 2)
    advantage_squared = 2 * queries * rho
    assert advantage_squared <= Fraction(2) ** int(-2 * bits)


def test_publications_end_where_they_were_planned_to() -> None:
    made = NoiseFlooding(2.0**-20, 3, values=4)
    for left in (3, 2, 1):
        assert made.left == left
        made.publish([1.0, 2.0])
    with pytest.raises(BudgetExhaustedError, match="3 publications were planned for this key") as caught:
        made.publish([1.0])
    assert caught.value.unit == "queries"
    assert made.left == 0


def test_what_is_refused_counts_nothing_and_what_is_asked_draws_nothing() -> None:
    made = NoiseFlooding(1.0, 1, values=2)
    for bad in ([1.0, 2.0, 3.0], [math.nan], []):
        with pytest.raises(PrivacyParameterError):
            made.publish(bad)
    assert made.quote([1.0]) == made.quote([2.0])
    assert made.left == 1


def test_threads_together_publish_no_more_than_was_planned() -> None:
    made = NoiseFlooding(2.0**-20, 7, values=1)
    done, start = [], threading.Barrier(4)

    def use() -> None:
        start.wait()
        for _ in range(5):
            try:
                done.append(made.publish([1.0]).value[0])
            except BudgetExhaustedError:
                return

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 7
    assert len(set(done)) == 7


def test_the_event_says_what_was_done() -> None:
    made = NoiseFlooding(0.5, 10, values=8, statistical_bits=20)
    drawn = made.publish([1, 2, 3])
    assert drawn.event == made.quote([1, 2, 3])
    assert drawn.event == ValuesDisclosed(
        queries=1, values=3, noise=made.noise, statistical_bits=20.0, query_limit=10
    )
    assert charge_of(drawn.event) == {"queries": 1}
    assert drawn.value.shape == (3,)


def test_nothing_is_published_where_no_budget_was_set(tmp_path: Path) -> None:
    made = NoiseFlooding(2.0**-20, 10, values=4)
    account = Account.open("ann", tmp_path / "ledger.db")
    with account.ledger:
        for _ in range(2):
            with pytest.raises(BudgetExhaustedError, match="no budget of queries is set"):
                account.pay(made.quote([1.0]), lambda: made.publish([1.0]))
        account.ledger.set_budget("ann", Budget.of(100, "epsilon"))
        with pytest.raises(BudgetExhaustedError, match="no budget of queries is set"):
            account.pay(made.quote([1.0]), lambda: made.publish([1.0]))
        assert made.left == 10, "nothing may be drawn before it is paid for"
        account.ledger.set_budget("ann", Budget.of(2, "queries"))
        for _ in range(2):
            account.pay(made.quote([1.0]), lambda: made.publish([1.0]))
        with pytest.raises(BudgetExhaustedError, match="0 disclosures of 2 disclosures in all is left"):
            account.pay(made.quote([1.0]), lambda: made.publish([1.0]))
    assert made.left == 8


def test_values_keep_their_place_under_the_noise() -> None:
    made = NoiseFlooding(1e-12, 1, values=3, statistical_bits=20)
    drawn = made.publish([1.0, -2.0, 1e6]).value
    assert np.abs(drawn - [1.0, -2.0, 1e6]).max() < 10 * made.noise


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 2.0**-201, 2.0**201, True, "1"])
def test_a_bound_that_makes_no_sense_is_refused(bad: Any) -> None:
    with pytest.raises(PrivacyParameterError, match="error_bound="):
        NoiseFlooding(bad, 1, values=1)


@pytest.mark.parametrize("what", ["query_limit", "values"])
@pytest.mark.parametrize("bad", [0, -1, 1.0, math.nan, True, (1 << 32) + 1, "1", None])
def test_a_count_that_makes_no_sense_is_refused(what: str, bad: Any) -> None:
    with pytest.raises(PrivacyParameterError, match=f"{what}="):
        NoiseFlooding(1.0, **{"query_limit": 1, "values": 1, what: bad})


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 128.5, True])
def test_bits_that_make_no_sense_are_refused(bad: Any) -> None:
    with pytest.raises(PrivacyParameterError, match="statistical_bits="):
        NoiseFlooding(1.0, 1, values=1, statistical_bits=bad)


@pytest.mark.parametrize(
    "bad",
    [np.ones((2, 2)), np.float64(1.0), np.ones(5), ["a"], [True], [1j], [math.nan], [math.inf], [1e400], []],
)
def test_values_that_cannot_be_published_are_refused(bad: Any) -> None:
    made = NoiseFlooding(1.0, 9, values=4)
    for call in (made.quote, made.publish):
        with pytest.raises(PrivacyParameterError, match="cannot publish"):
            call(bad)
    assert made.left == 9


def test_forked_children_draw_anew() -> None:
    made = NoiseFlooding(1.0, 9, values=1)

    def draw() -> bytes:
        return made.publish([1.0]).value.tobytes()

    with forked(draw) as one, forked(draw) as other:
        assert len({one(), other(), draw()}) == 3
