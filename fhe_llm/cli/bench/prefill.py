"""Seconds to the first token of a chat prompt: nothing remembered, and with the shared prefix remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from fhe_llm.answer import Answer, Phases
from fhe_llm.cli.asking import Served, served
from fhe_llm.cli.bench.plaintext import PlaintextModel, best_plaintext
from fhe_llm.cli.bench.record import plain, record, spread, usable_cores
from fhe_llm.cli.bench.subject import Subject, cached_settings, open_subject, plain_settings
from fhe_llm.llm import EncryptedLLM
from fhe_llm.models.chat_template import Message
from fhe_llm.params import preset as find_preset


@dataclass(frozen=True, slots=True)
class _Asked:
    """Answers of one token each, and the plaintext's seconds to the same token."""

    warm_up: Answer
    answers: tuple[Answer, ...]
    in_the_clear: tuple[float, ...]


def bench_prefill(
    model: str, tokens: int, repeats: int, preset: str = "default", base_url: str | None = None
) -> dict[str, Any]:
    """The record of ``repeats`` chat prompts of ``tokens`` tokens after one that warms up, one token answered."""
    subject = open_subject(model)
    engine, chats = best_plaintext(subject), subject.chats(repeats + 1, tokens)
    name = model if base_url is None else subject.source.config.name
    with served(base_url, name, preset) as proxy:
        fresh = _ask(proxy, preset, plain_settings(), subject, engine, chats)
        again = _ask(proxy, preset, cached_settings(), subject, engine, chats)
    figures = {
        "model": subject.source.config.name,
        "model_digest": subject.source.model_digest,
        "prompt_tokens": fresh.answers[-1].prompt_tokens,
        "threads": {"proxy": usable_cores() if base_url is None else None, "client": usable_cores()},
        "proxy": "same machine" if base_url is None else base_url,
        "first_use_seconds": fresh.warm_up.timings.seconds,
        "nothing_cached": _figures(fresh, engine),
        "prefix_cached": _figures(again, engine),
    }
    return record("prefill", find_preset(preset), figures)


def _ask(
    proxy: Served,
    preset: str,
    settings: dict[str, Any],
    subject: Subject,
    engine: PlaintextModel,
    chats: Sequence[Sequence[Message]],
) -> _Asked:
    with EncryptedLLM(proxy.model, proxy.base_url, preset=preset, **settings) as llm:
        warm_up = llm.chat(chats[0], max_tokens=1)
        engine.run(subject.chat_ids(list(chats[0])), 1)
        pairs = [
            (llm.chat(chat, max_tokens=1), engine.run(subject.chat_ids(list(chat)), 1).first)
            for chat in chats[1:]
        ]
    answers, seconds = zip(*pairs, strict=True)
    return _Asked(warm_up, answers, seconds)


def _figures(asked: _Asked, engine: PlaintextModel) -> dict[str, Any]:
    encrypted = spread([answer.timings.seconds_to_first_token for answer in asked.answers])
    last, clear = asked.answers[-1], spread(asked.in_the_clear)
    parts = [asdict(answer.timings.prefill) for answer in asked.answers]
    return {
        "seconds_to_first_token": encrypted.median,
        "seconds_to_first_token_spread": plain(encrypted),
        "plaintext_seconds_to_first_token": clear.median,
        "plaintext_seconds_to_first_token_spread": plain(clear),
        "plaintext_backend": engine.name,
        "plaintext_device": engine.device,
        "ratio_to_plaintext": encrypted.median / clear.median,
        "bytes_per_prompt_token": (last.receipt.bytes_up + last.receipt.bytes_down) / last.prompt_tokens,
        "bytes_up": last.receipt.bytes_up,
        "bytes_down": last.receipt.bytes_down,
        "rounds": last.receipt.rounds,
        "prompt_tokens_seen_by_proxy": last.receipt.prompt_tokens_seen,
        "split_seconds": {f.name: float(np.median([part[f.name] for part in parts])) for f in fields(Phases)},
    }
