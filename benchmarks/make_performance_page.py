"""Make ``docs/performance.md`` and its plots from the records in ``docs/results``; nothing is typed by hand.

``python benchmarks/make_performance_page.py`` writes both. The page needs nothing but the records; the plots need
matplotlib, and carry the digest of the records they were drawn from, so that a test can tell when they are stale.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance_sections import SECTIONS

DOCS = Path(__file__).parents[1] / "docs"
NAMES = (
    "decode",
    "prefill",
    "product",
    "width",
    "plaintext",
    "concurrency",
    "memory",
    "overhead",
    "calibrate",
)
PLOTS = {
    "time": ("decode", "prefill"),
    "width": ("width", "product"),
    "bandwidth": ("width",),
    "concurrency": ("concurrency",),
}
"""Plots by file name, and the records each is drawn from."""

Records = Mapping[str, dict[str, Any]]

INTRODUCTION = """# Performance

<!-- Made by benchmarks/make_performance_page.py from docs/results/*.json. Edit those programs, not this page. -->

Every figure below was printed by `fhe-llm bench` and stands in a file of `docs/results/` with its commit, parameters,
processor, thread count and date. Times are medians with their range; `make performance` measures and writes this page
anew. Client and proxy share one machine and its cores unless a line says otherwise.
"""


def load(folder: Path) -> Records:
    """The records there are, by name."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}


def page(records: Records) -> str:
    """The whole page; a section whose record is missing is left out."""
    parts = [INTRODUCTION, *(text for section in SECTIONS if (text := section(records)))]
    return "\n".join(part.strip() + "\n" for part in parts)


def digest(records: Records, names: tuple[str, ...]) -> str:
    """SHA-256 of the records a plot shows."""
    shown = {name: records.get(name) for name in names}
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def stale(records: Records, folder: Path) -> list[str]:
    """Plots that are missing or drawn from other records."""
    found = []
    for plot, names in PLOTS.items():
        path = folder / f"{plot}.svg"
        wanted = all(name in records for name in names[:1])
        if wanted and (not path.exists() or digest(records, names) not in path.read_text("utf-8")):
            found.append(path.name)
    return found


def main() -> None:
    """Write the page and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS)
    docs = parser.parse_args().docs
    records = load(docs / "results")
    (docs / "performance.md").write_text(page(records), "utf-8")
    from performance_plots import DRAW

    for plot, names in PLOTS.items():
        if names[0] in records:
            DRAW[plot](records, docs / "results" / f"{plot}.svg", digest(records, names))


if __name__ == "__main__":
    main()
