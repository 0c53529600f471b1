"""Sampling against slow, obvious definitions; stop strings against every way of cutting a text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fhe_llm.client.sampling import RequestError, Sampler, SamplingParams, StopMatcher, likeliest
from fhe_llm.errors import ReplyError

LOGITS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32))
CHANCE = st.floats(0.01, 1.0)


@given(LOGITS)
def test_temperature_zero_is_the_first_largest(logits: np.ndarray) -> None:
    assert Sampler(SamplingParams())(logits) == int(np.flatnonzero(logits == logits.max())[0])


@given(LOGITS, st.integers(0, 2**63), st.floats(0.1, 5), st.integers(0, 50), CHANCE)
def test_the_same_seed_gives_the_same_tokens(
    logits: np.ndarray, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    first, second = Sampler(params), Sampler(params)
    assert [first(logits) for _ in range(8)] == [second(logits) for _ in range(8)]


@given(LOGITS, st.integers(0, 2**32), st.integers(1, 10))
def test_top_k_draws_only_from_the_largest(logits: np.ndarray, seed: int, top_k: int) -> None:
    sampler = Sampler(SamplingParams(temperature=3.0, top_k=top_k, seed=seed))
    allowed = set(np.argsort(-logits.astype(np.float64), kind="stable")[:top_k].tolist())
    assert {sampler(logits) for _ in range(16)} <= allowed


@given(LOGITS, st.integers(0, 2**32), CHANCE)
def test_top_p_draws_only_from_the_nucleus(logits: np.ndarray, seed: int, top_p: float) -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=top_p, seed=seed))
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    chances = np.exp(logits[order].astype(np.float64) - logits.max())
    chances /= chances.sum()
    before = np.cumsum(chances) - chances
    nucleus = set(order[before < top_p + 1e-9].tolist())
    assert {sampler(logits) for _ in range(16)} <= nucleus


def test_draws_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=7))
    counts = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_a_seed_gives_the_same_tokens_on_every_platform() -> None:
    logits = np.linspace(-1, 1, 50)
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=40, top_p=0.95, seed=1234))
    assert [sampler(logits) for _ in range(10)] == GOLDEN_DRAWS


GOLDEN_DRAWS = [15, 41, 19, 44, 43, 47, 44, 43, 16, 44]


@given(LOGITS, st.integers(0, 2**32), st.integers(0, 5))
def test_a_fork_would_choose_the_same_and_changes_nothing(logits: np.ndarray, seed: int, before: int) -> None:
    params = SamplingParams(temperature=1.0, repetition_penalty=1.5, seed=seed)
    sampler, alone = Sampler(params, [0]), Sampler(params, [0])
    for _ in range(before):
        assert sampler(logits) == alone(logits)
    guesses = [sampler.fork()(logits) for _ in range(2)]
    fork = sampler.fork()
    ahead = [fork(logits) for _ in range(4)]
    assert [sampler(logits) for _ in range(4)] == [alone(logits) for _ in range(4)] == ahead
    assert guesses == [ahead[0]] * 2


def test_tiny_temperatures_do_not_overflow() -> None:
    assert Sampler(SamplingParams(temperature=1e-310, seed=0))(np.array([0.0, 3.0, 2.0])) == 1


@given(LOGITS, st.floats(0.5, 2.0), st.sets(st.integers(0, 60)))
def test_repetition_penalty_is_the_one_of_transformers(
    logits: np.ndarray, penalty: float, seen: set[int]
) -> None:
    expected = logits.astype(np.float64)
    for token in seen:
        if token < logits.size:
            expected[token] = expected[token] / penalty if expected[token] > 0 else expected[token] * penalty
    assert Sampler(SamplingParams(repetition_penalty=penalty), seen)(logits) == int(np.argmax(expected))


def test_repetition_penalty_counts_generated_tokens_and_leaves_logits_alone() -> None:
    sampler, logits = Sampler(SamplingParams(repetition_penalty=2.0)), np.array([1.0, 1.5, 0.9])
    assert [sampler(logits) for _ in range(3)] == [1, 0, 2]
    assert logits.tolist() == [1.0, 1.5, 0.9]


@given(arrays(np.float64, st.integers(1, 30), elements=st.integers(-3, 3).map(float)), st.integers(0, 35))
def test_likeliest_is_a_stable_sort(logits: np.ndarray, top_k: int) -> None:
    expected = np.argsort(-logits, kind="stable")
    np.testing.assert_array_equal(likeliest(logits, top_k), expected[: top_k or None])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ReplyError, match="not finite"):
        Sampler(SamplingParams())(np.array([0.0, bad]))


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": ("a",) * 17},
        {"stop": (3,)},
        {"repetition_penalty": 0},
        {"min_p": 0.1},
    ],
)
def test_bad_parameters_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(values))) as caught:
        SamplingParams.of(**values)
    assert str(caught.value).startswith("cannot use ")


def test_one_stop_string_may_be_given_bare() -> None:
    assert SamplingParams.of(stop="END").stop == ("END",)
    assert SamplingParams.of(stop=None).stop == ()


def run_matcher(stop: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stop)
    shown = "".join([matcher.push(piece) for piece in pieces])
    return shown + matcher.flush(), matcher.stopped


@given(
    st.text("ab\n", max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 12), max_size=6),
)
def test_stop_strings_are_found_however_the_text_is_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    shown, stopped = run_matcher(stop, pieces)
    assert (shown, stopped) == run_matcher(stop, list(text))
    assert stopped == any(s in text for s in stop)
    assert text.startswith(shown)
    assert not any(s in shown for s in stop)
    if not stopped:
        assert shown == text


def test_a_possible_stop_string_is_held_back_and_then_released() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Yes.\nUs") == "Yes."
    assert matcher.push("ually") == "\nUsually"
    assert matcher.push("\nUser") == ""
    assert not matcher.stopped
    assert matcher.push(": hi") == ""
    assert matcher.stopped
    assert matcher.push("more") == matcher.flush() == ""
