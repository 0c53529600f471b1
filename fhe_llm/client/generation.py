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
from fhe_llm.client.sampling import Constraint, Sampler, SamplingParams, StopMatcher
from fhe_llm.client.speculation import Speculator, verify
from fhe_llm.errors import ContextOverflowError, RequestError
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
    bar); ``prefix`` lends KV entries of earlier prompts and keeps those of this one; ``speculator`` guesses ahead;
    ``constraint`` says which tokens may come; ``opening`` are those it forces first, which are run with the prompt."""

    half: ClientHalf
    decoder: TextDecoder
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    end_ids: frozenset[int]
    context_length: int
    layers: int
    pad_to: int | None = None
    prefix: PrefixScope | None = None
    speculator: Speculator | None = None
    constraint: Constraint | None = None
    opening: tuple[int, ...] = ()
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
        """Tokens of the first pass as the proxy counts them, where the first ``cached`` ones need not be run."""
        bucket, length = self.pad_to or 1, len(self.prompt_ids) + len(self.opening) - cached
        return min(math.ceil(length / bucket) * bucket, self.context_length - cached)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be shown and the tokens chosen since the last piece."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class Passes:
    """Passes through the layers after the prompt's, tokens drafted in them, and how many of those were right."""

    count: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation ended. ``last`` has not been yielded. Times are of ``Task.clock``, waiting removed.
    ``cached_tokens`` of the prompt came from the prefix cache; ``passes`` made the tokens after the first."""

    last: Piece
    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    seconds_to_first_token: float
    seconds: float
    cached_tokens: int
    passes: Passes


Steps: TypeAlias = Generator[Linear | Piece, Any, Outcome]
"""Yields :class:`Linear` (send its product) and :class:`Piece` (show it, send anything)."""


def generate(task: Task) -> Steps:
    """One generation. A closed or abandoned generator leaves nothing behind but cached prefixes."""
    begun, waited = task.clock(), 0.0
    sampler, passes = Sampler(task.params, task.prompt_ids, task.constraint), Passes()
    cache, said = task.half.new_cache(), _Said(task)
    cached = task.prefix.load(task.prompt_ids, cache) if task.prefix else 0
    try:
        logits = yield from prefill(task, cache)
        first = task.clock() - begun
        for token in task.opening:
            sampler.accept(token)
        chosen = [*task.opening, sampler(logits)]
        while True:
            for left, token in zip(range(len(chosen) - 1, -1, -1), chosen, strict=True):
                fresh = said.add(token, complete=sampler.complete and not left)
                if said.finished:
                    break
                paused = task.clock()
                yield Piece(fresh, (token,))
                waited += task.clock() - paused
            if said.finished:
                break
            chosen = yield from _decode(task, cache, sampler, said, passes)
    finally:
        if task.prefix:  # what was computed is worth keeping, however the generation ended
            task.prefix.store([*task.prompt_ids, *said.ids], cache)
    fresh = said.finish(fresh)
    return Outcome(
        last=Piece(fresh, tuple(said.ids[-1:])),
        text=said.text,
        token_ids=tuple(said.ids),
        finish_reason=said.finished,
        seconds_to_first_token=first,
        seconds=task.clock() - begun - waited,
        cached_tokens=cached,
        passes=passes,
    )


class _Said:
    """The answer so far, and whether it has ended."""

    def __init__(self, task: Task) -> None:
        self._decoder, self._end_ids = task.decoder, task.end_ids
        self._stops = StopMatcher(task.params.stop)
        self.limit = min(task.params.max_tokens, task.context_length - len(task.prompt_ids))
        self.ids: list[int] = []
        self.text = ""
        self.finished: Literal["stop", "length"] | None = None

    def add(self, token: int, *, complete: bool = False) -> str:
        """Take the next token, the last one if ``complete``; returns the text that may be shown."""
        self.ids.append(token)
        ended = token in self._end_ids
        fresh = "" if ended else self._stops.push(self._decoder.feed(token))
        self.text += fresh
        if ended or complete or self._stops.stopped:
            self.finished = "stop"
        elif len(self.ids) == self.limit:
            self.finished = "length"
        return fresh

    def finish(self, fresh: str) -> str:
        """``fresh``, the last text to show, with all that was held back; no token may follow."""
        rest = self._stops.push(self._decoder.finish()) + self._stops.flush()
        if self._stops.stopped:
            self.finished = "stop"
        self.text += rest
        return fresh + rest


def _decode(
    task: Task, cache: KVCache, sampler: Sampler, said: _Said, passes: Passes
) -> Generator[Linear, Floats, list[int]]:
    """One pass over the last token and drafts of those that may follow; returns the tokens it yields.

    The cache keeps the positions of the last token and of the drafts that were right.
    """
    ids, before, drafts = said.ids, cache.length, tuple[int, ...]()
    if task.speculator:
        fixed = task.speculator.settings.fixed
        # where the number may vary, no draft is paid for that the answer has no room for
        room = task.context_length - before if fixed else said.limit - len(ids)
        drafts = task.speculator.propose([*task.prompt_ids, *ids], room - 1, sampler)
    begun = task.clock()
    logits = yield from task.half.forward([ids[-1], *drafts], cache, logits="all" if drafts else "last")
    seconds = task.clock() - begun
    chosen = verify(sampler, logits, drafts, task.end_ids)
    cache.truncate(before + len(chosen))
    if task.speculator:
        task.speculator.observe(chosen, 1 + len(drafts), seconds)
    passes.count += 1
    passes.drafted += len(drafts)
    passes.accepted += len(chosen) - 1
    return chosen


def prefill(task: Task, cache: KVCache) -> Generator[Linear, Floats, Floats]:
    """Run what ``cache`` lacks of the prompt and the answer's opening through the model in chunks; returns the logits
    [vocab] of the last token.

    Padding stands to the right of the prompt, where causal attention keeps it from changing anything, and
    leaves the cache at the end. It repeats the last token: the proxy sees ciphertexts, any token would do.
    """
    cached, ids = cache.length, task.prompt_ids + task.opening
    length = len(ids)
    padded = ids + ids[-1:] * (cached + task.padded_length(cached) - length)
    starts = range(cached, len(padded), PREFILL_CHUNK)
    wanted = np.empty(0, np.float32)
    for n, start in enumerate(starts):
        chunk, row = padded[start : start + PREFILL_CHUNK], length - 1 - start
        inside = 0 <= row < len(chunk) - 1
        forward = task.half.forward(chunk, cache, logits="all" if inside else "last")
        begun = task.clock()
        logits = yield from _reported(forward, task, n * task.layers, len(starts) * task.layers)
        if task.speculator:
            task.speculator.costs.observe(len(chunk), task.clock() - begun)
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
