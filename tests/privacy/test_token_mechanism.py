"""Claims over tokens hold as exact fractions for every pair, and costs are told before anything is drawn."""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from forking import forked
from hypothesis import given, settings
from hypothesis import strategies as st
from rational_exp import exp_bounds
from small_tables import WORDS, crowded, scattered, with_strangers

from fhe_llm.errors import PrivacyParameterError, UnknownTextError
from fhe_llm.privacy import token_choice
from fhe_llm.privacy.accounting import charge_of
from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm.privacy.token_choice import GroupChoice
from fhe_llm.privacy.token_mechanism import TokenMechanism

EPSILONS = (1e-6, 0.1, 0.3, 1.0, 6.0, 30.0, 1000.0)
every_epsilon = pytest.mark.parametrize("epsilon", EPSILONS)
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "metric": {"metric": True}, "group": {"neighbourhood": 3}}
every_kind = pytest.mark.parametrize("kind", KINDS)


def told(epsilon: float) -> Fraction:
    """The number that a person reads and that the ledger charges."""
    return Fraction(Decimal(repr(epsilon)))


Row = tuple[Sequence[int], int]
"""Whole-number weights and their sum: the shares before they are reduced, which is slow for long numbers."""


def row_of(made: TokenMechanism, token: str) -> Row:
    return made._choice.weights(token), made._choice.total(token)


def keeps(rows: Sequence[Row], exponent: Fraction) -> bool:
    """Whether P[y|x] ≤ e^exponent·P[y|x'] for all rows x, x' and all y, without rounding anywhere."""
    most = exp_bounds(exponent)[0]
    for (one, total), (other, other_total) in itertools.permutations(rows, 2):
        left, right = other_total * most.denominator, total * most.numerator
        if any(p * left > q * right for p, q in zip(one, other, strict=True)):
            return False
    return True


def is_distribution(row: Row) -> bool:
    return min(row[0]) > 0 and sum(row[0]) == row[1]


@every_kind
def test_the_distribution_is_the_weights_over_their_sum(kind: str) -> None:
    made = TokenMechanism(1.0, table=scattered(), **KINDS[kind])
    weights, total = row_of(made, "cat")
    assert made.distribution("cat") == [Fraction(weight, total) for weight in weights]
    assert sum(made.distribution("cat")) == 1
    assert made.shares("cat").tolist() == [float(share) for share in made.distribution("cat")]
    with pytest.raises(UnknownTextError):
        made.shares("secret")


@every_epsilon
@pytest.mark.parametrize("near", [None, 1, 4, 12])
def test_plain_epsilon_holds_between_any_two_tokens(epsilon: float, near: int | None) -> None:
    made = TokenMechanism(epsilon, table=with_strangers(), near=near, unknown="uniform")
    rows = [row_of(made, token) for token in (*WORDS, "x", "xyz", "nobody", "7")]
    assert all(map(is_distribution, rows))
    assert keeps(rows, told(epsilon))
    if near == 1 and epsilon < 40:  # and no more noise is added than that takes
        assert not keeps(rows, told(epsilon) - Fraction(1, 10**9))


@pytest.mark.parametrize("epsilon", [1e-6, 0.3, 6.0, 1000.0])
@pytest.mark.parametrize("table", [crowded(), with_strangers()], ids=["crowded", "strangers"])
def test_metric_epsilon_holds_times_the_distance(epsilon: float, table: EmbeddingTable) -> None:
    made = TokenMechanism(epsilon, table=table, metric=True)
    tokens = [*table.words[:3], table.words[-1], *(("x", "xyz") if "ant" in table.words else ())]
    rows = {token: row_of(made, token) for token in tokens}
    assert all(map(is_distribution, rows.values()))
    for one, other in itertools.combinations(tokens, 2):
        distance = table.distance(one, other)
        assert distance is not None
        assert keeps([rows[one], rows[other]], told(epsilon) * distance)


def test_metric_epsilon_is_used_up_where_sums_differ_most() -> None:
    table = crowded()
    made = TokenMechanism(2.25, table=table, metric=True)
    distance = table.distance("far", "c0")
    assert distance is not None
    rows = [row_of(made, "far"), row_of(made, "c0")]
    assert not keeps(rows, told(2.25) * distance * Fraction(9, 10))


