"""Amounts, times and forecasts in words, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final

from fhe_llm.privacy.charge import UNIT_INFO, Kind, Unit, from_amount, shown
from fhe_llm.privacy.ledger import Entry, Window
from fhe_llm.privacy.reporting.epsilon import EpsilonAtDelta
from fhe_llm.privacy.reporting.exposure import EventTally, Protection
from fhe_llm.privacy.reporting.forecast import DAY_MS, LEAST_CHARGES, LEAST_MS, Forecast
from fhe_llm.receipt import human_bytes

WINDOW_WORDS: Final[Mapping[Window, str]] = {
    "hour": "per hour",
    "day": "per day",
    "week": "per week",
    "30days": "per 30 days",
    "lifetime": "in all",
}
KIND_WORDS: Final[Mapping[Kind, str]] = {
    "text": "Text",
    "embedding": "Embeddings",
    "disclosure": "Disclosures",
    "work": "Work",
}
EVENT_WORDS: Final[Mapping[str, str]] = {
    "tokens-replaced": "Text with replaced tokens",
    "vectors-noised": "Embeddings with noise",
    "values-disclosed": "Decrypted values published",
    "encrypted-call": "Encrypted calls",
    "identifiers-replaced": "Text with replaced identifiers",
    "text-in-clear": "Text in clear",
    "work-done": "Work at the proxy",
}
PROTECTION_WORDS: Final[Mapping[Protection, str]] = {
    "mechanism": "paid by a budget",
    "encrypted": "encrypted, costs nothing",
    "unprotected": "no guarantee",
    "quota": "quota, no privacy figure",
}
LEAST_WORDS: Final[Mapping[Window, str]] = {
    window: f"{length // 60_000} minutes" if length < 3_600_000 else f"{length / 3_600_000:g} hours"
    for window, length in LEAST_MS.items()
}
UNITS_DIFFER: Final = "Units are never added: ε and ε per distance, ρ and the rest say different things."
SINGULAR: Final = {"queries": "query"}
LENGTHS: Final = ((3_600_000, "h"), (60_000, "min"), (1000, "s"))
SIGNIFICANT: Final = 4
LONGEST: Final = 300


def moment(milliseconds: int) -> str:
    """``28 Nov 2026, 14:30 UTC``."""
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{time.day} {time:%b %Y, %H:%M} UTC"


def brief_moment(milliseconds: int, beside: int) -> str:
    """``28 Nov 14:30``: UTC, with the year where it is another one than in the time it stands ``beside``."""
    time, other = (datetime.fromtimestamp(each / 1000, UTC) for each in (milliseconds, beside))
    year = "" if time.year == other.year else f" {time.year}"
    return f"{time.day} {time:%b}{year} {time:%H:%M}"


def second(milliseconds: int) -> str:
    """``2026-11-28 14:30:05``, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def briefly(amount: float | Decimal, unit: Unit, *, up: bool) -> str:
    """``amount`` in at most four significant digits: what is spent is rounded ``up``, what is left down."""
    if unit == "milliseconds":
        for length, label in LENGTHS:
            if amount >= length:
                return f"{number(Decimal(amount) / length, unit, up=up)} {label}"
    text = number(amount, unit, up=up)
    if unit == "bytes":
        return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"
    return f"{text} {UNIT_INFO[unit].label}"


def number(amount: float | Decimal, unit: Unit, *, up: bool) -> str:
    """:func:`briefly` without the unit; large numbers with k, M, G or T."""
    value = from_amount(1, unit) * Decimal(amount)
    if not value:
        return "0"
    value = _rounded(value, ROUND_CEILING if up else ROUND_FLOOR)
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (4, "k")):
        if abs(value) >= Decimal(1).scaleb(power):
            return f"{_plain(value.scaleb(-3 if letter == 'k' else -power))}{letter}"
    return _plain(value)


def signed(change: Mapping[Unit, int]) -> tuple[str, ...]:
    """``+6 ε`` for each unit; ``0`` for an entry that changed nothing."""
    return tuple(
        f"{'+' if amount >= 0 else '−'}{shown(abs(amount), unit)}" for unit, amount in change.items()
    ) or ("0",)


