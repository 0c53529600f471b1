"""Disjoint groups follow from the table alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_tables import WORDS, scattered

from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm.privacy.token_groups import grouped


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12))
def test_every_word_is_in_one_group_of_the_size(seed: int, count: int, size: int) -> None:
    size = min(size, count)
    groups = grouped(scattered(count, seed=seed), size)
    assert sorted(np.concatenate(groups).tolist()) == list(range(count))
    assert all(group.size == size for group in groups[:-1])
    assert size <= groups[-1].size < 2 * size or count < 2 * size


def test_they_are_the_same_whenever_they_are_made() -> None:
    one, other = (grouped(scattered(12), 3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_word_is_with_its_nearest() -> None:
    vectors = np.repeat(np.eye(4), 3, axis=0) + 0.01 * np.random.default_rng(2).normal(size=(12, 4))
    groups = grouped(EmbeddingTable(WORDS, vectors), 3)
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
