"""The token loop: prefill, choose, show, decode. A generator without I/O, so that one loop serves every
driver."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from fhe_llm.client.prefix_cache import PrefixScope
from fhe_llm.client.sampling import RequestError, Sampler, SamplingParams, StopMatcher
from fhe_llm.errors import ContextOverflowError
from fhe_llm.models.kv_cache import KVCache
from fhe_llm.models.steps import Floats, Forward, Linear
from fhe_llm.progress import Progress, silent

PREFILL_CHUNK = 64
"""Prompt tokens per round: enough to fill the proxy's batches, few enough to bound one request's size and
time."""


class ClientHalf(Protocol):
    """The model's part that runs at the client."""

    def new_cache(self) -> KVCache: ...

    def forward(
        self, token_ids: Sequence[int], cache: KVCache, *, logits: Literal["last", "all"] = "last"
    ) -> Forward: ...


class TextDecoder(Protocol):
    """Token ids to text, one by one; ``finish`` gives what is left."""

    def feed(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Everything one generation needs. ``layers`` is the number of rounds of one pass (for the progress
    bar); ``prefix`` lends KV entries of earlier prompts and keeps those of this one."""

    half: ClientHalf
    decoder: TextDecoder
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    end_ids: frozenset[int]
    context_length: int
    layers: int
    pad_to: int | None = None
    prefix: PrefixScope | None = None
    progress: Progress = silent
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        """Raise before anything is sent: :class:`ContextOverflowError`, :class:`RequestError`."""
        if not self.prompt_ids:
            raise RequestError("cannot generate: the prompt is empty. Pass at least one character.")
        if len(self.prompt_ids) >= self.context_length:
            raise ContextOverflowError(
                f"cannot generate from a prompt of {len(self.prompt_ids)} tokens: the context window holds "
                f"{self.context_length}, the answer included. Shorten the prompt or the conversation."
            )
        if self.pad_to is not None and not (isinstance(self.pad_to, int) and self.pad_to >= 1):
            raise RequestError(
                f"cannot pad to {self.pad_to!r}: it must be a whole number from 1. Change pad_to."
            )

    def padded_length(self, cached: int = 0) -> int:
        """Prompt tokens as the proxy counts them, where the first ``cached`` ones need not be run."""
        bucket, length = self.pad_to or 1, len(self.prompt_ids) - cached
        return min(math.ceil(length / bucket) * bucket, self.context_length - cached)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be shown and the tokens chosen since the last piece."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation ended. ``last`` has not been yielded. Times are of ``Task.clock``, waiting removed.
    ``cached_tokens`` of the prompt came from the prefix cache."""

    last: Piece
    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    seconds_to_first_token: float
    seconds: float
    cached_tokens: int = 0


Steps: TypeAlias = Generator[Linear | Piece, Any, Outcome]
"""Yields :class:`Linear` (send its product) and :class:`Piece` (show it, send anything)."""


def generate(task: Task) -> Steps:
    """One generation. A closed or abandoned generator leaves nothing behind but cached prefixes."""
    begun, waited = task.clock(), 0.0
    sampler, stops = Sampler(task.params, task.prompt_ids), StopMatcher(task.params.stop)
    limit = min(task.params.max_tokens, task.context_length - len(task.prompt_ids))
    cache, ids, text = task.half.new_cache(), list[int](), ""
    cached = task.prefix.load(task.prompt_ids, cache) if task.prefix else 0
    try:
        logits = yield from prefill(task, cache)
        first = task.clock() - begun
        while True:
            ids.append(sampler(logits))
            ended = ids[-1] in task.end_ids
            fresh = "" if ended else stops.push(task.decoder.feed(ids[-1]))
            if ended or stops.stopped or len(ids) == limit:
                break
            text += fresh
            paused = task.clock()
            yield Piece(fresh, (ids[-1],))
            waited += task.clock() - paused
            logits = (yield from task.half.forward(ids[-1:], cache))[-1]
    finally:
        if task.prefix:  # what was computed is worth keeping, however the generation ended
            task.prefix.store([*task.prompt_ids, *ids], cache)
    fresh += stops.push(task.decoder.finish()) + stops.flush()
    return Outcome(
        last=Piece(fresh, (ids[-1],)),
        text=text + fresh,
        token_ids=tuple(ids),
        finish_reason="stop" if ended or stops.stopped else "length",
        seconds_to_first_token=first,
        seconds=task.clock() - begun - waited,
        cached_tokens=cached,
    )


def prefill(task: Task, cache: KVCache) -> Generator[Linear, Floats, Floats]:
    """Run what ``cache`` lacks of the prompt through the model in chunks; returns the logits [vocab] of its last
    token.

    Padding stands to the right of the prompt, where causal attention keeps it from changing anything, and
    leaves the cache at the end. It repeats the last token: the proxy sees ciphertexts, any token would do.
    """
    cached, length = cache.length, len(task.prompt_ids)
    filler = task.prompt_ids[-1:] * (cached + task.padded_length(cached) - length)
    padded = task.prompt_ids + filler
    starts = range(cached, len(padded), PREFILL_CHUNK)
    wanted = np.empty(0, np.float32)
    for n, start in enumerate(starts):
        chunk, row = padded[start : start + PREFILL_CHUNK], length - 1 - start
        inside = 0 <= row < len(chunk) - 1
        forward = task.half.forward(chunk, cache, logits="all" if inside else "last")
        logits = yield from _reported(forward, task, n * task.layers, len(starts) * task.layers)
        if 0 <= row < len(chunk):
            wanted = logits[row if inside else -1]
    cache.truncate(length)
    return wanted


def _reported(forward: Forward, task: Task, done: int, total: int) -> Forward:
    """The same pass, with a word to ``task.progress`` after each product."""
    step = next(forward)
    try:
        while True:
            product = yield step
            done += 1
            task.progress("Prefill", done, total)
            step = forward.send(product)
    except StopIteration as stop:
        logits: Floats = stop.value
        return logits
