"""Distances are whole-number arithmetic and a metric, and tables are checked."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tables import WORDS, scattered, with_strangers

from fhe_llm.errors import DownloadError, ModelError, PrivacyParameterError
from fhe_llm.privacy.embedding_table import RADIUS, STEPS, EmbeddingTable, on_grid
from fhe_llm.privacy.token_choice import LEVELS, levels_of


class TestDistances:
    """What the metric claim is about."""

    def test_they_are_rounded_up_to_whole_steps_and_no_further(self) -> None:
        table = scattered()
        for one, other in itertools.combinations(WORDS, 2):
            a, b = (np.array(table.vector(w), dtype=object) for w in (one, other))
            square = sum(int(x - y) ** 2 for x, y in zip(a, b, strict=True))
            steps = table.distance(one, other) * STEPS  # type: ignore[operator]
            assert steps.denominator == 1
            assert (steps * RADIUS) ** 2 >= STEPS**2 * square > ((steps - 1) * RADIUS) ** 2

    def test_they_are_a_metric(self) -> None:
        table = with_strangers()
        tokens = [*WORDS, "x", "xyz", "xa"]
        far = {pair: table.distance(*pair) for pair in itertools.product(tokens, tokens)}
        for a, b, c in itertools.product(tokens, repeat=3):
            assert far[a, c] <= far[a, b] + far[b, c]  # type: ignore[operator]
            assert far[a, b] == far[b, a]
            assert (far[a, b] == 0) == np.array_equal(table.vector(a), table.vector(b))

    def test_a_token_without_a_vector_has_none(self) -> None:
        assert with_strangers().distance("ant", "nobody") is None

    @given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 600))
    def test_products_of_floats_are_exact(self, seed: int, count: int, dimensions: int) -> None:
        table = scattered(count, dimensions=dimensions, seed=seed)
        rows = table.rows(np.arange(count))
        exact = rows.astype(np.int64)
        expected = np.square(exact[:, None] - exact[None]).sum(-1)
        assert np.array_equal(table.squared_distances(rows), expected)
        one_by_one = [table.squared_distances(row) for row in rows]
        assert np.array_equal(one_by_one, expected)
        assert np.array_equal(table.squared_distances(rows, np.array([1, 0])), expected[:, [1, 0]])
        assert expected.max() <= 1 << 26

    def test_even_of_the_longest_vectors(self) -> None:
        dimensions = 1 << 14
        ones = np.ones((2, dimensions))
        table = EmbeddingTable(["a", "b"], ones * [[1.0], [-1.0]])
        assert np.array_equal(np.diag(table.squared_distances(table.rows(np.arange(2)))), [0, 0])
        far = int(table.squared_distances(table.rows(np.arange(1)))[0, 1])
        assert far == 4 * dimensions * round(RADIUS / math.sqrt(dimensions)) ** 2 < 1 << 26
        assert levels_of(np.array([far], dtype=np.int32))[0] < LEVELS


class TestVectors:
    """How vectors come onto the grid."""

    @pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
    def test_only_the_direction_counts(self, scale: float) -> None:
        vector = np.array([3.0, -4.0, 0.5])
        assert np.array_equal(on_grid(vector * scale), on_grid(vector))

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).filter(any))
    def test_they_are_whole_numbers_of_one_length(self, numbers: list[float]) -> None:
        found = on_grid(np.array(numbers))
        if found is not None:
            assert np.array_equal(found, np.rint(found))
            assert abs(np.linalg.norm(found.astype(float)) - RADIUS) <= math.sqrt(len(numbers)) / 2 + 1e-6

    @pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    def test_zero_and_what_is_not_finite_have_no_place(self, bad: list[float]) -> None:
        assert on_grid(np.array(bad)) is None
        with pytest.raises(PrivacyParameterError, match="zero or not finite"):
            EmbeddingTable(["a", "b"], np.array([[1.0, 2.0], bad]))

    def test_strings_elsewhere_are_placed_by_themselves(self) -> None:
        table = with_strangers()
        assert np.array_equal(table.vector("xyz"), table.vector("xyz"))
        assert table.vector("nobody") is None
        for wrong in (np.ones(4), np.ones((1, 5)), 1.0):
            broken = EmbeddingTable(["a", "b"], np.eye(2, 5), elsewhere=lambda _, w=wrong: w)
            with pytest.raises(PrivacyParameterError, match="must have 5 numbers"):
                broken.vector("c")
        for zero in (np.zeros(5), np.full(5, math.nan)):
            assert EmbeddingTable(["a", "b"], np.eye(2, 5), elsewhere=lambda _, z=zero: z).vector("c") is None


@pytest.mark.parametrize(
    "words",
    [
        ["a"],
        ["a", "a"],
        ["a", ""],
        ["a", "two words"],
        ["a", "Upper"],
        ["a", "don't"],
        ["a", " b"],
        ["a", "é"],
        ["a", 7],
    ],
)
def test_words_that_are_no_tokens_are_refused(words: list[Any]) -> None:
    with pytest.raises(PrivacyParameterError, match="cannot use this table"):
        EmbeddingTable(words, np.eye(len(words), 3))


@pytest.mark.parametrize(
    "vectors",
    [np.eye(3), np.ones(2), np.ones((2, 0)), np.ones((2, 2, 2)), "vectors", [["a", "b"], ["c", "d"]]],
)
def test_vectors_of_another_shape_are_refused(vectors: Any) -> None:
    with pytest.raises(PrivacyParameterError, match="cannot use these vectors"):
        EmbeddingTable(["a", "b"], vectors)


@pytest.mark.slow
def test_the_real_one_knows_words_and_the_pieces_of_others() -> None:
    try:
        table = EmbeddingTable.load()
    except DownloadError as error:
        pytest.skip(str(error))
    assert (len(table), table.dimensions) == (23_578, 384)
    assert table.index("hospital") is not None
    assert table.distance("hospital", "clinic") < table.distance("hospital", "guitar")  # type: ignore[operator]
    assert table.distance("hospital", "hospital") == Fraction(0)
    assert table.index("cardiomyopathies") is None
    near = table.squared_distances(table.vector("cardiomyopathies")).argsort()[:5]  # type: ignore[arg-type]
    assert "heart" in {table.words[i] for i in near}
    assert table.vector("z" * 10_000) is not None
    assert table.vector("\U0001f980") is None


def test_a_cache_that_is_spoilt_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fhe_llm.privacy.embedding_table.minilm_folder", lambda *_: tmp_path)
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "u"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="cannot read the table of words"):
        EmbeddingTable.load(tmp_path)
