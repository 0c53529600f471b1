"""Seconds per decoded token, encrypted and in the clear, turn by turn in one run so that drift hits both alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from fhe_llm.answer import Answer, Phases
from fhe_llm.cli.asking import served
from fhe_llm.cli.bench.plaintext import PlainRun, PlaintextModel, best_plaintext
from fhe_llm.cli.bench.record import Spread, plain, record, spread, usable_cores
from fhe_llm.cli.bench.subject import PROMPT, Subject, open_subject, plain_settings
from fhe_llm.llm import EncryptedLLM
from fhe_llm.params import preset as find_preset


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers to one prompt and the plaintext's runs beside them; ``first`` is an answer of one token, whose bytes
    and rounds are the prompt's alone."""

    subject: Subject
    engine: PlaintextModel
    prompt_ids: tuple[int, ...]
    warm_up: Answer
    first: Answer
    answers: tuple[Answer, ...]
    runs: tuple[PlainRun, ...]

    @property
    def encrypted(self) -> Spread:
        """Seconds per decoded token."""
        return spread([answer.timings.seconds_per_token or 0.0 for answer in self.answers])

    @property
    def in_the_clear(self) -> Spread:
        """Seconds per decoded token of the plaintext model."""
        return spread([run.per_token for run in self.runs])

    @property
    def tokens_equal(self) -> bool:
        """Whether both chose the same tokens."""
        found = self.warm_up.token_ids
        return found == self.runs[-1].token_ids[: len(found)]


def measure(
    model: str,
    tokens: int,
    repeats: int,
    preset: str,
    base_url: str | None,
    engine: PlaintextModel | None = None,
) -> Measured:
    """``repeats`` greedy answers of ``tokens`` tokens after one that warms up, each followed by a plaintext run."""
    subject = open_subject(model)
    engine, ids = engine or best_plaintext(subject), subject.text_ids(PROMPT)
    name = model if base_url is None else subject.source.config.name
    with (
        served(base_url, name, preset) as proxy,
        EncryptedLLM(proxy.model, proxy.base_url, preset=preset, **plain_settings()) as llm,
    ):
        warm_up, first = llm.generate(PROMPT, max_tokens=tokens), llm.generate(PROMPT, max_tokens=1)
        engine.run(ids, tokens)
        pairs = [(llm.generate(PROMPT, max_tokens=tokens), engine.run(ids, tokens)) for _ in range(repeats)]
    answers, runs = zip(*pairs, strict=True)
    return Measured(subject, engine, ids, warm_up, first, answers, runs)


def bench_decode(
    model: str, tokens: int, repeats: int, preset: str = "default", base_url: str | None = None
) -> dict[str, Any]:
    """The record of plain decoding: no speculation, no prefix cache, one conversation."""
    measured = measure(model, tokens, repeats, preset, base_url)
    figures = subject_figures(measured, base_url) | decode_figures(measured)
    return record("decode", find_preset(preset), figures)


def subject_figures(measured: Measured, base_url: str | None) -> dict[str, Any]:
    """What was run where."""
    return {
        "model": measured.subject.source.config.name,
        "model_digest": measured.subject.source.model_digest,
        "prompt_tokens": measured.warm_up.prompt_tokens,
        "tokens": len(measured.warm_up.token_ids),
        "batch": 1,
        "threads": {"proxy": usable_cores() if base_url is None else None, "client": usable_cores()},
        "proxy": "same machine" if base_url is None else base_url,
    }


def decode_figures(measured: Measured) -> dict[str, Any]:
    """Seconds, bytes and rounds per decoded token; ``ratio_to_plaintext`` is the median of the turns' ratios."""
    ratios = [
        (answer.timings.seconds_per_token or 0.0) / run.per_token
        for answer, run in zip(measured.answers, measured.runs, strict=True)
    ]
    up, down, rounds = decoded(measured.first, measured.answers[-1])
    return {
        "seconds_per_token": measured.encrypted.median,
        "seconds_per_token_spread": plain(measured.encrypted),
        "plaintext_seconds_per_token": measured.in_the_clear.median,
        "plaintext_seconds_per_token_spread": plain(measured.in_the_clear),
        "plaintext_backend": measured.engine.name,
        "plaintext_device": measured.engine.device,
        "ratio_to_plaintext": spread(ratios).median,
        "ratio_to_plaintext_spread": plain(spread(ratios)),
        "split_seconds_per_token": split(measured.answers),
        "bytes_per_token": up + down,
        "bytes_up_per_token": up,
        "bytes_down_per_token": down,
        "rounds_per_token": rounds,
        "precision_log2": measured.answers[-1].receipt.precision_log2,
        "tokens_equal_plaintext": measured.tokens_equal,
    }


def decoded(first: Answer, whole: Answer) -> tuple[float, float, float]:
    """Bytes up, bytes down and rounds of each token after the first: ``whole`` less ``first``, the same prompt."""
    count = max(1, len(whole.token_ids) - len(first.token_ids))
    pairs = (
        (first.receipt.bytes_up, whole.receipt.bytes_up),
        (first.receipt.bytes_down, whole.receipt.bytes_down),
        (first.receipt.rounds, whole.receipt.rounds),
    )
    up, down, rounds = ((after - before) / count for before, after in pairs)
    return up, down, rounds


def split(answers: Sequence[Answer]) -> dict[str, float]:
    """The median of each phase of decoding, in seconds per token."""
    decodes = [asdict(answer.timings.decode) for answer in answers]
    return {f.name: float(np.median([decode[f.name] for decode in decodes])) for f in fields(Phases)}
