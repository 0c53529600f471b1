"""The tables of docs/text-mechanisms.md and decision 16, from the committed records.

``python benchmarks/text_privacy_tables.py`` puts them into the pages, in place of what stands between their marks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from performance_sections import table

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGES: Final = (DOCS / "text-mechanisms.md", DOCS / "adr" / "0016-exact-token-sampling.md")
RECORDS: Final = ("text_privacy", "token_draws")
SHOWN: Final = {
    "plain": (1, 6, 8, 10, 12, 30),
    "plain, one near": (8, 10, 12, 16),
    "metric": (8, 12, 16, 20, 30),
    "group": (1, 2, 4, 8),
}

Records = Mapping[str, dict[str, Any]]


def load() -> dict[str, dict[str, Any]]:
    """The committed records, by name."""
    return {name: json.loads((DOCS / "results" / f"{name}.json").read_text("utf-8")) for name in RECORDS}


def ranged(value: Mapping[str, float], *, percent: bool = True) -> str:
    """Mean and 95 % interval."""
    if percent:
        return f"{value['mean']:.0%} ({value['low']:.0%}–{value['high']:.0%})"
    mean, low, high = (round(value[name], 2) + 0.0 for name in ("mean", "low", "high"))  # no -0.00
    return f"{mean:.2f} ({low:.2f}–{high:.2f})"


def text(records: Records) -> str:
    """Mechanisms and ε against what is left and what is found out."""
    record = records["text_privacy"]
    rows = [
        (
            point["mechanism"],
            str(point["epsilon"]),
            ranged(point["similarity"], percent=False),
            ranged(point["accuracy"]),
            f"{point['unchanged']:.0%}",
            f"{point['tokens_recovered']:.0%}",
            ranged(point["questions_identified"]),
        )
        for point in record["text"]
        if point["epsilon"] in SHOWN[point["mechanism"]]
    ]
    without = record["without"]
    nothing = (
        "nothing read",
        "–",
        "–",
        "–",
        "–",
        f"{without['tokens_recovered']:.0%}",
        f"{without['questions_identified']:.0%}",
    )
    clear = ("text in clear", "–", "1.00", ranged(without["accuracy"]), "100%", "100%", "100%")
    head = (
        "mechanism",
        "ε a token",
        "similarity",
        "topic recognised",
        "unchanged",
        "tokens recovered",
        "question identified",
    )
    return stamp(record) + table(head, [nothing, *rows, clear])


def vectors(records: Records) -> str:
    """ε of a vector against what it is still good for."""
    record = records["text_privacy"]
    rows = [
        (
            str(point["epsilon"]),
            f"{point['noise_multiplier']:.3g}",
            ranged(point["accuracy"]),
            ranged(point["found_again"]),
        )
        for point in record["vectors"]
    ]
    head = ("ε a vector", "noise multiplier", "topic recognised", "own vector found among 108")
    return stamp(record) + table(head, rows)


def draws(records: Records) -> str:
    """Milliseconds a token."""
    record = records["token_draws"]
    rows = [
        (f"{name}: {kind} token", span(found[kind]))
        for name, found in record["milliseconds"].items()
        for kind in ("known", "new")
    ]
    names = {
        "noisy_max_f64": "OpenDP's noisy maximum, floats",
        "noisy_max_i32": "OpenDP's noisy maximum, whole numbers",
        "softmax": "softmax in floating point, no exact claim",
    }
    rows += [(names[name], span(found)) for name, found in record["alternatives"].items()]
    return stamp(record) + table(("", "ms a token (range)"), rows)


def span(found: Mapping[str, float]) -> str:
    """Median and range."""
    return f"{found['median']:.2g} ({found['minimum']:.2g}–{found['maximum']:.2g})"


def stamp(record: Mapping[str, Any]) -> str:
    """The line above a table: with what it was measured."""
    device = record["device"]
    return (
        f"`benchmarks/{record['benchmark'].replace('-', '_')}.py`, {device['cores']} cores of {device['cpu']}, "
        f"commit {record['commit']}, {record['date'][:10]}, load average {device['load_average']}.\n\n"
    )


TABLES: Final = {"text": text, "vectors": vectors, "draws": draws}


def filled(page: str, records: Records) -> str:
    """``page`` with every table between its marks made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(begin)
        if found:
            page = before + begin + make(records) + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text("utf-8"), load()), "utf-8")
