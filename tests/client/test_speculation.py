"""Speculation changes how many passes an answer takes, and nothing else about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_generation import CONTEXT, LAYERS, HashingHalf, Letters, run

from fhe_llm.client.generation import Outcome, Task
from fhe_llm.client.sampling import RequestError, Sampler, SamplingParams
from fhe_llm.client.speculation import (
    MAX_DRAFT,
    Acceptance,
    PassCosts,
    PromptLookup,
    SpeculationSettings,
    Speculator,
    best_count,
    verify,
)
from fhe_llm.models.kv_cache import KVCache
from fhe_llm.models.steps import Forward

VOCABULARY = 7


class RandomHalf(HashingHalf):
    """Logits [vocabulary] drawn from the last few tokens: a small world that repeats itself, and surprises."""

    def __init__(self, seed: int, memory: int, context: int = CONTEXT) -> None:
        self._seed, self._memory, self._context = seed, memory, context

    def new_cache(self) -> KVCache:
        return KVCache(1, 1, 1, self._context)

    def forward(self, token_ids: Sequence[int], cache: KVCache, *, logits: Any = "last") -> Forward:
        before = cache.length
        yield from super().forward(token_ids, cache)
        seen = cache.read(0, cache.length)[0][0, :, 0].astype(int).tolist()
        rows = [self._row(seen[max(0, n - self._memory) : n]) for n in range(before + 1, cache.length + 1)]
        return np.array(rows if logits == "all" else rows[-1:], np.float32)

    def _row(self, recent: Sequence[int]) -> Any:
        return np.random.default_rng([self._seed, *recent]).normal(0, 2, VOCABULARY)


class Oracle:
    """Drafts from a given list of tokens, right or wrong."""

    seconds_per_token = 0.0

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens, self._acceptance = tokens, Acceptance(0.5)

    def acceptance(self, ids: Sequence[int]) -> Acceptance:
        return self._acceptance

    def draft(self, ids: Sequence[int], count: int, sampler: Sampler) -> Sequence[int]:
        return [self._tokens[(len(ids) + n) % len(self._tokens)] for n in range(count)]


def answer(
    half: RandomHalf,
    prompt: Sequence[int],
    how: Speculator | None,
    *,
    end: Sequence[int] = (),
    context: int = CONTEXT,
    **params: Any,
) -> tuple[Outcome, list[Any], list[Any]]:
    return run(
        Task(
            half=half,
            decoder=Letters(),
            prompt_ids=tuple(prompt),
            params=SamplingParams.of(**params),
            end_ids=frozenset(end),
            context_length=context,
            layers=LAYERS,
            speculator=how,
        )
    )


def same(one: Outcome, other: Outcome) -> bool:
    return (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)


SETTINGS = st.builds(
    SpeculationSettings,
    max_draft=st.integers(0, 12),
    fixed=st.booleans(),
    extra_cost=st.sampled_from([None, 0.0, 0.1, 0.7]),
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), how=SETTINGS, seed=st.integers(0, 10**6), memory=st.integers(1, 3))
def test_greedy_answers_are_the_same_with_and_without(
    data: st.DataObject, how: SpeculationSettings, seed: int, memory: int
) -> None:
    tokens = st.integers(0, VOCABULARY - 1)
    prompt = data.draw(st.lists(tokens, min_size=1, max_size=40))
    context = data.draw(st.integers(len(prompt) + 1, 80))
    params: dict[str, Any] = {
        "max_tokens": data.draw(st.integers(1, 60)),
        "stop": tuple(data.draw(st.lists(st.text("!\"#$%&'", min_size=1, max_size=3), max_size=2))),
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.3])),
    }
    end = data.draw(st.lists(tokens, max_size=1))
    half = RandomHalf(seed, memory, context)
    drafters = (
        [Oracle(data.draw(st.lists(tokens, min_size=1, max_size=9)))] if data.draw(st.booleans()) else []
    )
    plain, pieces, _ = answer(half, prompt, None, end=end, context=context, **params)
    guessed, drafted, rounds = answer(
        half, prompt, Speculator(how, drafters), end=end, context=context, **params
    )
    assert same(plain, guessed)
    assert [*drafted, guessed.last] == [*pieces, plain.last]
    assert guessed.passes.count <= plain.passes.count == len(plain.token_ids) - 1
    assert len(rounds) == LAYERS * (1 + guessed.passes.count)


@settings(max_examples=100, deadline=None)
@given(
    how=SETTINGS,
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 4),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    penalty=st.sampled_from([1.0, 1.2]),
)
def test_sampled_answers_are_those_of_the_seed(
    how: SpeculationSettings, seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    prompt = [1, 2, 3, 1, 2, 3, 1]
    params: dict[str, Any] = {
        "max_tokens": 40,
        "seed": seed,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": penalty,
    }
    plain, _, _ = answer(RandomHalf(seed, 2), prompt, None, **params)
    guessed, _, _ = answer(RandomHalf(seed, 2), prompt, Speculator(how), **params)
    assert same(plain, guessed)


DRAWS = 100_000


@pytest.mark.parametrize(("draft", "top_k", "top_p"), [(0, 0, 1.0), (2, 4, 0.9), (5, 4, 0.9)])
def test_the_acceptance_rule_keeps_the_distribution(draft: int, top_k: int, top_p: float) -> None:
    """Kept with probability p(x), else drawn from p without x; the token behind a kept draft from its own p."""
    logits = np.log([[0.35, 0.25, 0.2, 0.1, 0.06, 0.04], [0.05, 0.05, 0.1, 0.2, 0.2, 0.4]])
    p = [truth(row, top_k, top_p) for row in logits]
    sampler = Sampler(SamplingParams(temperature=1.0, seed=draft, top_k=top_k, top_p=top_p))
    results = [verify(sampler, logits, [draft], ()) for _ in range(DRAWS)]
    first = np.bincount([chosen[0] for chosen in results], minlength=6)
    assert all((len(chosen) == 2) == (chosen[0] == draft) for chosen in results)
    assert_drawn(first, p[0])
    rest = p[0] * (np.arange(6) != draft)
    assert_drawn(first * (np.arange(6) != draft), rest / rest.sum())
    kept = np.bincount([chosen[1] for chosen in results if len(chosen) == 2], minlength=6)
    if p[0][draft]:
        assert_drawn(kept, p[1])
    assert abs(len([c for c in results if len(c) == 2]) / DRAWS - p[0][draft]) < 5 * 0.5 / np.sqrt(DRAWS)


def truth(logits: Any, top_k: int, top_p: float) -> Any:
    """Probabilities after top-k and top-p, by their definitions."""
    p, order = np.exp(logits) / np.exp(logits).sum(), np.argsort(-logits)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    return p / p.sum()


def assert_drawn(counts: Any, p: Any) -> None:
    """Pearson's statistic within six standard deviations of its mean; nothing where p is 0."""
    assert not counts[p == 0].any()
    expected, degrees = counts.sum() * p[p > 0], (p > 0).sum() - 1
    statistic = ((counts[p > 0] - expected) ** 2 / expected).sum()
    assert statistic < degrees + 6 * np.sqrt(2 * degrees) + 1e-9


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 12))
def test_look_up_continues_the_longest_latest_match(ids: list[int], count: int) -> None:
    def length(end: int) -> int:
        return next((n for n in range(min(end + 1, 8)) if ids[end - n] != ids[-1 - n]), min(end + 1, 8))

    lookup, ends = PromptLookup(), [end for end in range(len(ids) - 1) if ids[end] == ids[-1]]
    if not ends:
        assert lookup.acceptance(ids) is None
        return
    best = max(ends, key=lambda end: (length(end), end))
    assert lookup.acceptance(ids) is not None
    endless = list(ids)
    for n in range(count):
        endless.append(endless[best + 1 + n])
    assert list(lookup.draft(ids, count, Sampler(SamplingParams()))) == endless[len(ids) :]


