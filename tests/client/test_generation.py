"""The token loop over a model small enough to follow by hand: the next token is a hash of all tokens before
it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest

from fhe_llm.client.generation import PREFILL_CHUNK, Outcome, Piece, Task, generate
from fhe_llm.client.sampling import RequestError, SamplingParams
from fhe_llm.errors import ContextOverflowError
from fhe_llm.models.kv_cache import KVCache
from fhe_llm.models.steps import Forward, Linear

VOCABULARY, CONTEXT, LAYERS = 97, 300, 2


class HashingHalf:
    """Keeps token ids in the cache's keys; the logits point at a hash of every id so far."""

    def new_cache(self) -> KVCache:
        return KVCache(1, 1, 1, CONTEXT)

    def forward(
        self, token_ids: Sequence[int], cache: KVCache, *, logits: Literal["last", "all"] = "last"
    ) -> Forward:
        ids = np.asarray(token_ids, np.float32).reshape(-1, 1)
        for layer in range(LAYERS):
            y = yield Linear(f"layer.{layer}", ids)
            assert y.shape == ids.shape
        cache.write(0, ids[:, None], ids[:, None])
        seen = cache.read(0, cache.length + len(ids))[0][0, :, 0].astype(int).tolist()
        cache.commit(len(ids))
        rows = [next_token(seen[: len(seen) - len(ids) + t + 1]) for t in range(len(ids))]
        picked = np.eye(VOCABULARY, dtype=np.float32)[rows]
        return picked if logits == "all" else picked[-1:]


def next_token(ids: Sequence[int]) -> int:
    return sum((i + 1) * (token + 3) for i, token in enumerate(ids)) % VOCABULARY


class Letters:
    """One letter per token; every tenth token holds back its text until the next."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, token_id: int) -> str:
        text, self._held = self._held + chr(33 + token_id % 90), ""
        if token_id % 10 == 0:
            text, self._held = "", text
        return text

    def finish(self) -> str:
        return self._held


def text_of(ids: Sequence[int]) -> str:
    return "".join(chr(33 + token % 90) for token in ids)


def task(
    prompt: Sequence[int] = (5, 6, 7), *, end: Sequence[int] = (), pad_to: int | None = None, **params: object
) -> Task:
    return Task(
        half=HashingHalf(),
        decoder=Letters(),
        prompt_ids=tuple(prompt),
        params=SamplingParams.of(**params),
        end_ids=frozenset(end),
        context_length=CONTEXT,
        layers=LAYERS,
        pad_to=pad_to,
    )


def run(
    task: Task, each: Callable[[Linear | Piece], None] = lambda _: None
) -> tuple[Outcome, list[Piece], list[Linear]]:
    steps, pieces, rounds, reply = generate(task), [], [], None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as stop:
            return stop.value, pieces, rounds
        each(step)
        (pieces if isinstance(step, Piece) else rounds).append(step)
        reply = step.x if isinstance(step, Linear) else None


def expected(prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


def test_greedy_tokens_and_pieces_add_up() -> None:
    outcome, pieces, rounds = run(task(max_tokens=20))
    assert list(outcome.token_ids) == expected([5, 6, 7], 20)
    assert outcome.text == text_of(outcome.token_ids)
    assert outcome.finish_reason == "length"
    assert "".join(p.text for p in [*pieces, outcome.last]) == outcome.text
    assert sum((p.token_ids for p in [*pieces, outcome.last]), ()) == outcome.token_ids
    assert len(rounds) == LAYERS * 20  # the last token is never sent


@pytest.mark.parametrize("length", [1, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 200])
@pytest.mark.parametrize("pad_to", [None, 1, 16, 64, 128, 1000])
def test_padding_and_chunks_change_rounds_but_no_token(length: int, pad_to: int | None) -> None:
    prompt = [(7 * i) % 50 for i in range(length)]
    outcome, _, rounds = run(task(prompt, max_tokens=5, pad_to=pad_to))
    assert list(outcome.token_ids) == expected(prompt, 5)
    sent = sum(len(r.x) for r in rounds if r.layer == "layer.0") - 4
    bucket = pad_to or 1
    assert sent == min(-(-length // bucket) * bucket, CONTEXT)
    assert max(len(r.x) for r in rounds) <= PREFILL_CHUNK


def test_an_end_token_stops_and_says_nothing() -> None:
    ids = expected([5, 6, 7], 10)
    outcome, _, _ = run(task(end=[ids[6]], max_tokens=10))
    count = ids.index(ids[6]) + 1
    assert list(outcome.token_ids) == ids[:count]
    assert outcome.text == text_of(ids[: count - 1])
    assert outcome.finish_reason == "stop"


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    whole = text_of(expected([5, 6, 7], 12))
    outcome, pieces, _ = run(task(stop=[whole[5:8]], max_tokens=12))
    assert outcome.text == whole[: whole.index(whole[5:8])]
    assert outcome.finish_reason == "stop"
    assert "".join(p.text for p in [*pieces, outcome.last]) == outcome.text


def test_text_held_back_for_a_stop_string_comes_out_at_the_end() -> None:
    whole = text_of(expected([5, 6, 7], 12))
    outcome, _, _ = run(task(stop=[whole[-2:] + "~~~"], max_tokens=12))
    assert outcome.text == whole
    assert outcome.finish_reason == "length"


def test_a_prompt_over_the_context_names_both_numbers_before_any_round() -> None:
    with pytest.raises(ContextOverflowError, match=rf"{CONTEXT} tokens.*holds {CONTEXT}"):
        task([1] * CONTEXT)


def test_the_context_bounds_the_answer() -> None:
    outcome, _, _ = run(task([1] * (CONTEXT - 3), max_tokens=50))
    assert (len(outcome.token_ids), outcome.finish_reason) == (3, "length")


def test_the_clock_does_not_count_a_slow_reader() -> None:
    now = [0.0]
    job = task(max_tokens=3)
    object.__setattr__(job, "clock", lambda: now[0])

    def spend(step: Linear | Piece) -> None:
        now[0] += 1.0 if isinstance(step, Linear) else 1000.0

    outcome, _, _ = run(job, spend)
    assert outcome.seconds_to_first_token == LAYERS
    assert outcome.seconds == 3 * LAYERS


def test_prefill_is_reported_round_by_round() -> None:
    seen: list[tuple[str, int, int]] = []
    job = task([1] * (PREFILL_CHUNK + 1), max_tokens=2)
    object.__setattr__(job, "progress", lambda *step: seen.append(step))
    run(job)
    assert seen == [("Prefill", n + 1, 2 * LAYERS) for n in range(2 * LAYERS)]


@pytest.mark.parametrize("pad_to", [0, -1, 1.5, "64"])
def test_bad_padding_is_refused(pad_to: object) -> None:
    with pytest.raises(RequestError, match="cannot pad"):
        task(pad_to=pad_to)  # type: ignore[arg-type]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        task([])
