"""Whatever happens to a ledger, the report's series ends where the ledger's counters stand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_kit import DAY, HOUR, NOON, Clock, tokens, work

from fhe_llm.errors import BudgetExhaustedError
from fhe_llm.privacy import Budget, SqliteLedger
from fhe_llm.privacy.events import VectorsNoised
from fhe_llm.privacy.ledger import WINDOW_MS, WINDOWS, Ledger, Reservation
from fhe_llm.privacy.reporting import report_on
from fhe_llm.privacy.reporting.report import Line
from fhe_llm.privacy.reporting.series import LIFETIME_STEPS, SHOWN, SeriesTally

EPSILON = 10**6
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0, 1, 59_000, HOUR // 3, HOUR, DAY // 2, 8 * DAY, 40 * DAY])),
    st.tuples(st.just("back"), st.sampled_from([1, HOUR // 2, 3 * HOUR, 2 * DAY])),
    st.tuples(st.just("charge"), st.integers(1, 40)),
    st.tuples(st.just("reserve"), st.integers(1, 40)),
    st.tuples(st.just("work"), st.integers(1, 9)),
    st.tuples(st.just("vectors"), st.integers(1, 3)),
    st.tuples(st.just("commit"), st.integers(0, 9)),
    st.tuples(st.just("less"), st.integers(0, 9)),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("budget"), st.sampled_from([(w, n) for w in WINDOWS for n in (60, 300)])),
)


def play(ledger: Ledger, clock: Clock, steps: list[tuple[str, Any]]) -> None:
    """Do ``steps``; what the ledger refuses does not happen."""
    held: list[Reservation] = []
    for number, (step, value) in enumerate(steps):
        key = f"k{number}"
        if step in ("wait", "back"):
            clock.now += value if step == "wait" else -value
        elif step == "budget":
            ledger.set_budget("ann", Budget.of(value[1], "epsilon", value[0]))
        elif step in ("commit", "less", "release"):
            if held:
                end(ledger, held.pop(value % len(held)), step)
        else:
            spend(ledger, step, value, key, held)


def end(ledger: Ledger, reservation: Reservation, step: str) -> None:
    if step == "release":
        ledger.release(reservation)
    else:
        ledger.commit(reservation, tokens(1) if step == "less" else None)


def spend(ledger: Ledger, step: str, value: int, key: str, held: list[Reservation]) -> None:
    try:
        if step == "reserve":
            held.append(ledger.reserve("ann", tokens(value), key=key))
        elif step == "charge":
            ledger.charge("ann", tokens(value), key=key)
        elif step == "work":
            ledger.charge("ann", work(value, 100 * value), key=key)
        else:
            ledger.charge(
                "ann", VectorsNoised(vectors=value, noise_multiplier=9.0, clip=1.0, dimensions=8), key=key
            )
    except BudgetExhaustedError:
        pass


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=30))
def test_a_series_ends_at_the_balance_and_the_history_adds_up(steps: list[tuple[str, Any]]) -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, SqliteLedger(Path(folder) / "l", clock=clock) as ledger:
        ledger.set_budget("ann", Budget.of(500, "epsilon"))
        ledger.set_budget("ann", Budget.of(1, "rho", "week"))
        ledger.set_budget("ann", Budget.of(40, "rounds", "hour"))
        play(ledger, clock, steps)
        (report,) = report_on(ledger).principals
        assert report.adds_up is True
        assert {(line.unit, line.window) for line in report.lines} == {
            (balance.unit, balance.window) for balance in ledger.balances("ann")
        }
        for line in report.lines:
            last = line.series.points[-1]
            limit = line.balance.budget.limit if line.balance.budget else None
            assert (last.spent, last.limit, last.left) == (line.balance.spent, limit, line.balance.left)
            times = [point.time for point in line.series.points]
            assert times == sorted(times)
        spent: dict[str, int] = {}
        for tally in report.exposure:
            for unit, amount in tally.spent.items():
                spent[unit] = spent.get(unit, 0) + amount
        lifetimes = {x.unit: x.balance.spent for x in report.lines if x.window == "lifetime"}
        assert spent == {unit: amount for unit, amount in lifetimes.items() if amount}


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[[Clock], SqliteLedger]:
    return lambda clock: SqliteLedger(tmp_path / "ledger", clock=clock)


def line_of(ledger: Ledger, unit: str, window: str) -> Line:
    (report,) = report_on(ledger, "ann").principals
    return next(line for line in report.lines if (line.unit, line.window) == (unit, window))


def told(line: Line) -> list[tuple[int, int, int | None]]:
    """Hours after :data:`NOON`, ε spent, ε of the limit."""
    return [
        ((point.time - NOON) // HOUR, point.spent // 10**6, point.limit and point.limit // 10**6)
        for point in line.series.points
    ]


def test_a_window_that_ends_falls_to_zero_where_it_ends(ledger: Callable[[Clock], SqliteLedger]) -> None:
    clock = Clock()
    with ledger(clock) as opened:
        opened.set_budget("ann", Budget.of(10, "epsilon", "day"))
        clock.now += HOUR
        opened.charge("ann", tokens(4), key="a")
        clock.now += HOUR
        opened.charge("ann", tokens(3), key="b")
        clock.now += 2 * DAY
        opened.charge("ann", tokens(9), key="c")
        clock.now += 2 * HOUR
        assert told(line_of(opened, "epsilon", "day")) == [
            (0, 0, 10),
            (1, 4, 10),
            (2, 7, 10),
            (12, 0, 10),
            (50, 9, 10),
            (52, 9, 10),
        ]
        assert told(line_of(opened, "epsilon", "lifetime"))[-1] == (52, 16, None)
        clock.now += DAY
        assert told(line_of(opened, "epsilon", "day"))[-2:] == [(60, 0, 10), (76, 0, 10)]


def test_what_is_given_back_returns_to_the_window_it_was_taken_in(
    ledger: Callable[[Clock], SqliteLedger],
) -> None:
    clock = Clock()
    with ledger(clock) as opened:
        opened.set_budget("ann", Budget.of(10, "epsilon", "day"))
        early = opened.reserve("ann", tokens(5), key="a")
        clock.now += DAY
        late = opened.reserve("ann", tokens(4), key="b")
        clock.now += HOUR
        opened.release(early)
        assert told(line_of(opened, "epsilon", "day"))[-1][1] == 4
        assert told(line_of(opened, "epsilon", "lifetime"))[-1][1] == 4
        clock.now += HOUR
        opened.commit(late, tokens(1))
        assert told(line_of(opened, "epsilon", "day"))[-1][1] == 1


def test_a_budget_that_is_changed_shows_from_then_on(ledger: Callable[[Clock], SqliteLedger]) -> None:
    clock = Clock()
    with ledger(clock) as opened:
        opened.set_budget("ann", Budget.of(10, "epsilon"))
        clock.now += HOUR
        opened.charge("ann", tokens(4), key="a")
        clock.now += HOUR
        opened.set_budget("ann", Budget.of(3, "epsilon"))
        assert told(line_of(opened, "epsilon", "lifetime"))[1:3] == [(1, 4, 10), (2, 4, 3)]
        assert line_of(opened, "epsilon", "lifetime").series.points[-1].left == 0


@pytest.mark.parametrize("window", WINDOWS)
def test_points_stay_few_however_long_the_history_is(window: Any) -> None:
    length = WINDOW_MS[window] or 365 * DAY
    series = SeriesTally("epsilon", window, NOON, NOON + 100 * length)
    for charge in range(40_000):
        series.charged(NOON + charge * length // 400, 1)
    points = series.finished(NOON + 100 * length).points
    windows, parts = SHOWN.get(window, (1, LIFETIME_STEPS))
    assert windows * parts // 2 < len(points) <= windows * (parts + 1) + 2
    assert points[-1].time == NOON + 100 * length
    assert window != "lifetime" or points[-1].spent == 40_000


@pytest.mark.parametrize("skew", [-3 * HOUR, -1, 0, 1, 3 * HOUR])
def test_a_reader_whose_clock_is_another_one_sees_the_same_balance(
    ledger: Callable[[Clock], SqliteLedger], skew: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    with ledger(clock) as opened:
        opened.set_budget("ann", Budget.of(10, "epsilon", "hour"))
        opened.charge("ann", tokens(4), key="a")
        for clock.now in (NOON + HOUR - 1, NOON + HOUR, NOON + 2 * HOUR):
            skewed = iter([clock.now + skew])
            monkeypatch.setattr(opened, "now", lambda skewed=skewed: next(skewed, clock.now))
            line = line_of(opened, "epsilon", "hour")
            assert (
                line.series.points[-1].spent
                == line.balance.spent
                == (EPSILON * 4 if clock.now < NOON + HOUR else 0)
            )


def test_what_is_reserved_after_the_clock_went_back_returns_to_the_window_that_was_open(
    ledger: Callable[[Clock], SqliteLedger],
) -> None:
    clock = Clock()
    with ledger(clock) as opened:
        opened.set_budget("ann", Budget.of(10, "epsilon", "day"))
        opened.charge("ann", tokens(4), key="a")
        clock.now -= 2 * DAY
        held = opened.reserve("ann", tokens(3), key="b")
        assert told(line_of(opened, "epsilon", "day"))[-1][1] == 7
        opened.release(held)
        line = line_of(opened, "epsilon", "day")
        assert line.series.points[-1].spent == line.balance.spent == 4 * EPSILON
