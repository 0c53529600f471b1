"""How long one token's replacement takes, by our exact draws, by OpenDP's noisy maximum, and by floating point.

``python benchmarks/token_draws.py [--output FILE]`` prints one JSON record: milliseconds a token over the real table.
A *known* token was drawn for before; *new* ones come 32 at a time, as in a text. OpenDP's mechanism is given the scores
of a known token; floating point is the textbook's softmax, which keeps no claim exactly and is here for its time only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from text_privacy import MECHANISMS

from fhe_llm.cli.bench.record import clocked, keep, record, spread
from fhe_llm.params import PRESETS
from fhe_llm.privacy.embedding_table import RADIUS, STEPS, EmbeddingTable
from fhe_llm.privacy.token_mechanism import TokenMechanism

EPSILON: Final = 10.0
WORD: Final = "hospital"
TOGETHER: Final = 32
RUNS: Final = 15


def milliseconds(run: Callable[[], object], each: int = 1) -> dict[str, float]:
    """Median and range for one token."""
    run()
    found = spread(clocked(run, RUNS))
    return {
        name: round(1e3 * value / each, 4)
        for name, value in (("median", found.median), ("minimum", found.minimum), ("maximum", found.maximum))
    }


def ours(table: EmbeddingTable, options: dict[str, Any]) -> dict[str, Any]:
    """Tokens drawn for before, and new ones."""
    mechanism = TokenMechanism(EPSILON, table=table, **options)
    fresh = iter(range(5000, len(table) - TOGETHER, TOGETHER))

    def new() -> None:
        first = next(fresh)
        mechanism.protect([" ".join(table.words[first : first + TOGETHER])])

    return {
        "known": milliseconds(partial(mechanism.protect, [WORD])),
        "new": milliseconds(new, TOGETHER),
    }


def theirs(table: EmbeddingTable) -> dict[str, Any]:
    """The exponential mechanism as OpenDP has it: the largest of all scores under exact Gumbel or exponential noise."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    vector = table.vector(WORD)
    assert vector is not None
    scores = -np.sqrt(table.squared_distances(vector).astype(np.float64)) / RADIUS
    space = dp.vector_domain(dp.atom_domain(T="f64", nan=False)), dp.linf_distance(T="f64")
    steps = dp.vector_domain(dp.atom_domain(T="i32")), dp.linf_distance(T="i32")
    floats = dp.m.make_noisy_max(*space, dp.max_divergence(), scale=2 / EPSILON)
    whole = dp.m.make_noisy_max(*steps, dp.max_divergence(), scale=2 * STEPS / EPSILON)
    return {
        "noisy_max_f64": milliseconds(partial(floats, scores.tolist())),
        "noisy_max_i32": milliseconds(partial(whole, np.rint(scores * STEPS).astype(int).tolist())),
        "softmax": milliseconds(partial(softmax, scores)),
    }


def softmax(scores: np.ndarray[Any, Any]) -> int:
    """What a prototype does."""
    weights = np.exp(EPSILON * scores / 2)
    return int(np.random.default_rng().choice(len(weights), p=weights / weights.sum()))


def main() -> None:
    """Measure, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=None)
    output = parser.parse_args().output
    table = EmbeddingTable.load()
    figures = {
        "epsilon": EPSILON,
        "words": len(table),
        "milliseconds": {name: ours(table, options) for name, options in MECHANISMS.items()},
        "alternatives": theirs(table),
    }
    result = record("token-draws", PRESETS["default"], figures)
    del result["preset"]  # nothing here is encrypted
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if output:
        keep(result, output)


if __name__ == "__main__":
    main()
