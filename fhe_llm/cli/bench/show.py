"""A benchmark's record for people: one aligned line per figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import typer

_HEADING: Final = {"benchmark", "date", "version", "commit", "device", "software", "preset"}
_SPREAD: Final = {"median", "minimum", "maximum", "runs"}


def show_record(result: dict[str, Any]) -> None:
    """Print a heading and the figures."""
    device = result["device"]
    typer.echo(
        f"{result['benchmark']}, preset {result['preset']['name']}, {device['cores']} cores of {device['cpu']}"
    )
    show_figures({name: value for name, value in result.items() if name not in _HEADING})


def show_figures(figures: Mapping[str, Any]) -> None:
    """One aligned line per figure."""
    rows = [row for name, value in figures.items() for row in lines(name, value)]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        typer.echo(f"{label:<{width}}  {text}")


def lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(label, text) of a figure and of everything inside it; lists of numbers are left to ``--json``."""
    label = name.replace("_", " ")
    if isinstance(value, dict) and set(value) == _SPREAD:
        spread = (number(value[part]) for part in ("median", "minimum", "maximum"))
        yield label, "{} ({} to {}, {} runs)".format(*spread, value["runs"])
    elif isinstance(value, dict):
        for part, inner in value.items():
            yield from lines(f"{label}, {part}" if label else part, inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value, 1):
            if isinstance(inner, dict):
                yield from lines(f"{label} {i}", inner)
    else:
        yield label, number(value)


def number(value: Any) -> str:
    """Four digits of a float, anything else as it is; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
