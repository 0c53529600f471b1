"""Writes the measured part of ``docs/identifiers.md`` from ``docs/results/identifiers.json``.

``python benchmarks/make_identifiers_page.py`` after ``python benchmarks/identifiers.py --output …``; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
PAGE: Final = DOCS / "identifiers.md"
RECORD: Final = DOCS / "results" / "identifiers.json"
BEGIN: Final = "<!-- made by benchmarks/make_identifiers_page.py: begin -->\n"
END: Final = "<!-- made by benchmarks/make_identifiers_page.py: end -->\n"
_NAMES: Final = {
    "patterns": "default",
    "eager": "default, names eagerly",
    "presidio": "Presidio's patterns alone",
    "patterns+presidio": "default and Presidio's patterns",
}


def measured(record: dict[str, Any]) -> str:
    """The measured part of the page."""
    sets = record["recognisers"]
    ours = sets["patterns"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in record["kinds_of_document"].items())
    parts = [
        f"{ours['documents']} documents ({kinds}; {record['characters']:,} characters) in "
        f"{', '.join(record['locales'])}, with {ours['all']['planted']:,} planted identifiers. "
        f"**{ours['restored_exactly']} of {ours['documents']} answers were restored exactly.** "
        f"Measured {record['date'][:10]} at commit `{record['commit']}` with Faker {record['software']['faker']}, "
        f"phonenumbers {record['software']['phonenumbers']}; seed {record['seed']}.",
        _table(
            (
                "type",
                "planted",
                "recall",
                "precision",
                "F1",
                "recall, overlap",
                "precision, overlap",
                "leaked",
            ),
            _rows(ours),
        ),
        "By locale, all types:",
        _table(
            ("locale", "planted", "recall", "precision", "leaked"),
            ((name, *_short(score)) for name, score in record["by_locale"].items()),
        ),
        "Locales for whose addresses, national telephone numbers and words nothing was made "
        f"({', '.join(record['foreign']['locales'])}; English text, {record['foreign']['documents']} documents):",
        _table(
            ("type", "planted", "recall", "precision", "leaked"),
            ((name, *_short(score)) for name, score in _scores(record["foreign"])),
        ),
    ]
    parts += [
        "Other sets of recognisers on the same documents, all types. Presidio's patterns know no names, addresses or "
        "dates of birth:",
        _table(
            ("recognisers", "planted", "recall", "precision", "leaked", "restored exactly"),
            (
                (_NAMES[name], *_short(made["all"]), f"{made['restored_exactly']} of {made['documents']}")
                for name, made in sets.items()
            ),
        ),
    ]
    return "\n".join(f"{part.strip()}\n" for part in parts)


def page(text: str, record: dict[str, Any]) -> str:
    """``text`` with its measured part made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + measured(record) + "\n" + END + rest.split(END)[1]


def _scores(made: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [*made["kinds"].items(), ("**all**", made["all"])]


def _rows(made: dict[str, Any]) -> Iterable[Sequence[str]]:
    for name, score in _scores(made):
        exact, overlap = score["exact_match"], score["overlap"]
        figures = (exact["recall"], exact["precision"], exact["f1"], overlap["recall"], overlap["precision"])
        yield (name, f"{score['planted']:,}", *map(_percent, figures), _percent(score["leak_rate"]))


def _short(score: dict[str, Any]) -> tuple[str, ...]:
    exact = score["exact_match"]
    shares = (exact["recall"], exact["precision"], score["leak_rate"])
    return (f"{score['planted']:,}", *map(_percent, shares))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text("utf-8"), json.loads(RECORD.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
