"""Seconds per token of a whole encrypted generation, where they go, and the same model in the clear in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhe_llm.cli.bench.decode import Measured, decoded, measure, split, subject_figures
from fhe_llm.cli.bench.record import plain, record, spread
from fhe_llm.client.generation import Outcome, Task, generate
from fhe_llm.models.steps import Floats, Linear
from fhe_llm.params import preset as find_preset


def bench_generation(
    model: str, tokens: int, repeats: int, preset: str = "default", base_url: str | None = None
) -> dict[str, Any]:
    """The record of ``repeats`` generations of ``tokens`` tokens after one that warms up; all greedy."""
    measured = measure(model, tokens, repeats, preset, base_url)
    answers = measured.answers
    up, down, rounds = decoded(measured.first, answers[-1])
    figures = subject_figures(measured, base_url) | {
        "seconds_per_token": plain(measured.encrypted),
        "seconds_to_first_token": plain(spread([a.timings.seconds_to_first_token for a in answers])),
        "first_use_seconds_to_first_token": measured.warm_up.timings.seconds_to_first_token,
        "split_seconds_per_token": split(answers),
        "bytes_per_token": {"up": up, "down": down},
        "rounds_per_token": rounds,
        "precision_log2": answers[-1].receipt.precision_log2,
        "plaintext": _plaintext(measured),
        "ratio_to_plaintext": measured.encrypted.median / measured.in_the_clear.median,
        "tokens_equal_plaintext": measured.tokens_equal,
    }
    return record("generation", find_preset(preset), figures)


def _plaintext(measured: Measured) -> dict[str, Any]:
    return {
        "engine": measured.engine.name,
        "seconds_per_token": plain(measured.in_the_clear),
        "seconds_to_first_token": plain(spread([run.first for run in measured.runs])),
        "token_ids": list(measured.runs[-1].token_ids),
    }


def run_in_the_clear(task: Task, weights: Mapping[str, Floats]) -> Outcome:
    """Drive a generation with plain products."""
    steps, reply = generate(task), None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
        reply = step.x @ weights[step.layer].T if isinstance(step, Linear) else None
