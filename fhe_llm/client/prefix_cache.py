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
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fhe_llm.client.keyfile import KeyPayload, read_key_file, write_key_file
from fhe_llm.client.prefix_store import BlockStore, DiskStore, MemoryStore, locked
from fhe_llm.client.sampling import RequestError
from fhe_llm.errors import KeyRingError, WrongPassphraseError
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
_KEY_FILE: Final = "prefix-cache.key"
_SECRET_BYTES: Final = 32


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
        secret = os.urandom(_SECRET_BYTES)
        if directory is not None:
            folder = Path(directory).expanduser()
            try:
                secret = _secret(folder, passphrase)
                self._store = DiskStore(folder, _derived(secret, b"values"), max_bytes, ttl)
                self.directory = folder
            except OSError as error:
                _LOG.warning("the prefix cache stays in memory: cannot use %s (%s)", folder, error)
        self._names = _derived(secret, b"names")

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


def _secret(folder: Path, passphrase: str | None) -> bytes:
    """The folder's random secret, made on first use. Raises ``OSError`` where it cannot be kept.

    A plain one that is damaged is replaced: its entries are lost and nothing else.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / _KEY_FILE
    with locked(folder):
        if path.exists():
            try:
                found = bytes(read_key_file(path, passphrase).secret)
                if len(found) == _SECRET_BYTES:
                    return found
            except WrongPassphraseError:
                raise
            except KeyRingError as error:
                if path.stat().st_mode & 0o077:
                    raise
                _LOG.warning("replacing the key of the prefix cache: %s", error)
        secret = os.urandom(_SECRET_BYTES)
        try:
            write_key_file(path, KeyPayload({"use": "prefix cache"}, bytearray(secret)), passphrase)
        except KeyRingError as error:
            raise OSError(str(error)) from None
        return secret


def _derived(secret: bytes, use: bytes) -> bytes:
    """32 bytes for one use (HKDF-SHA256, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"fhe-llm prefix cache 1 " + use).derive(
        secret
    )