@every_epsilon
def test_group_epsilon_holds_within_a_group_and_says_nothing_across(epsilon: float) -> None:
    table = with_strangers()
    made = TokenMechanism(epsilon, table=table, neighbourhood=3)
    choice = made._choice
    assert isinstance(choice, GroupChoice)
    groups: dict[int, list[str]] = {}
    for token in (*WORDS, "x", "xyz", "xxxxxx"):
        groups.setdefault(choice.group(token), []).append(token)
    assert len(groups) == 4
    for number, tokens in groups.items():
        rows = [row_of(made, token) for token in tokens]
        assert keeps(rows, told(epsilon))
        members = {WORDS[i] for i in choice.groups[number]}
        assert all({w for w, p in zip(WORDS, row, strict=True) if p} == members for row, _ in rows)
    assert not keeps([row_of(made, tokens[0]) for tokens in groups.values()], told(epsilon))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.01, 20.0), st.integers(2, 8), st.sampled_from(sorted(KINDS)))
def test_claims_hold_over_any_table(seed: int, epsilon: float, count: int, kind: str) -> None:
    table = scattered(count, seed=seed)
    group = {"neighbourhood": min(3, count)} if kind == "group" else KINDS[kind]
    made = TokenMechanism(epsilon, table=table, **group)
    rows = {token: row_of(made, token) for token in table.words}
    for one, other in itertools.combinations(table.words, 2):
        exponent = told(epsilon)
        if kind == "metric":
            exponent *= table.distance(one, other) or 0
        same = kind != "group" or made._choice.group(one) == made._choice.group(other)  # type: ignore[attr-defined]
        assert not same or keeps([rows[one], rows[other]], exponent)


def as_row(shares: Sequence[float]) -> Row:
    return [int(Fraction(float(share)) * 2**200) for share in shares], 2**200


def test_the_same_check_refutes_weights_from_floating_point() -> None:
    table, epsilon = scattered(8), 3.0
    grid = np.array([table.vector(word) for word in table.words]) / 4000
    distances = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
    near = (distances <= np.sort(distances, axis=1)[:, [1]]).astype(np.float32)  # two of them
    weights = np.exp(np.float32(epsilon) * near)
    shares = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    assert not keeps([as_row(row) for row in shares], told(epsilon))
    assert keeps([as_row(row) for row in shares], told(epsilon) + Fraction(1, 10**5))
    under = np.exp(-np.float32(1000) * distances.astype(np.float32) / 2)
    assert not keeps([as_row(row) for row in under], Fraction(1100))


@every_kind
def test_the_nearest_words_are_the_likeliest(kind: str) -> None:
    table = scattered()
    made = TokenMechanism(8.0, table=table, **KINDS[kind])
    for token in WORDS:
        row = made.distribution(token)
        assert row[WORDS.index(token)] == max(row)


@every_kind
def test_draws_follow_the_distribution(kind: str) -> None:
    """Chi-squared with 11 degrees of freedom exceeds 60 once in ten million times."""
    made = TokenMechanism(2.0, table=scattered(), **KINDS[kind])
    count = 6000
    drawn = Counter(" ".join(made.protect([" ".join(["eel"] * count)]).value).split())
    assert drawn.total() == count
    row = dict(zip(WORDS, made.distribution("eel"), strict=True))
    assert set(drawn) <= {word for word, share in row.items() if share}
    far = sum(
        (drawn[word] - count * float(share)) ** 2 / (count * share) for word, share in row.items() if share
    )
    assert far < 60


@every_kind
def test_a_quote_is_the_event_and_tokens_add_up(kind: str) -> None:
    made = TokenMechanism(0.1, table=scattered(), **KINDS[kind])
    texts = ["Ant bee CAT", "", "dog"]
    quoted, drawn = made.quote(texts), made.protect(texts)
    assert drawn.event == quoted
    assert quoted.tokens == 4
    assert [len(text.split()) for text in drawn.value] == [3, 0, 1]
    unit = {"plain": "epsilon", "metric": "metric-epsilon", "group": "group-epsilon"}[kind]
    assert charge_of(quoted) == {unit: 400_000}
    hundred = TokenMechanism(1.0, table=scattered(), **KINDS[kind]).quote(["ant " * 60, "bee " * 40])
    assert charge_of(hundred) == {unit: 100 * 10**6}
    assert charge_of(made.quote([])) == {unit: 0}
    assert made.protect([]).value == ()


def test_a_quote_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise AssertionError

    monkeypatch.setattr(token_choice.secrets, "randbelow", refuse)
    made = TokenMechanism(1.0, table=scattered())
    made.quote(["ant bee"])
    with pytest.raises(AssertionError):
        made.protect(["ant bee"])


