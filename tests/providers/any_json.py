"""JSON that looks like a provider's answer and may be anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from fhe_llm.providers.dialect import UnreadableError


def any_json(fields: str, words: str = "") -> st.SearchStrategy[Any]:
    """Objects of these fields, whose values may be these words."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    if words:
        leaves |= st.sampled_from(words.split())
    names = st.sampled_from(fields.split())
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=20,
    )


def is_read_or_unreadable(read: Callable[[], Any], kinds: Any) -> None:
    """Nothing else comes of it, and what is raised has nothing of it behind."""
    failure: BaseException | None = None
    try:
        assert isinstance(read(), kinds)
    except UnreadableError as error:
        failure = error
    assert failure is None or failure.__context__ is None
