"""The plots of the performance page, as SVG: records in, one file out each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

Records = Mapping[str, dict[str, Any]]

STYLE = {
    "svg.hashsalt": "fhe-llm",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
COLOURS = {
    "encrypt": "#56b4e9",
    "wire": "#999999",
    "queue": "#d0d0d0",
    "rotations": "#d55e00",
    "products": "#e69f00",
    "finish": "#cc79a7",
    "decrypt": "#0072b2",
    "model": "#009e73",
}
"""Client blue and green, wire grey, proxy warm (Okabe and Ito's palette)."""


@contextmanager
def figure(path: Path, digest: str, width: float, height: float, columns: int = 1) -> Iterator[Any]:
    """Axes to draw on; saved with the digest of what they show, and no date, so that equal records give equal files."""
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, format="svg", metadata={"Date": None, "Description": f"records {digest}"})
        plt.close(drawn)


def time(records: Records, path: Path, digest: str) -> None:
    """Stacked bars: a decoded token, and a prompt token of the prefill."""
    bars = {"decoded token": records["decode"]["split_seconds_per_token"]}
    if (prefill := records.get("prefill")) is not None:
        found = prefill["nothing_cached"]
        share = {name: value / prefill["prompt_tokens"] for name, value in found["split_seconds"].items()}
        bars[f"prompt token\n(of {prefill['prompt_tokens']})"] = share
    with figure(path, digest, 8, 1.5 + 0.7 * len(bars)) as axes:
        for row, split in enumerate(bars.values()):
            left = 0.0
            for name, value in split.items():
                label = name if row == 0 else None
                axes.barh(row, 1e3 * value, left=left, color=COLOURS[name], label=label, height=0.6)
                left += 1e3 * value
            axes.text(left, row, f" {left:.0f} ms", va="center")
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds")
        axes.figure.legend(loc="outside upper center", ncols=8, fontsize=9)


def width(records: Records, path: Path, digest: str) -> None:
    """Time of a square product and of its phases against the width, both axes logarithmic."""
    rows = records["width"]["widths"]
    x = [row["width"] for row in rows]
    with figure(path, digest, 7, 4) as axes:
        axes.plot(
            x,
            [1e3 * row["product"]["median"] for row in rows],
            "o-",
            color="black",
            label="product, all of it",
        )
        for name in ("rotations", "products", "finish"):
            y = [1e3 * row["split_seconds"][name] for row in rows]
            axes.plot(x, y, "o--", color=COLOURS[name], label=name, markersize=4)
        if (product := records.get("product")) is not None:
            shape, theirs = product["shape"], product["tenseal_mm"]["product"]["median"]
            axes.plot([shape["in_features"]], [1e3 * theirs], "s", color="#555555", label="TenSEAL .mm")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(x, [str(each) for each in x])
        axes.minorticks_off()
        axes.set_xlabel("width of W (square)")
        axes.set_ylabel("milliseconds")
        axes.legend(fontsize=9)


def bandwidth(records: Records, path: Path, digest: str) -> None:
    """Share of the read bandwidth that the products' phase reaches."""
    rows = records["width"]["widths"]
    with figure(path, digest, 7, 3) as axes:
        shares = [100 * row["share"] for row in rows]
        drawn = axes.bar([str(row["width"]) for row in rows], shares, color=COLOURS["products"], width=0.6)
        axes.bar_label(drawn, [f"{share:.0f} %" for share in shares], padding=2)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.15)
        axes.set_xlabel("width of W (square)")
        axes.set_ylabel("% of the memory's read bandwidth")


def concurrency(records: Records, path: Path, digest: str) -> None:
    """Seconds per token of each conversation, and tokens per second over one, against how many there are."""
    record = records["concurrency"]
    rows, ratios = record["sweep"], record["ratio_to_one_conversation"]
    x = [row["conversations"] for row in rows]
    with figure(path, digest, 8, 3.2, columns=2) as (left, right):
        median = [row["seconds_per_token"]["median"] for row in rows]
        low = [m - row["seconds_per_token"]["minimum"] for m, row in zip(median, rows, strict=True)]
        high = [row["seconds_per_token"]["maximum"] - m for m, row in zip(median, rows, strict=True)]
        left.errorbar(x, median, yerr=(low, high), fmt="o-", color=COLOURS["decrypt"], capsize=3)
        left.set_ylabel("seconds per token of each")
        right.plot(x, [ratios[str(each)] for each in x], "o-", color=COLOURS["rotations"])
        right.set_ylabel("tokens per second over one")
        for axes in (left, right):
            axes.set_xticks(x)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("conversations at once")


DRAW: Mapping[str, Callable[[Records, Path, str], None]] = {
    "time": time,
    "width": width,
    "bandwidth": bandwidth,
    "concurrency": concurrency,
}
