"""Keys and values of prompts that came before: a chat template, a system prompt or an earlier turn is run once.

The positions of a prompt are cut into blocks. A block is named by an HMAC chain over all tokens up to its end, so that
prompts with a common beginning share blocks and a name tells nothing to whoever lacks the key. Entries reveal the
prompt as much as the prompt itself: on disk they are sealed, and the key is kept like a key ring.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from fhe_llm.client.folder_secret import FolderSecret
from fhe_llm.client.prefix_store import BlockStore, DiskStore, MemoryStore
from fhe_llm.errors import RequestError
from fhe_llm.models.kv_cache import KVCache
from fhe_llm.models.steps import Floats

_LOG: Final = logging.getLogger(__name__)
FORMAT: Final = "fhe-llm prefix block 1, float32 little endian"
FIRST_BLOCK: Final = 16
"""Tokens of the first block: a shorter common beginning saves less than a hit tells the proxy."""
BLOCK: Final = 4
"""Tokens of every later block: at most three tokens of a common prefix are run again."""
DEFAULT_MAX_BYTES: Final = 256 << 20
DEFAULT_TTL: Final = 7 * 86400.0


class PrefixCache:
    """KV entries shared by conversations; 46 KB a token for SmolLM2-135M. Threads may share one.

    Without ``directory`` the blocks live in this process. With one they survive it, sealed with AES-256-GCM under a
    random key that lies in ``directory`` as :meth:`KeyRing.save` would keep it: encrypted under ``passphrase``, or
    with mode 0600 only. A folder that cannot be written gives a cache in memory and a log line.

    Whoever shares a cache can tell from the time an answer takes whether another prompt began like theirs, and the
    proxy can tell from its length: one cache per user.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        passphrase: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        ttl: float = DEFAULT_TTL,
        proxy: str | None = None,
    ) -> None:
        """``max_bytes`` bounds what is kept (least recently used goes first), ``ttl`` its age in seconds. Entries are
        bound to the address of the proxy they came from, or to the name ``proxy`` where its address changes.

        Raises :class:`RequestError` for bad settings, :class:`WrongPassphraseError`, and :class:`KeyRingError` where
        others can read the cache's key.
        """
        if not max_bytes >= 1 or not ttl > 0:
            raise RequestError(
                "cannot make the prefix cache: max_bytes and ttl must be positive. Change them."
            )
        if directory is None and passphrase is not None:
            raise RequestError(
                "cannot make the prefix cache: a passphrase needs a directory. Pass both or neither."
            )
        self.directory: Path | None = None
        self._identity = {} if proxy is None else {"proxy": proxy}
        self._store: BlockStore = MemoryStore(max_bytes, ttl)
        self._names = os.urandom(32)
        if directory is not None:
            folder = Path(directory).expanduser()
            try:
                secret = FolderSecret(folder, passphrase, "prefix cache")
                self._store = DiskStore(folder, secret.derived("values"), max_bytes, ttl)
                self._names = secret.derived("names")
                self.directory = folder
            except OSError as error:
                _LOG.warning("the prefix cache stays in memory: cannot use %s (%s)", folder, error)

    def scope(self, kv_layout: Sequence[int], **identity: str) -> PrefixScope:
        """The part of the cache that belongs to one model: ``identity`` is whatever makes entries exchangeable
        (digests, preset, proxy), ``kv_layout`` is (layers, KV heads, head width)."""
        same = identity | self._identity
        bound = json.dumps([FORMAT, FIRST_BLOCK, BLOCK, list(kv_layout), same], sort_keys=True)
        return PrefixScope(self._store, self._names, bound.encode(), (2, *kv_layout[:2]), kv_layout[2])

    def clear(self) -> None:
        """Forget everything, on disk too, and keep nothing of conversations that are running."""
        self._store.clear()

    def close(self) -> None:
        """Let go of memory and files; entries on disk stay."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PrefixCache({'in memory' if self.directory is None else str(self.directory)!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot copy or pickle a prefix cache. Open its directory again.")


class PrefixScope:
    """The cached prefixes of one model, for one conversation; made by :meth:`PrefixCache.scope`."""

    def __init__(
        self, store: BlockStore, key: bytes, bound: bytes, lead: tuple[int, ...], width: int
    ) -> None:
        """``lead`` is (2, layers, KV heads), ``width`` the head's."""
        self._store, self._key, self._bound = store, key, bound
        self._lead, self._width = lead, width
        self._epoch = store.epoch()

    def load(self, ids: Sequence[int], cache: KVCache) -> int:
        """Fill the empty ``cache`` with the longest known prefix of ``ids``, but its last token; returns its length.

        Blocks are fetched from the last to the first, so that the least recently used one, which goes first, is the
        end of a chain. Cost a block: one look-up, one copy and, on disk, one decryption.
        """
        known: list[tuple[int, int, bytes]] = []
        for block in self._blocks(ids, len(ids) - 1):
            if not self._store.has(block[2]):
                break
            known.append(block)
        spans: list[Floats] = []
        for start, stop, name in reversed(known):
            span = self._span(self._store.get(name), stop - start)
            if span is None:
                self._store.drop(name)
                spans.clear()  # what follows a gap is of no use
            else:
                spans.append(span)
        for span in reversed(spans):
            cache.extend(span)
        return cache.length

    def store(self, ids: Sequence[int], cache: KVCache) -> None:
        """Keep the blocks of ``ids`` that ``cache`` has computed and the store lacks; the tail of a block is not
        kept, and nothing where the store was cleared since this conversation began."""
        fresh = [
            (name, cache.span(start, stop).astype("<f4", copy=False).tobytes())
            for start, stop, name in self._blocks(ids, cache.length)
            if not self._store.has(name)
        ]
        if fresh:
            self._store.put(fresh[::-1], self._epoch)

    def distrust(self) -> None:
        """A reply was spoilt: forget everything, also what this and all other running conversations would store.
        Whoever spoilt it may have spoilt others unnoticed."""
        self._store.clear()

    def _blocks(self, ids: Sequence[int], most: int) -> Iterator[tuple[int, int, bytes]]:
        """(start, stop, name) of every whole block of the first ``most`` tokens."""
        tokens = np.asarray(ids, dtype="<u4")
        start, stop = 0, FIRST_BLOCK
        name = hmac.digest(self._key, self._bound, hashlib.sha256)
        while stop <= min(most, len(tokens)):
            name = hmac.digest(self._key, name + tokens[start:stop].tobytes(), hashlib.sha256)
            yield start, stop, name
            start, stop = stop, stop + BLOCK

    def _span(self, data: bytes | None, tokens: int) -> Floats | None:
        """The stored block as [2, layers, KV heads, tokens, width]; None unless it is one."""
        shape = (*self._lead, tokens, self._width)
        if data is None or len(data) != 4 * int(np.prod(shape)):
            return None
        return np.frombuffer(data, dtype="<f4").reshape(shape)