def happened(entry: Entry) -> str:
    """What an entry is about, in one line that is safe to print and not too long."""
    if entry.budget is not None:
        return str(entry.budget)
    return printable(entry.event.describe()) if entry.event else ""


def printable(text: str) -> str:
    """``text`` without characters that could steer a terminal, cut to :data:`LONGEST`."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def counted(tally: EventTally) -> str:
    """``234 events, 4,988 tokens``."""
    counts = [_count(name, count) for name, count in tally.counts.items()]
    return ", ".join([f"{tally.events:,} event{'s' * (tally.events != 1)}", *counts])


def _count(name: str, count: int) -> str:
    if name.startswith("bytes"):
        return f"{human_bytes(count)} {name[6:]}".rstrip()
    if name == "milliseconds":
        return f"{briefly(count, 'milliseconds', up=True)} of the evaluator"
    word = "identifiers" if name == "replaced" else name
    return f"{count:,} {word if count != 1 else SINGULAR.get(word, word.removesuffix('s'))}"


def forecast_words(forecast: Forecast, unit: Unit, window: Window) -> str:
    """What becomes of a budget, in a sentence or two."""
    if forecast.outlook == "no-budget":
        return "No budget over this time, so there is nothing to run out."
    if forecast.outlook == "exhausted":
        return f"Nothing is left{_until(forecast)}."
    if forecast.outlook == "idle":
        return "Nothing was spent of late."
    since = forecast.since or 0
    if forecast.outlook == "too-little-data":
        return (
            f"Too little to forecast: {forecast.charges} charge{'s' * (forecast.charges != 1)} since "
            f"{moment(since)}. It takes {LEAST_CHARGES}, spread over {LEAST_WORDS[window]} at least."
        )
    beside = forecast.until or forecast.runs_out or since
    return f"At the pace since {brief_moment(since, beside)} ({_pace(forecast, unit, window)}), {_end(forecast, unit)}."


def epsilon_words(found: Sequence[EpsilonAtDelta]) -> str:
    """What a ρ means at its δ, by each accountant; empty for no ρ."""
    if not found:
        return ""
    told = [
        f"{_up(each.spent)}{'' if each.limit is None else f' of {each.limit:.4g}'} by {each.accountant}"
        for each in found
    ]
    return f"At δ = {found[0].delta:g}: ε = {', '.join(told)}"


def _end(forecast: Forecast, unit: Unit) -> str:
    if forecast.runs_out is not None:
        words = f"it runs out about {moment(forecast.runs_out)}"
        if forecast.until is not None:
            words += f", before it refreshes on {brief_moment(forecast.until, forecast.runs_out)}"
        earliest = brief_moment(forecast.earliest or forecast.runs_out, forecast.runs_out)
        if forecast.latest is None:
            return f"{words} ({earliest} at the earliest; it may also last)"
        return f"{words} (between {earliest} and {brief_moment(forecast.latest, forecast.runs_out)})"
    if forecast.until is None or forecast.left_then is None:
        words = "it lasts for decades"
    else:
        then, least, most = (
            briefly(amount or 0, unit, up=False)
            for amount in (forecast.left_then, forecast.left_least, forecast.left_most)
        )
        words = (
            f"about {then} will be left when it refreshes on {moment(forecast.until)} "
            f"(between {least} and {most})"
        )
    if forecast.earliest is not None:
        words += f"; at the fastest it runs out on {moment(forecast.earliest)}"
    return words


def _up(epsilon: float) -> str:
    return _plain(_rounded(Decimal(epsilon), ROUND_CEILING))


def _until(forecast: Forecast) -> str:
    return ", and it does not refresh" if forecast.until is None else f" until {moment(forecast.until)}"


def _pace(forecast: Forecast, unit: Unit, window: Window) -> str:
    if window == "hour":
        return f"{briefly((forecast.pace or 0) * 3_600_000 / DAY_MS, unit, up=True)} an hour"
    return f"{briefly(forecast.pace or 0, unit, up=True)} a day"


def _rounded(value: Decimal, way: str) -> Decimal:
    """At most :data:`SIGNIFICANT` digits, and nine behind the point."""
    step = Decimal(1).scaleb(max(value.adjusted() - SIGNIFICANT + 1, -9)) if value else Decimal(1)
    return (value / step).to_integral_value(way) * step


def _plain(value: Decimal) -> str:
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