def test_text_that_repeats_takes_fewer_passes() -> None:
    prompt = [1, 2, 3, 4, 5, 6] * 4
    half = RandomHalf(3, 1)  # one token decides the next: a loop of at most seven
    plain, _, _ = answer(half, prompt, None, max_tokens=60)
    guessed, _, _ = answer(half, prompt, Speculator(SpeculationSettings(extra_cost=0.0)), max_tokens=60)
    assert same(plain, guessed)
    assert guessed.passes.count < plain.passes.count / 3
    assert guessed.passes.accepted <= guessed.passes.drafted


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_fixed_draft_sends_as_many_every_time(count: int) -> None:
    how = Speculator(SpeculationSettings(max_draft=count, fixed=True))
    outcome, _, rounds = answer(RandomHalf(1, 2), [1, 2, 3], how, max_tokens=30)
    assert {len(r.x) for r in rounds[LAYERS:]} == {1 + count}
    assert outcome.passes.drafted == count * outcome.passes.count


@pytest.mark.parametrize(("context", "limit"), [(CONTEXT, 2), (20, 60)])
def test_a_fixed_draft_is_shorter_only_where_the_context_ends(context: int, limit: int) -> None:
    wrong = Speculator(SpeculationSettings(max_draft=5, fixed=True), [Oracle([VOCABULARY])])
    half = RandomHalf(1, 2, context)
    outcome, _, rounds = answer(half, [1, 2, 3], wrong, context=context, max_tokens=limit)
    sizes = [len(r.x) for r in rounds[LAYERS::LAYERS]]
    assert len(outcome.token_ids) == min(limit, context - 3) == 1 + len(sizes)
    assert sizes == [min(6, context - 3 - n) for n in range(len(sizes))]


