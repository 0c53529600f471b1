"""Tables small enough to look at every pair of tokens."""

from __future__ import annotations

import numpy as np

from fhe_llm.privacy.embedding_table import EmbeddingTable

WORDS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark")
CROWD = (*(f"c{i}" for i in range(30)), "far")
"""Words of :func:`crowded`."""


def scattered(count: int = len(WORDS), *, dimensions: int = 5, seed: int = 0) -> EmbeddingTable:
    """Random directions."""
    return EmbeddingTable(WORDS[:count], np.random.default_rng(seed).normal(size=(count, dimensions)))


def crowded() -> EmbeddingTable:
    """Thirty words close together and one far off: sums of weights differ by almost all that a distance allows."""
    vectors = np.array([[1.0, 0.003 * i, 0.0] for i in range(30)] + [[0.6, 0.0, 0.8]])
    return EmbeddingTable(CROWD, vectors)


def with_strangers() -> EmbeddingTable:
    """Twelve words; strings that begin with "x" have a vector as well, others outside the table have none."""

    def elsewhere(token: str) -> np.ndarray | None:
        if not token.startswith("x"):
            return None
        return np.array([len(token), ord(token[-1]) - 110.0, 1.0, -0.5, 0.25])

    return EmbeddingTable(WORDS, np.random.default_rng(1).normal(size=(len(WORDS), 5)), elsewhere=elsewhere)
