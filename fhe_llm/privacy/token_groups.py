"""Disjoint groups of similar words, computed from the table alone."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.privacy.embedding_table import EmbeddingTable

SEEDS: Final = 64


def grouped(table: EmbeddingTable, size: int) -> list[NDArray[np.intp]]:
    """All words in groups of ``size``, the last of up to 2·``size`` - 1: the first word in no group and its nearest
    that are in none, again and again. Each group is sorted.

    Distances are whole numbers and ties go to the earlier word, so a table has one grouping on every machine. About
    V²/(2·size)·d operations at ``size`` words a group: 1 s for 23,000 words in groups of 20.
    """
    free = np.ones(len(table), dtype=bool)
    groups: list[NDArray[np.intp]] = []
    while (left := np.flatnonzero(free)).size >= 2 * size:
        distances = table.squared_distances(table.rows(left[:SEEDS]), left).astype(np.int64)
        distances = distances * left.size + np.arange(
            left.size
        )  # unique, in the order of distance, then of index
        for seed, row in zip(left[:SEEDS], distances, strict=False):
            if not free[seed] or free.sum() < 2 * size:
                continue
            open_places = np.flatnonzero(free[left])
            nearest = open_places[np.argpartition(row[open_places], size - 1)[:size]]
            members = np.sort(left[nearest])
            free[members] = False
            groups.append(members)
    groups.append(left)
    return groups
