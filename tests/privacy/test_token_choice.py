"""Levels and nearest words are computed exactly, and ties are settled."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fhe_llm.privacy.embedding_table import RADIUS, STEPS
from fhe_llm.privacy.token_choice import LEVELS, levels_of, nearest


@given(st.integers(0, 1 << 26))
def test_a_level_is_the_distance_rounded_down(square: int) -> None:
    level = int(levels_of(np.array([square], dtype=np.int32))[0])
    assert (level * RADIUS) ** 2 <= STEPS**2 * square < ((level + 1) * RADIUS) ** 2
    assert 0 <= level < LEVELS


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_the_nearest_are_one_set_however_many_are_equal(found: list[int], data: Any) -> None:
    count = data.draw(st.integers(1, len(found)))
    expected = sorted(sorted(range(len(found)), key=lambda i: (found[i], i))[:count])
    assert nearest(np.array(found, dtype=np.int32), count).tolist() == expected
