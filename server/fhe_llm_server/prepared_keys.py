"""Keys in the evaluator's own form, in memory: least recently used first out, loaded once for all."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from fhe_llm_server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class PreparedKey:
    """One client's rotation keys, ready for ``Job``; ``nbytes`` is what it is charged in the cache."""

    key_id: str
    elements: frozenset[int]
    prepared: Any
    nbytes: int


class PreparedKeys:
    """Use from the event loop only. ``load`` is blocking and runs on ``pool``; it may raise ``Refusal``.

    A job keeps its own reference, so evicting a key never disturbs an evaluation that has begun.
    """

    def __init__(
        self, load: Callable[[str], PreparedKey], budget_bytes: int, pool: Executor, metrics: Metrics
    ) -> None:
        self._load = load
        self._budget = budget_bytes
        self._pool = pool
        self._events = {name: metrics.key_cache.labels(name) for name in ("hit", "miss", "evicted")}
        self._ready: OrderedDict[str, PreparedKey] = OrderedDict()
        self._loading: dict[str, asyncio.Future[PreparedKey]] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes charged for the keys held now."""
        return sum(key.nbytes for key in self._ready.values())

    def drop(self, key_id: str) -> None:
        """Forget a key."""
        self._ready.pop(key_id, None)

    async def get(self, key_id: str) -> PreparedKey:
        """The prepared key; loads it at most once however many requests ask for it together."""
        key = self._ready.get(key_id)
        if key is not None:
            self._ready.move_to_end(key_id)
            self._events["hit"].inc()
            return key
        self._events["miss"].inc()
        loading = self._loading.get(key_id)
        if loading is None:
            loading = asyncio.get_running_loop().run_in_executor(self._pool, self._load, key_id)
            self._loading[key_id] = loading
            loading.add_done_callback(lambda done: self._arrived(key_id, done))
        return await asyncio.shield(loading)

    def _arrived(self, key_id: str, done: asyncio.Future[PreparedKey]) -> None:
        self._loading.pop(key_id, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._ready[key_id] = done.result()
        used = self.used_bytes
        while used > self._budget and len(self._ready) > 1:
            _, evicted = self._ready.popitem(last=False)
            used -= evicted.nbytes
            self._events["evicted"].inc()