def test_the_more_promising_drafter_is_asked() -> None:
    plain, _, _ = answer(RandomHalf(5, 3), [1, 2, 3], None, max_tokens=60)
    right = [1, 2, 3, *plain.token_ids]
    outcome, _, _ = answer(
        RandomHalf(5, 3),
        [1, 2, 3],
        Speculator(SpeculationSettings(extra_cost=0.3), [Oracle([0]), Oracle(right)]),
        max_tokens=60,
    )
    assert same(plain, outcome)
    assert outcome.passes.accepted > 30


def test_where_tokens_cost_the_same_together_nothing_is_drafted() -> None:
    how = Speculator(SpeculationSettings(extra_cost=1.0))
    outcome, _, _ = answer(RandomHalf(3, 1), [1, 2, 3] * 5, how, max_tokens=60)
    assert (outcome.passes.count, outcome.passes.drafted) == (59, 0)


@pytest.mark.parametrize(("each", "speculates"), [(0.0, True), (0.3, True), (1.0, False)])
def test_measured_costs_decide(each: float, speculates: bool) -> None:
    """A pass of T tokens takes 1 + each (T - 1) seconds."""
    now = [0.0]
    how = Speculator(SpeculationSettings())
    job = Task(
        half=RandomHalf(3, 1),
        decoder=Letters(),
        prompt_ids=(1, 2, 3) * 5,
        params=SamplingParams(max_tokens=60),
        end_ids=frozenset(),
        context_length=CONTEXT,
        layers=LAYERS,
        speculator=how,
        clock=lambda: now[0],
    )

    def spend(step: Any) -> None:
        if hasattr(step, "x"):
            now[0] += (1 + each * (len(step.x) - 1)) / LAYERS

    outcome, _, _ = run(job, spend)
    assert (outcome.passes.drafted > 0) == speculates


def test_an_estimate_starts_from_its_prior_and_follows_what_happens() -> None:
    estimate = Acceptance(0.5)
    assert estimate.chance == 0.5
    for _ in range(60):
        estimate.observe(0, 1)
    assert estimate.chance < 0.1
    for _ in range(60):
        estimate.observe(4, 4)
    assert estimate.chance > 0.9


def test_costs_are_the_fastest_seen_and_interpolated() -> None:
    costs = PassCosts()
    assert costs.seconds(1) is None
    for tokens, seconds in ((1, 9.0), (1, 2.0), (1, 3.0)):
        costs.observe(tokens, seconds)
    assert costs.seconds(3) is None
    costs.observe(5, 4.0)
    assert [costs.seconds(n) for n in (1, 3, 5, 9)] == [2.0, 3.0, 4.0, 6.0]
    for _ in range(8):
        costs.observe(1, 3.0)
    assert costs.seconds(1) == 3.0
    for tokens in range(200):
        costs.observe(tokens, 1.0)
    assert len(costs._seconds) == 64


@given(st.floats(0.01, 0.99), st.floats(0, 2), st.integers(0, MAX_DRAFT))
def test_the_best_count_beats_every_other(chance: float, extra: float, most: int) -> None:
    def rate(k: int) -> float:
        return sum(chance**n for n in range(k + 1)) / (1 + extra * k)

    best = best_count(chance, lambda k: 1 + extra * k, most)
    top = max(rate(k) for k in range(most + 1))
    assume(abs(top - 1.05) > 1e-6)
    assert rate(best) == pytest.approx(top if top > 1.05 else 1.0)


@pytest.mark.parametrize(
    "bad",
    [{"max_draft": -1}, {"max_draft": 33}, {"max_draft": True}, {"extra_cost": -1}, {"extra_cost": 1e9}],
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"cannot use {next(iter(bad))}"):
        SpeculationSettings(**bad)