@pytest.mark.parametrize("kind", ["plain", "metric", "group"])
def test_text_without_a_vector_is_refused_before_anything_is_drawn(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TokenMechanism(1.0, table=with_strangers(), **KINDS[kind])
    monkeypatch.setattr(token_choice.secrets, "randbelow", lambda _: pytest.fail("drawn"))
    for call in (made.quote, made.protect):
        with pytest.raises(UnknownTextError, match="cannot protect 2 of 3 tokens") as caught:
            call(["ant secret", "password"])
        assert "secret" not in str(caught.value), "the message must not carry the text"
    with pytest.raises(UnknownTextError):
        made.distribution("secret")


def test_unknown_tokens_become_any_word_alike_where_that_was_asked_for() -> None:
    made = TokenMechanism(5.0, table=scattered(), unknown="uniform")
    assert set(made.distribution("secret")) == {Fraction(1, 12)}
    drawn = made.protect(["secret hunter2 ant"])
    assert drawn.event.tokens == 3
    assert set(drawn.value[0].split()) <= set(WORDS)


def test_strings_outside_the_table_are_placed_by_their_vector() -> None:
    made = TokenMechanism(1.0, table=with_strangers())
    assert set(made.protect(["x xyz"]).value[0].split()) <= set(WORDS)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 1001, True, "1", None])
def test_an_epsilon_that_makes_no_sense_is_refused(epsilon: Any) -> None:
    with pytest.raises(PrivacyParameterError, match="epsilon="):
        TokenMechanism(epsilon, table=scattered())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": True, "neighbourhood": 3}, "exclude each other"),
        ({"metric": True, "near": 3}, "plain"),
        ({"neighbourhood": 3, "unknown": "uniform"}, "plain"),
        ({"unknown": "keep"}, "'refuse' or 'uniform'"),
        ({"near": 0}, "near=0"),
        ({"near": 13}, "near=13"),
        ({"near": 1.5}, "near=1.5"),
        ({"neighbourhood": 1}, "neighbourhood=1"),
        ({"neighbourhood": True}, "neighbourhood=True"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyParameterError, match=message):
        TokenMechanism(1.0, table=scattered(), **options)


def test_a_string_for_texts_is_refused() -> None:
    made = TokenMechanism(1.0, table=scattered())
    for call in (made.quote, made.protect):
        with pytest.raises(PrivacyParameterError, match=r"Use \[text\]"):
            call("ant bee")  # type: ignore[operator]


@every_kind
def test_a_draw_depends_on_no_other_token(kind: str) -> None:
    made = TokenMechanism(1.0, table=scattered(), **KINDS[kind])
    before = {token: row_of(made, token) for token in WORDS}
    made.protect([" ".join(WORDS * 3), "ant ant ant"])
    assert {token: row_of(made, token) for token in reversed(WORDS)} == before


@every_kind
def test_threads_share_a_mechanism(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_choice, "REMEMBERED", 3)  # so that what is remembered changes all the time
    made = TokenMechanism(30.0, table=scattered(), **KINDS[kind])
    expected = {token: row_of(made, token) for token in WORDS}
    wrong: list[str] = []
    start = threading.Barrier(4)

    def use(number: int) -> None:
        start.wait()
        for _ in range(8):
            tokens = random.sample(WORDS, 5)
            drawn = made.protect([" ".join(tokens)]).value[0].split()
            pairs = zip(tokens, drawn, strict=True)
            wrong.extend(t for t, w in pairs if not expected[t][0][WORDS.index(w)])
            wrong.extend(t for t in tokens[:2] if row_of(made, t) != expected[t])

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def drawn_once(made: TokenMechanism) -> str:
    return made.protect(["ant " * 100]).value[0]


def test_seeds_of_other_generators_change_nothing() -> None:
    made = TokenMechanism(1.0, table=scattered())
    seen = set()
    for _ in range(3):
        random.seed(1)
        np.random.seed(1)
        seen.add(drawn_once(made))
    assert len(seen) == 3


def test_forked_children_draw_anew() -> None:
    made = TokenMechanism(1.0, table=scattered())
    drawn_once(made)
    with forked(lambda: drawn_once(made).encode()) as one, forked(lambda: drawn_once(made).encode()) as other:
        assert len({one().decode(), other().decode(), drawn_once(made)}) == 3


@every_kind
def test_a_child_draws_whatever_its_parent_was_doing(kind: str) -> None:
    made = TokenMechanism(1.0, table=scattered(), **KINDS[kind])
    with made._choice._lock, forked(lambda: made.protect(["ant bee"]).value[0].encode()) as drawn:
        assert len(drawn().split()) == 2
