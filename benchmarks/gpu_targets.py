"""The targets for one GPU beside what was measured and what counts alone allow.

    python benchmarks/gpu_targets.py docs/results

Reads ``gpu.json`` (``benchmarks/gpu.py``), ``gpu-decode.json`` and ``gpu-prefill.json`` (``fhe-llm bench``); a row
whose record is missing says so. Writes ``gpu-targets.json`` and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fhe_llm.cli.bench.record import keep

Records = Mapping[str, Any]
PHASES_OF_THE_PROXY: Final = ("rotations", "products", "finish")
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Target:
    """One row: what must be reached, what is aimed at, and where measurement and estimate come from.

    ``scale`` turns the records' own units into the row's; ``least`` is true where more is better.
    """

    what: str
    unit: str
    must: float
    aim: float
    measured: Callable[[Records], float]
    estimate: Callable[[Records], float]
    scale: float = 1.0
    least: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A target and what became of it; ``verdict`` is ``aim``, ``must``, ``missed``, or why there is no figure."""

    what: str
    unit: str
    must: float
    aim: float
    measured: float | None
    roofline_estimate: float | None
    verdict: str


class NotMeasuredError(Exception):
    """There is a record, and it is of something else."""


def _of(records: Records, name: str, part: str, count: str, wanted: int) -> Any:
    """A part of a record, of as many as the row says."""
    found = records[name] if not part else records[name][part]
    if found[count] != wanted:
        raise NotMeasuredError(f"{name}.json is of {found[count]} {count.replace('_', ' ')}")
    return found


def _whole_token(records: Records) -> float:
    return float(_on_one_gpu(records["gpu-decode"])["ratio_to_plaintext"])


def _whole_token_estimate(records: Records) -> float:
    """Client, wire and queue as measured, the proxy's arithmetic at its bound, over the same plaintext."""
    decode = _on_one_gpu(records["gpu-decode"])
    others = sum(v for k, v in decode["split_seconds_per_token"].items() if k not in PHASES_OF_THE_PROXY)
    bound: float = records["gpu"]["token"]["roofline_estimate"]
    return float((others + bound) / decode["plaintext_seconds_per_token"])


def _on_one_gpu(decode: Any) -> Any:
    if decode["device"]["gpu"] is None or decode["plaintext_device"] != "cuda":
        raise NotMeasuredError(f"the plaintext ran on {decode['plaintext_backend']}")
    return decode


def _rounds_estimate(records: Records) -> float:
    together, bound = _together(records), records["gpu"]["token"]["roofline_estimate"]
    return float(together["count"] * bound / together["roofline_estimate"])


def _together(records: Records) -> Any:
    return _of(records, "gpu", "conversations", "count", 64)


def _memory(records: Records) -> Any:
    return _of(records, "gpu", "memory", "sessions", 100)


def _prompt(records: Records) -> Any:
    return _of(records, "gpu-prefill", "", "prompt_tokens", 512)["nothing_cached"]


def _whole_prefill_estimate(records: Records) -> float:
    """Client, wire and queue as measured, the proxy's arithmetic at its bound."""
    split = _prompt(records)["split_seconds"]
    others = sum(v for k, v in split.items() if k not in PHASES_OF_THE_PROXY)
    return float(others + records["gpu"]["prefill"]["roofline_estimate"])


TARGETS: Final = (
    Target(
        "SmolLM2-135M, arithmetic per decoded token at the proxy, batch 1",
        "ms",
        30,
        8,
        lambda r: r["gpu"]["token"]["wall"]["median"],
        lambda r: r["gpu"]["token"]["roofline_estimate"],
        scale=1e3,
    ),
    Target(
        "whole encrypted token, client on the same machine, over plaintext transformers on the same GPU",
        "x",
        8,
        4,
        _whole_token,
        _whole_token_estimate,
    ),
    Target(
        "64 conversations at once: rounds per second over batch 1",
        "x",
        10,
        30,
        lambda r: _together(r)["rounds_over_batch_1"],
        _rounds_estimate,
        least=True,
    ),
    Target(
        "100 concurrent sessions: GPU memory",
        "GB",
        8,
        4,
        lambda r: _memory(r)["in_use"],
        lambda r: _memory(r)["estimate"],
        scale=1e-9,
    ),
    Target(
        "prefill of 512 tokens, arithmetic at the proxy",
        "s",
        3,
        0.7,
        lambda r: r["gpu"]["prefill"]["wall"]["median"],
        lambda r: r["gpu"]["prefill"]["roofline_estimate"],
    ),
    Target(
        "prefill of 512 tokens, client on the same machine",
        "s",
        3,
        0.7,
        lambda r: _prompt(r)["seconds_to_first_token"],
        _whole_prefill_estimate,
    ),
    Target(
        "fraction of memory bandwidth reached by the multiply-accumulate kernel",
        "%",
        50,
        80,
        lambda r: r["gpu"]["products"][-1]["share"],
        lambda r: r["gpu"]["products"][-1]["share_estimate"],
        scale=100,
        least=True,
    ),
)
"""The issue's table; its prefill row is two here, with and without the client."""


def rows(records: Records) -> list[Row]:
    """Every target's row; a missing record leaves figures out."""
    return [_row(target, records) for target in TARGETS]


def _row(target: Target, records: Records) -> Row:
    named = (target.what, target.unit, target.must, target.aim)
    try:
        measured, estimate = (f(records) * target.scale for f in (target.measured, target.estimate))
    except KeyError as error:
        return Row(*named, None, None, f"not measured: no {error.args[0]}.json")
    except NotMeasuredError as error:
        return Row(*named, None, None, f"not measured: {error}")
    reached = [
        measured >= bound if target.least else measured <= bound for bound in (target.aim, target.must)
    ]
    return Row(*named, measured, estimate, "aim" if reached[0] else "must" if reached[1] else "missed")


def table(found: list[Row]) -> str:
    """Markdown."""
    lines = ["| what | must | aim | measured | roofline estimate | |", "|---|---:|---:|---:|---:|---|"]
    for row, target in zip(found, TARGETS, strict=True):
        sign = "≥" if target.least else "≤"
        figures = ["–" if v is None else f"{v:.3g} {row.unit}" for v in (row.measured, row.roofline_estimate)]
        bounds = [f"{sign} {bound:g} {row.unit}" for bound in (row.must, row.aim)]
        lines.append("| " + " | ".join([row.what, *bounds, *figures, row.verdict]) + " |")
    return "\n".join(lines)


def read(folder: Path) -> dict[str, Any]:
    """The records there are."""
    names = ("gpu", "gpu-decode", "gpu-prefill")
    found = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text("utf-8")) for name, path in found.items() if path.is_file()}


def main() -> int:
    """Print the table; 0 where every target was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    records = read(folder)
    found = rows(records)
    source = records.get("gpu", {})
    about = {name: source.get(name) for name in ("date", "commit", "device", "preset")}
    keep(
        {"benchmark": "gpu-targets", **about, "targets": [asdict(row) for row in found]},
        folder / "gpu-targets.json",
    )
    print(table(found))
    return 0 if all(row.measured is not None for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
