"""A forecast carries the pace of late on, says how sure it is, and says when it knows too little."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_kit import DAY, HOUR, NOON

from fhe_llm.privacy.ledger import Balance, Budget, Window, window_end
from fhe_llm.privacy.reporting.forecast import LOOK_BACK_MS, PARTS, Forecast, Pace, forecast_of
from fhe_llm.privacy.reporting.words import forecast_words

EPSILON = 10**6


def paced(window: Window, charges: list[tuple[int, int]], now: int = NOON) -> Pace:
    """``charges``: so many milliseconds before now, so many ε."""
    pace = Pace(window, now)
    for before, epsilon in charges:
        pace.changed(now - before, epsilon * EPSILON)
    return pace


def balance(spent: int, limit: int | None, window: Window = "lifetime") -> Balance:
    budget = None if limit is None else Budget("epsilon", limit * EPSILON, window)
    return Balance("epsilon", window, spent * EPSILON, 0, budget, window_end(window, NOON))


EVERY_HOUR = [(hour * HOUR, 1) for hour in range(72, 0, -1)]


def test_an_even_pace_is_carried_on_to_the_end_of_the_window() -> None:
    told = forecast_of(balance(12, 40, "day"), paced("day", EVERY_HOUR), NOON)
    assert (told.outlook, told.charges, told.since) == ("lasts", 72, NOON - 72 * HOUR)
    assert told.pace == pytest.approx(24 * EPSILON)
    assert told.left_least == told.left_then == told.left_most == 16 * EPSILON
    assert told.until == NOON + 12 * HOUR
    assert told.runs_out is told.earliest is told.latest is None


def test_it_runs_out_when_the_pace_says() -> None:
    told = forecast_of(balance(12, 15, "day"), paced("day", EVERY_HOUR), NOON)
    assert told.outlook == "runs-out"
    assert told.runs_out == pytest.approx(NOON + 3 * HOUR, abs=1)
    assert told.earliest == pytest.approx(told.runs_out, abs=1)
    assert told.left_then == 0
    lifetime = forecast_of(balance(72, 96), paced("lifetime", EVERY_HOUR), NOON)
    assert lifetime.runs_out == pytest.approx(NOON + DAY, abs=1)
    assert (lifetime.until, lifetime.left_then) == (None, None)


def test_an_uneven_pace_gives_a_range_around_its_mean() -> None:
    uneven = [(hour * HOUR, 1 if hour % 18 else 40) for hour in range(72, 0, -1)]
    told = forecast_of(balance(0, 500), paced("lifetime", uneven), NOON)
    assert told.pace is not None
    assert told.slowest is not None
    assert told.fastest is not None
    assert told.runs_out is not None
    assert told.earliest is not None
    assert told.slowest < told.pace < told.fastest
    assert told.earliest < told.runs_out
    assert told.latest is None or told.latest > told.runs_out


def test_a_budget_that_lasts_at_the_mean_may_still_run_out_at_the_fastest() -> None:
    uneven = [(hour * HOUR, 20) for hour in (72, 60, 12, 9, 3)]
    told = forecast_of(balance(0, 25, "day"), paced("day", uneven), NOON)
    assert told.outlook == "lasts"
    assert told.earliest is not None
    assert told.left_least == 0
    assert "at the fastest it runs out on" in forecast_words(told, "epsilon", "day")


@pytest.mark.parametrize(
    ("charges", "outlook"),
    [
        ([], "idle"),
        ([(40 * DAY, 5)], "idle"),
        ([(HOUR, 1)], "too-little-data"),
        ([(2 * DAY, 1), (DAY, 1), (HOUR, 1), (HOUR // 2, 1)], "too-little-data"),
        ([(2 * DAY, 1), *[(1000 + i, 1) for i in range(50)]], "too-little-data"),
        ([(0, 1)] * 9, "too-little-data"),
        ([(2 * DAY, 1), (DAY, 1), (DAY, 1), (DAY, 1)], "too-little-data"),
        ([(3 * DAY, 1), (HOUR, 1), (HOUR, 1), (HOUR // 2, 1), (1, 1)], "too-little-data"),
        ([(2 * DAY, 1), (DAY, 1), (DAY, 1), (HOUR, 1), (1, 1)], "too-little-data"),
        ([(3 * DAY, 1), (DAY, 1), (DAY, 1), (HOUR, 1), (1, 1)], "runs-out"),
    ],
)
def test_too_little_is_not_forecast(charges: list[tuple[int, int]], outlook: str) -> None:
    told = forecast_of(balance(9, 10), paced("lifetime", charges), NOON)
    assert told.outlook == outlook
    assert (told.pace is None) == (outlook != "runs-out")


def test_what_was_given_back_is_not_spent() -> None:
    pace = paced("day", EVERY_HOUR)
    for hour in range(72, 0, -1):
        pace.changed(NOON - hour * HOUR + 1, -EPSILON // 2)
    told = forecast_of(balance(12, 40, "day"), pace, NOON)
    assert told.pace == pytest.approx(12 * EPSILON)
    assert told.charges == 72


def test_only_the_time_looked_back_on_counts() -> None:
    for window, look_back in LOOK_BACK_MS.items():
        old = [(look_back + 1 + i, 1000) for i in range(PARTS, 0, -1)]
        new = [(look_back * part // PARTS, 1) for part in range(PARTS, 0, -1)]
        told = forecast_of(balance(12, 10**6, window), paced(window, old + new), NOON)
        assert told.pace == pytest.approx(PARTS * EPSILON * DAY / look_back), window


@pytest.mark.parametrize(
    ("of", "outlook", "words"),
    [
        (balance(4, None), "no-budget", "nothing to run out"),
        (balance(4, 4), "exhausted", "Nothing is left, and it does not refresh."),
        (balance(5, 4, "day"), "exhausted", "Nothing is left until"),
        (balance(0, 0), "exhausted", "does not refresh"),
        (balance(0, 10**6), "lasts", "it lasts for decades"),
    ],
)
def test_every_outlook_has_its_words(of: Balance, outlook: str, words: str) -> None:
    slow = [(hour * HOUR, 1) for hour in (700, 500, 300, 200, 100, 1)]
    told = forecast_of(of, paced(of.window, slow), NOON)
    assert told.outlook == outlook
    assert words in forecast_words(told, "epsilon", of.window)


@given(
    st.lists(st.tuples(st.integers(0, 100 * DAY), st.integers(-5, 50)), max_size=40),
    st.sampled_from(["hour", "day", "week", "30days", "lifetime"]),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_every_forecast_is_in_order(charges: Any, window: Any, spent: int, limit: int) -> None:
    told = forecast_of(balance(spent, limit, window), paced(window, sorted(charges, reverse=True)), NOON)
    assert forecast_words(told, "epsilon", window)
    if told.pace is None:
        assert told.runs_out is told.earliest is told.left_then is None
        return
    assert 0 <= (told.slowest or 0) <= told.pace <= (told.fastest or 0)
    ends = [end for end in (told.earliest, told.runs_out, told.latest) if end is not None]
    assert ends == sorted(ends)
    assert all(end >= NOON for end in ends)
    assert told.until is None or all(end < told.until for end in ends)
    assert (told.outlook == "runs-out") == (told.runs_out is not None)
    if told.left_then is not None:
        assert 0 <= (told.left_least or 0) <= told.left_then <= (told.left_most or 0) <= limit * EPSILON


def test_it_is_plain_data() -> None:
    assert Forecast("idle").to_dict()["outlook"] == "idle"
