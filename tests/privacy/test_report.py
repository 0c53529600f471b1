"""The report as data: exposure of every kind kept apart, ρ as ε, what does not add up, and what it leaves out."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from ledger_kit import DAY, HOUR, NOON, Clock, tokens, work

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy import Budget, SqliteLedger
from fhe_llm.privacy.charge import UNITS, zcdp_budget
from fhe_llm.privacy.events import (
    CKKS_ASSUMPTION,
    EVENTS,
    EncryptedCall,
    Event,
    IdentifiersReplaced,
    TextInClear,
    TokensReplaced,
    ValuesDisclosed,
    VectorsNoised,
)
from fhe_llm.privacy.reporting import PrincipalReport, html_page, report_on, text_report
from fhe_llm.privacy.reporting.epsilon import epsilons
from fhe_llm.privacy.reporting.exposure import (
    COUNTED,
    MOST_NOTES,
    OTHERS,
    PROTECTION,
    EventTally,
    ExposureTally,
)
from fhe_llm.privacy.reporting.view import MOST_ALERTS, MOST_SHOWN, view_of
from fhe_llm.privacy.reporting.words import EVENT_WORDS, briefly, number, printable

CALL = EncryptedCall(model="m", rounds=3, bytes_up=10, bytes_down=20)
KEYS = itertools.count(1000)
VECTORS = VectorsNoised(vectors=4, noise_multiplier=10.0, clip=1.0, dimensions=8)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "ledger.sqlite", clock=clock) as opened:
        for budget in (Budget.of(100, "epsilon"), Budget.of(50, "metric-epsilon", "week")):
            opened.set_budget("ann", budget)
        opened.set_budget("ann", Budget.of(1, "rho"))
        opened.set_budget("ann", Budget.of(5, "queries"))
        yield opened


def report_of(ledger: SqliteLedger, principal: str = "ann") -> PrincipalReport:
    (report,) = report_on(ledger, principal).principals
    return report


def tally(ledger: SqliteLedger, name: str, unit: Any = None) -> EventTally:
    return next(t for t in report_of(ledger).exposure if (t.name, t.unit) == (name, unit))


def charge(ledger: SqliteLedger, *events: Event) -> None:
    for event in events:
        ledger.charge("ann", event, key=f"k{next(KEYS)}")


def test_every_kind_is_told_apart(ledger: SqliteLedger) -> None:
    disclosed = ValuesDisclosed(queries=2, values=64, noise=0.1, statistical_bits=40, query_limit=5)
    hidden = IdentifiersReplaced(replaced=3, entity_types=("IBAN",))
    clear = TextInClear(messages=2, characters=70)
    plain, metric = tokens(6), tokens(6, unit="metric-epsilon")
    charge(ledger, plain, metric, VECTORS, disclosed, hidden, clear, CALL, work(7, 99))
    told = [
        (t.name, t.unit, t.kind, t.protection, t.events, t.counts, t.spent)
        for t in report_of(ledger).exposure
    ]
    sent = {"rounds": 7, "ciphertexts": 0, "bytes": 99, "milliseconds": 0}
    assert told == [
        ("tokens-replaced", "epsilon", "text", "mechanism", 1, {"tokens": 6}, {"epsilon": 6 * 10**6}),
        (
            "tokens-replaced",
            "metric-epsilon",
            "text",
            "mechanism",
            1,
            {"tokens": 6},
            {"metric-epsilon": 6 * 10**6},
        ),
        ("vectors-noised", None, "embedding", "mechanism", 1, {"vectors": 4}, {"rho": 2 * 10**7}),
        (
            "values-disclosed",
            None,
            "disclosure",
            "mechanism",
            1,
            {"queries": 2, "values": 64},
            {"queries": 2},
        ),
        ("encrypted-call", None, "text", "encrypted", 1, {"rounds": 3, "bytes_up": 10, "bytes_down": 20}, {}),
        ("identifiers-replaced", None, "text", "unprotected", 1, {"replaced": 3}, {}),
        ("text-in-clear", None, "text", "unprotected", 1, {"messages": 2, "characters": 70}, {}),
        ("work-done", None, "work", "quota", 1, sent, {"rounds": 7, "bytes": 99}),
    ]


def test_encrypted_calls_cost_nothing_under_an_assumption_that_is_named(ledger: SqliteLedger) -> None:
    charge(ledger, CALL, EncryptedCall(model="m", rounds=1, bytes_up=1, bytes_down=1, assumption="another"))
    found = tally(ledger, "encrypted-call")
    assert (found.spent, found.notes) == ({}, {CKKS_ASSUMPTION: 1, "another": 1})
    assert f"assumes {CKKS_ASSUMPTION} (1)" in text_report(report_on(ledger))


def test_a_reservation_counts_as_what_became_of_it(ledger: SqliteLedger) -> None:
    held = [ledger.reserve("ann", tokens(5), key=f"k{i}") for i in range(4)]
    ledger.commit(held[0], tokens(2))
    ledger.release(held[1])
    ledger.commit(held[2], IdentifiersReplaced(replaced=1))
    found = tally(ledger, "tokens-replaced", "epsilon")
    assert (found.events, found.pending, found.counts, found.spent) == (
        2,
        1,
        {"tokens": 7},
        {"epsilon": 7 * 10**6},
    )
    assert tally(ledger, "identifiers-replaced").events == 1
    assert "1 reserved and not settled: may have left" in text_report(report_on(ledger))


def test_no_event_is_forgotten() -> None:
    assert set(PROTECTION) == set(COUNTED) == set(EVENTS.values())
    assert set(EVENT_WORDS) == set(EVENTS)


def test_an_event_that_nobody_listed_counts_as_unprotected() -> None:
    class Leaked(TextInClear):
        name = "leaked"  # type: ignore[misc]  # a class variable of the base

    exposure = ExposureTally()
    exposure.happened(Leaked(messages=1, characters=2), {}, pending=False)
    assert [(t.name, t.protection) for t in exposure.tallies()] == [("leaked", "unprotected")]


def test_assumptions_without_end_are_counted_without_being_kept(ledger: SqliteLedger) -> None:
    exposure = ExposureTally()
    for i in range(1000):
        call = EncryptedCall(model="m", rounds=1, bytes_up=1, bytes_down=1, assumption=f"a{i}")
        exposure.happened(call, {}, pending=False)
    (found,) = exposure.tallies()
    assert len(found.notes) == MOST_NOTES + 1
    assert found.notes[OTHERS] == 1000 - MOST_NOTES


def test_rho_is_told_as_epsilon_by_the_accountants(ledger: SqliteLedger) -> None:
    charge(ledger, VECTORS, VectorsNoised(vectors=9, noise_multiplier=30.0, clip=2.0, dimensions=8))
    line = next(line for line in report_of(ledger).lines if line.unit == "rho")
    zcdp, renyi = line.epsilon
    theirs = RdpAccountant()
    theirs.compose(GaussianDpEvent(10.0), 4).compose(GaussianDpEvent(30.0), 9)
    assert renyi.spent == pytest.approx(theirs.get_epsilon(1e-6), rel=1e-6)
    assert theirs.get_epsilon(1e-6) <= renyi.spent * (1 + 1e-9)
    rho = line.balance.spent / 10**9
    assert zcdp.spent == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e6)), rel=1e-9)
    assert zcdp.limit == pytest.approx(8.4337844, rel=1e-4)
    assert renyi.limit is not None
    assert zcdp.limit is not None
    assert renyi.limit < zcdp.limit
    assert all(not line.epsilon for line in report_of(ledger).lines if line.unit != "rho")


def test_a_budget_set_as_epsilon_reads_back_as_that_epsilon() -> None:
    limit = int(zcdp_budget(8.0, 1e-5) * 10**9)
    zcdp, _ = epsilons("rho", 0, limit, 1e-5)
    assert (zcdp.spent, zcdp.limit) == (0.0, pytest.approx(8.0, rel=1e-6))


def test_without_dp_accounting_the_sum_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dp_accounting")]:
        monkeypatch.setitem(sys.modules, name, None)
    (zcdp,) = epsilons("rho", 10**7, None, 1e-6)
    assert (zcdp.accountant, zcdp.limit) == ("zCDP", None)


def test_a_history_that_was_edited_does_not_add_up(ledger: SqliteLedger, tmp_path: Path) -> None:
    charge(ledger, tokens(6))
    assert report_of(ledger).adds_up is True
    with sqlite3.connect(tmp_path / "ledger.sqlite") as edited:
        edited.execute("UPDATE counters SET spent = 1000000 WHERE unit = 'epsilon'")
    edited.close()
    assert report_of(ledger).adds_up is False
    assert "does not add up" in text_report(report_on(ledger))
    assert "the history does not add up to what the ledger counts as spent" in html_page(report_on(ledger))


def test_a_ledger_that_is_written_meanwhile_is_not_accused(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = ledger.history

    def busy(*args: Any, **kwargs: Any) -> Any:
        charge(ledger, tokens(1))
        ledger.set_budget("newcomer", Budget.of(1, "epsilon"))
        return history(*args, **kwargs)

    monkeypatch.setattr(ledger, "history", busy)
    report = report_on(ledger)
    assert [each.principal for each in report.principals] == ["ann"]
    assert report.principals[0].adds_up is None


def test_it_knows_one_principal_or_all(ledger: SqliteLedger) -> None:
    ledger.set_budget("bob", Budget.of(1, "epsilon"))
    charge(ledger, tokens(6))
    assert [each.principal for each in report_on(ledger).principals] == ["ann", "bob"]
    one = report_on(ledger, "bob")
    assert ([each.principal for each in one.principals], one.entries) == (["bob"], 1)
    with pytest.raises(PrivacyParameterError, match=r"cannot report on 'eve': the ledger has nothing of"):
        report_on(ledger, "eve")
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(PrivacyParameterError, match="delta"):
            report_on(ledger, delta=delta)


def test_only_the_newest_events_are_kept(ledger: SqliteLedger, clock: Clock) -> None:
    for i in range(30):
        clock.now += 1
        ledger.charge("ann", tokens(1), key=f"k{i}")
    report = report_on(ledger, newest=7)
    assert (len(report.newest), report.entries) == (7, 34)
    assert [entry.key for entry in report.newest] == [f"k{i}" for i in range(23, 30)]
    assert len(report_on(ledger).newest) == 34


def test_an_empty_ledger_has_an_empty_report(tmp_path: Path) -> None:
    with SqliteLedger(tmp_path / "empty") as empty:
        report = report_on(empty)
    assert (report.principals, report.entries, report.store) == ((), 0, "SQLite")
    assert "Nothing was spent and no budget is set." in text_report(report)
    assert "Nothing was spent and no budget is set." in html_page(report)


def test_it_is_plain_data_that_says_nothing_of_where_the_ledger_lies(
    ledger: SqliteLedger, clock: Clock
) -> None:
    charge(ledger, tokens(6), CALL)
    clock.now += HOUR
    report = report_on(ledger)
    data = json.dumps(report.to_dict())
    assert json.loads(data)["principals"]["ann"]["lines"][0]["spent"] == 6 * 10**6
    assert json.loads(data)["made_at"] == NOON + HOUR
    for told in (data, text_report(report), html_page(report), repr(report)):
        assert "ledger.sqlite" not in told


def test_a_clock_that_went_back_spoils_nothing(ledger: SqliteLedger, clock: Clock) -> None:
    charge(ledger, tokens(6), tokens(6, unit="metric-epsilon"))
    clock.now -= 3 * DAY
    charge(ledger, tokens(1), tokens(1, unit="metric-epsilon"))
    report = report_of(ledger)
    assert report.adds_up is True
    assert [line.series.points[-1].spent for line in report.lines] == [
        line.balance.spent for line in report.lines
    ]
    assert html_page(report_on(ledger))


@pytest.mark.parametrize(
    ("amount", "unit", "up", "down"),
    [
        (0, "epsilon", "0 ε", "0 ε"),
        (1, "epsilon", "0.000001 ε", "0.000001 ε"),
        (12_345_678, "epsilon", "12.35 ε", "12.34 ε"),
        (9_999, "rounds", "9,999 rounds", "9,999 rounds"),
        (1_503_777, "rounds", "1.504M rounds", "1.503M rounds"),
        (99_999_999, "rounds", "100M rounds", "99.99M rounds"),
        (60_000_000_000, "bytes", "60 GB", "60 GB"),
        (512, "bytes", "512 B", "512 B"),
        (43_159_404, "milliseconds", "11.99 h", "11.98 h"),
        (1, "rho", "0.000000001 ρ", "0.000000001 ρ"),
    ],
)
def test_spent_is_rounded_up_and_left_down(amount: int, unit: Any, up: str, down: str) -> None:
    assert (briefly(amount, unit, up=True), briefly(amount, unit, up=False)) == (up, down)


def test_every_unit_can_be_told() -> None:
    for unit in UNITS:
        assert number(123_456, unit, up=True)


def test_text_that_steers_a_terminal_is_made_harmless(ledger: SqliteLedger) -> None:
    evil = TokensReplaced(tokens=1, epsilon=1.0, unit="epsilon", mechanism="\x1b[2Jgone\n" + "x" * 500)
    charge(ledger, evil)
    text = text_report(report_on(ledger))
    assert "\x1b" not in text
    assert "[2Jgone" in text
    assert len(printable("x" * 10_000)) == 300


def test_of_many_principals_the_page_shows_those_whose_budgets_are_fullest(tmp_path: Path) -> None:
    with SqliteLedger(tmp_path / "many") as many:
        for i in range(MOST_SHOWN + 3):
            many.set_budget(f"user{i:03}", Budget.of(0 if i >= 3 else 1, "epsilon"))
        report = report_on(many)
    view = view_of(report)
    assert [person.name for person in view.people] == [f"user{i:03}" for i in range(3, MOST_SHOWN + 3)]
    assert (len(view.alerts), view.more_alerts) == (MOST_ALERTS, MOST_SHOWN - MOST_ALERTS)
    assert len(report.to_dict()["principals"]) == MOST_SHOWN + 3
    assert "3 more principals have more left" in text_report(report)
    assert "3 more principals have more left" in html_page(report)
