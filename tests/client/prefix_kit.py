"""Prefix caches of a small layout whose entries tell where they belong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fhe_llm.client.prefix_cache import BLOCK, FIRST_BLOCK, PrefixCache, PrefixScope
from fhe_llm.models.kv_cache import KVCache

LAYOUT = (2, 3, 4)
IDENTITY = {"model": "m", "bundle": "b", "preset": "default", "proxy": "http://p"}


def scope(cache: PrefixCache, **identity: str) -> PrefixScope:
    return cache.scope(LAYOUT, **(IDENTITY | identity))


def filled(ids: Sequence[int]) -> KVCache:
    """A cache whose every number tells layer and token."""
    cache = KVCache(*LAYOUT, 1000)
    for layer in range(LAYOUT[0]):
        rows = np.broadcast_to(np.array(ids, np.float32)[:, None, None], (len(ids), *LAYOUT[1:]))
        cache.write(layer, rows + 1000 * layer, -rows - layer)
    cache.commit(len(ids))
    return cache


def loaded(where: PrefixScope, ids: Sequence[int]) -> int:
    """How much of ``ids`` is known; checks that it is right to the bit."""
    cache = KVCache(*LAYOUT, 1000)
    count = where.load(ids, cache)
    assert cache.length == count <= max(0, len(ids) - 1)
    np.testing.assert_array_equal(cache.span(0, count), filled(ids).span(0, count))
    return count


def whole(count: int) -> int:
    """The end of the last whole block within ``count`` tokens."""
    return 0 if count < FIRST_BLOCK else count - (count - FIRST_BLOCK) % BLOCK
