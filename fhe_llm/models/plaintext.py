"""The driver without cryptography: the float reference, and the seam every algorithm is tested through."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TypeVar

from fhe_llm.models.steps import Floats, Linear

R = TypeVar("R")


def run_plaintext(steps: Generator[Linear, Floats, R], weights: Mapping[str, Floats]) -> R:
    """Answer every :class:`Linear` with ``x @ weights[layer].T``; returns what the generator returns.

    Shapes: weights [out, in], x [T, in], reply [T, out]. Raises whatever the generator raises, and KeyError
    for a layer that ``weights`` lacks.
    """
    try:
        step = next(steps)
        while True:
            step = steps.send(step.x @ weights[step.layer].T)
    except StopIteration as stop:
        result: R = stop.value
        return result
