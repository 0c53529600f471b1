"""The performance page says what the committed records say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import make_performance_page as maker
import pytest
from performance_sections import seconds, size, table

RECORDS = maker.load(maker.DOCS / "results")


def test_every_record_is_there_and_measured_what_its_name_says() -> None:
    assert set(RECORDS) == set(maker.NAMES)
    assert all(record["benchmark"] == name for name, record in RECORDS.items())


@pytest.mark.parametrize("path", sorted((maker.DOCS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_record_names_the_commit_it_was_measured_at(path: Path) -> None:
    commit = json.loads(path.read_text("utf-8"))["commit"]
    assert re.fullmatch("[0-9a-f]{12}", commit), "measure again with every source committed"


def test_the_page_is_made_from_the_committed_records() -> None:
    assert (maker.DOCS / "performance.md").read_text("utf-8") == maker.page(RECORDS), (
        "run: make performance-page"
    )


def test_the_plots_are_drawn_from_the_committed_records() -> None:
    assert maker.stale(RECORDS, maker.DOCS / "results") == [], "run: make performance-page"


def test_the_page_shows_every_plot() -> None:
    text = maker.page(RECORDS)
    assert all(f"results/{plot}.svg" in text for plot in maker.PLOTS)


def test_a_missing_record_leaves_its_section_out() -> None:
    text = maker.page({name: record for name, record in RECORDS.items() if name == "overhead"})
    assert text.count("\n## ") == 2
    assert "Proxy and wire without the arithmetic" in text
    assert maker.stale({}, maker.DOCS / "results") == []


@pytest.mark.parametrize(
    ("value", "text"), [(2.3456, "2.35 s"), (0.01234, "12.3 ms"), (0.0000123, "12.3 µs"), (0, "0 µs")]
)
def test_seconds_have_three_digits(value: float, text: str) -> None:
    assert seconds(value) == text


def test_sizes_and_tables() -> None:
    assert [size(value) for value in (12, 12_345, 12_345_678, 1.5e9)] == [
        "12 B",
        "12.3 KB",
        "12.3 MB",
        "1.5 GB",
    ]
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---:|\n| 1 | 2 |\n"
