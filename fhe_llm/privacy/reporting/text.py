"""The report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fhe_llm.privacy.reporting.report import BudgetReport
from fhe_llm.privacy.reporting.view import Card, Person, Tile, view_of
from fhe_llm.privacy.reporting.words import UNITS_DIFFER

BAR: Final = 24


def text_report(report: BudgetReport) -> str:
    """Everything but the series and the events."""
    view = view_of(report)
    lines = [f"Privacy budget, {view.made}: {view.store} ledger, {view.entries:,} entries"]
    if not view.people:
        lines.append("Nothing was spent and no budget is set.")
    for person in view.people:
        lines += ["", *_person(person)]
    if view.left_out:
        lines += ["", f"{view.left_out:,} more principals have more left; name one to see it."]
    if view.people:
        lines += ["", UNITS_DIFFER]
    return "\n".join(lines)


def _person(person: Person) -> Iterator[str]:
    yield f"{person.name}: {person.about}"
    if person.adds_up is False:
        yield "  WRONG: the history does not add up to what the ledger counts as spent"
    for tile in person.tiles:
        yield from _tile(tile)
    for card in person.cards:
        yield from _card(card)


def _tile(tile: Tile) -> Iterator[str]:
    yield f"  {tile.title}: {tile.figure} ({tile.badge}); {tile.counts}"
    if tile.pending:
        yield f"      {tile.pending}"
    for note in tile.notes:
        yield f"      {'assumes' if tile.protection == 'encrypted' else 'by'} {note}"


def _card(card: Card) -> Iterator[str]:
    if card.share is None:
        yield f"  {card.kind_word:<11} {card.title}: {card.figure}, {card.detail}"
    else:
        full = min(BAR, round(card.share / 100 * BAR))
        yield f"  {card.kind_word:<11} {card.title}: {card.figure} [{'#' * full}{'.' * (BAR - full)}] {card.detail}"
    if card.epsilon:
        yield f"      {card.epsilon}"
    if card.share is not None:
        yield f"      {card.forecast}"
