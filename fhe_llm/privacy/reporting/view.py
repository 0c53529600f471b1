"""What the page shows, in the order and the words it shows it; the template only places it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fhe_llm.privacy.charge import UNIT_INFO, Kind, Unit, shown
from fhe_llm.privacy.ledger import Entry
from fhe_llm.privacy.reporting.charts import Chart, chart_of, y_label
from fhe_llm.privacy.reporting.exposure import EventTally, Protection
from fhe_llm.privacy.reporting.forecast import DAY_MS
from fhe_llm.privacy.reporting.report import BudgetReport, Line, PrincipalReport
from fhe_llm.privacy.reporting.words import (
    EVENT_WORDS,
    KIND_WORDS,
    PROTECTION_WORDS,
    WINDOW_WORDS,
    briefly,
    counted,
    epsilon_words,
    forecast_words,
    happened,
    moment,
    printable,
    second,
    signed,
)

MOST_SHOWN: Final = 100
"""Principals on a page; beyond, those whose budgets are fullest."""
LOW: Final = 0.25
SOON_MS: Final = 30 * DAY_MS
MOST_ALERTS: Final = 20


@dataclass(frozen=True, slots=True)
class Tile:
    """One kind of event: a headline figure, its counts, and what stands behind it."""

    kind: Kind
    title: str
    figure: str
    counts: str
    protection: Protection
    badge: str
    pending: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """One budget, or a unit without one. ``share`` of it is spent (0 to 100), ``pending`` of that not yet settled."""

    id: str
    kind: Kind
    kind_word: str
    title: str
    figure: str
    left: str
    detail: str
    state: str
    share: float | None
    pending: float
    forecast: str
    epsilon: str
    chart: Chart
    rows: tuple[tuple[int, str, str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Person:
    """A principal's part of the page."""

    id: str
    name: str
    about: str
    adds_up: bool | None
    tiles: tuple[Tile, ...]
    cards: tuple[Card, ...]

    @property
    def budgets(self) -> tuple[Card, ...]:
        """Those that have a budget."""
        return tuple(card for card in self.cards if card.share is not None)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of events."""

    time: str
    name: str
    kind: Kind
    kind_word: str
    action: str
    change: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to look at, with the part of the page that shows it."""

    level: str
    name: str
    text: str
    target: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything on the page."""

    made: str
    store: str
    entries: int
    people: tuple[Person, ...]
    left_out: int
    alerts: tuple[Alert, ...]
    more_alerts: int
    rows: tuple[Row, ...]
    older: int
    units: tuple[tuple[str, str, str], ...]


def view_of(report: BudgetReport) -> View:
    """The page of a report."""
    urgent = sorted(report.principals, key=_fullest, reverse=True)[:MOST_SHOWN]
    names = {each.principal for each in urgent}
    kept = [each for each in report.principals if each.principal in names]
    people = tuple(_person(each, f"p{i}") for i, each in enumerate(kept, 1))
    rows = tuple(_row(entry) for entry in reversed(report.newest))
    alerts = sorted(_alerts(kept, people, report.made_at), key=lambda alert: alert.level)
    return View(
        made=moment(report.made_at),
        store=report.store,
        entries=report.entries,
        people=people,
        left_out=len(report.principals) - len(people),
        alerts=tuple(alerts[:MOST_ALERTS]),
        more_alerts=max(0, len(alerts) - MOST_ALERTS),
        rows=rows,
        older=report.entries - len(rows),
        units=tuple(
            (UNIT_INFO[unit].label, KIND_WORDS[UNIT_INFO[unit].kind], UNIT_INFO[unit].meaning)
            for unit in UNIT_INFO
        ),
    )


def _fullest(report: PrincipalReport) -> float:
    return max((_share(line) or 0 for line in report.lines), default=0.0)


def _share(line: Line) -> float | None:
    """How much of a budget is spent, of 1; None without one."""
    if line.balance.budget is None:
        return None
    limit = line.balance.budget.limit
    return min(1.0, line.balance.spent / limit) if limit else 1.0


def _person(report: PrincipalReport, place: str) -> Person:
    cards = [_card(line, f"{place}-{i}") for i, line in enumerate(report.lines, 1)]
    about = f"{report.entries:,} entr{'y' if report.entries == 1 else 'ies'}"
    if report.first is not None and report.last is not None:
        about += f", {moment(report.first)} to {moment(report.last)}"
    return Person(
        place,
        printable(report.principal),
        about,
        report.adds_up,
        tuple(_tile(tally) for tally in report.exposure),
        tuple(sorted(cards, key=lambda card: card.share is None)),
    )


def _tile(tally: EventTally) -> Tile:
    unit = next(iter(tally.spent), None)  # the others of work are quotas of the same rounds
    figure = (
        f"{tally.events:,} event{'s' * (tally.events != 1)}"
        if unit is None
        else briefly(tally.spent[unit], unit, up=True)
    )
    pending = f"{tally.pending:,} reserved and not settled: may have left" if tally.pending else ""
    notes = tuple(f"{printable(note)} ({count:,})" for note, count in tally.notes.items())
    title = EVENT_WORDS.get(tally.name, tally.name)
    badge = PROTECTION_WORDS[tally.protection]
    return Tile(tally.kind, title, figure, counted(tally), tally.protection, badge, pending, notes)


def _card(line: Line, place: str) -> Card:
    balance, unit = line.balance, line.unit
    share = _share(line)
    left = balance.left
    title = f"{UNIT_INFO[unit].label} · {WINDOW_WORDS[line.window]}"
    brief = ""
    if balance.budget is None or left is None:
        figure, detail = f"{briefly(balance.spent, unit, up=True)} spent", "no budget over this time"
    else:
        figure = f"{briefly(left, unit, up=False)} left"
        brief = f"{y_label(left, unit)} left"
        detail = f"{shown(balance.spent, unit)} of {shown(balance.budget.limit, unit)} spent"
        if balance.refreshes_at is not None:
            detail += f"; refreshes {moment(balance.refreshes_at)}"
    if balance.pending:
        detail += f"; {shown(balance.pending, unit)} of it pending"
    state = "none" if share is None else "empty" if left == 0 else "low" if share > 1 - LOW else "fine"
    pending = 0.0
    if share is not None and balance.budget is not None and balance.budget.limit:
        pending = min(share, balance.pending / balance.budget.limit)
    return Card(
        place,
        line.kind,
        KIND_WORDS[line.kind],
        title,
        figure,
        brief,
        detail,
        state,
        None if share is None else round(100 * share, 2),
        round(100 * pending, 2),
        forecast_words(line.forecast, unit, line.window),
        epsilon_words(line.epsilon),
        chart_of(line.series, line.forecast),
        tuple(
            (point.time, second(point.time), *_amounts(point.spent, point.limit, point.left, unit))
            for point in line.series.points
        ),
    )


def _amounts(spent: int, limit: int | None, left: int | None, unit: Unit) -> tuple[str, str, str]:
    return (
        shown(spent, unit),
        "–" if limit is None else shown(limit, unit),
        "–" if left is None else shown(left, unit),
    )


def _row(entry: Entry) -> Row:
    return Row(
        second(entry.time),
        printable(entry.principal),
        entry.kind,
        KIND_WORDS[entry.kind],
        entry.action,
        signed(entry.change),
        happened(entry),
    )


def _alerts(reports: list[PrincipalReport], people: tuple[Person, ...], now: int) -> Iterator[Alert]:
    for report, person in zip(reports, people, strict=True):
        if report.adds_up is False:
            text = "the history does not add up to what the ledger counts as spent; was the file edited?"
            yield Alert("bad", person.name, text, person.id)
        cards = {card.id: card for card in person.budgets}
        for i, line in enumerate(report.lines, 1):
            card = cards.get(f"{person.id}-{i}")
            ends = line.forecast.runs_out
            if card is None:
                continue
            if line.balance.left == 0:
                yield Alert("bad", person.name, f"{card.title}: used up", card.id)
            elif ends is not None and (line.forecast.until is not None or ends < now + SOON_MS):
                yield Alert("warn", person.name, f"{card.title}: may run out about {moment(ends)}", card.id)
        unprotected = sum(tally.events for tally in report.exposure if tally.protection == "unprotected")
        if unprotected:
            text = f"{unprotected:,} text{'s' * (unprotected != 1)} left without a guarantee"
            yield Alert("warn", person.name, text, person.id)
