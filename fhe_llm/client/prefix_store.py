"""Where blocks of a prefix cache lie: in this process, or sealed in a SQLite file that several processes share.

A store is a table from names to bytes that may forget anything at any time. It never raises for an entry: what cannot
be read, opened or written counts as absent, because the worst a cache may cost is the time it would have saved.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import diskcache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_LOG: Final = logging.getLogger(__name__)
_NONCE_BYTES: Final = 12
_LOCK_SECONDS: Final = 2.0
_DATABASE: Final = "blocks"
_EPOCH_BYTES: Final = 16
_EPOCH: Final = b"epoch"
"""The row that holds it; other names are longer."""
_BROKEN: Final = (sqlite3.Error, diskcache.Timeout, OSError)
_UNREADABLE: Final = (*_BROKEN, TypeError, ValueError, KeyError, AttributeError)
"""What diskcache can raise over a database whose tables are not its own."""


class BlockStore(Protocol):
    """Names (32 bytes) to values. Least recently used entries go first; old ones expire.

    An *epoch* lasts from one :meth:`clear` to the next. What was computed in an earlier one is not kept: it may have
    come the way that made somebody clear the store.
    """

    def epoch(self) -> bytes:
        """The present one."""
        ...

    def has(self, name: bytes) -> bool:
        """Whether there seems to be an entry; :meth:`get` may still find that there is none."""
        ...

    def get(self, name: bytes) -> bytes | None:
        """The value, which counts as used now; None where there is none."""
        ...

    def put(self, blocks: Sequence[tuple[bytes, bytes]], epoch: bytes) -> None:
        """Keep these, the last one as the most recently used, unless ``epoch`` has ended."""
        ...

    def drop(self, name: bytes) -> None:
        """Forget one entry."""
        ...

    def clear(self) -> None:
        """Forget all entries and begin another epoch."""
        ...

    def close(self) -> None:
        """Let go of files and memory."""
        ...


class MemoryStore:
    """Blocks in this process, in the clear as the conversation itself is. Thread-safe."""

    def __init__(self, max_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._ttl, self._clock = max_bytes, ttl, clock
        self._blocks: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._epoch = os.urandom(_EPOCH_BYTES)
        self._lock = threading.Lock()

    def epoch(self) -> bytes:
        """See :class:`BlockStore`."""
        with self._lock:
            return self._epoch

    def has(self, name: bytes) -> bool:
        """See :class:`BlockStore`."""
        with self._lock:
            return self._fresh(name) is not None

    def get(self, name: bytes) -> bytes | None:
        """See :class:`BlockStore`."""
        with self._lock:
            value = self._fresh(name)
            if value is not None:
                self._blocks.move_to_end(name)
            return value

    def put(self, blocks: Sequence[tuple[bytes, bytes]], epoch: bytes) -> None:
        """See :class:`BlockStore`."""
        with self._lock:
            if epoch != self._epoch:
                return
            for name, value in blocks:
                self._forget(name)
                self._blocks[name] = self._clock() + self._ttl, value
                self._bytes += len(value)
            while self._bytes > self._max_bytes:
                self._forget(next(iter(self._blocks)))

    def drop(self, name: bytes) -> None:
        """See :class:`BlockStore`."""
        with self._lock:
            self._forget(name)

    def clear(self) -> None:
        """See :class:`BlockStore`."""
        with self._lock:
            self._blocks.clear()
            self._bytes, self._epoch = 0, os.urandom(_EPOCH_BYTES)

    def close(self) -> None:
        """See :class:`BlockStore`."""
        self.clear()

    def _fresh(self, name: bytes) -> bytes | None:
        expires, value = self._blocks.get(name, (0.0, None))
        if value is not None and expires <= self._clock():
            self._forget(name)
            return None
        return value

    def _forget(self, name: bytes) -> None:
        _, value = self._blocks.pop(name, (0.0, b""))
        self._bytes -= len(value)


class DiskStore:
    """Blocks in one SQLite database, each sealed with AES-256-GCM under ``key`` and bound to its name.

    Safe for threads, forks and several processes. A value is a 12-byte random nonce, then ciphertext and tag (NIST SP
    800-38D allows 2^32 of them under one key; a database of the default size holds a few thousand).
    """

    def __init__(self, folder: Path, key: bytes, max_bytes: int, ttl: float) -> None:
        """Opens or makes ``folder/blocks``; a damaged database is replaced by an empty one.

        Raises ``OSError`` where the folder cannot be written, or another process keeps the database locked.
        """
        self._folder, self._max_bytes, self._ttl = folder, max_bytes, ttl
        self._aead = AESGCM(key)
        self._cache = self._opened()
        self._silenced = self._lost = False

    def epoch(self) -> bytes:
        """See :class:`BlockStore`. Holds for all processes; where two begin the first one at once, one of them keeps
        nothing."""
        epoch = self.get(_EPOCH)
        if epoch is None:
            epoch = os.urandom(_EPOCH_BYTES)
            with self._tolerant():
                self._cache.set(_EPOCH, self._seal(_EPOCH, epoch))
        return epoch

    def has(self, name: bytes) -> bool:
        """See :class:`BlockStore`."""
        found = False
        with self._tolerant():
            found = name in self._cache and not self._lost
        return found

    def get(self, name: bytes) -> bytes | None:
        """See :class:`BlockStore`. An entry that fails its authentication is dropped."""
        sealed: Any = None
        with self._tolerant():
            sealed = self._cache.get(name)
        if sealed is None:
            return None
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name)
        except (InvalidTag, ValueError, TypeError):
            _LOG.warning("dropped a damaged entry of the cache in %s", self._folder)
            self.drop(name)
            return None

    def put(self, blocks: Sequence[tuple[bytes, bytes]], epoch: bytes) -> None:
        """See :class:`BlockStore`. One transaction for the look at the epoch and all of them."""
        sealed = [(name, self._seal(name, value)) for name, value in blocks]
        with self._tolerant(), self._cache.transact():
            if self._lost or self.get(_EPOCH) != epoch:
                return
            for name, value in sealed:
                self._cache.set(name, value, expire=self._ttl)

    def drop(self, name: bytes) -> None:
        """See :class:`BlockStore`."""
        with self._tolerant():
            self._cache.delete(name)

    def clear(self) -> None:
        """See :class:`BlockStore`. The epoch goes with the entries. What cannot be cleared is not used any more."""
        self._lost = True
        with self._tolerant(), self._cache.transact():
            self._cache.clear()
            self._lost = False

    def close(self) -> None:
        """Close this thread's connection; the entries stay."""
        with self._tolerant():
            self._cache.close()

    def _seal(self, name: bytes, value: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, value, name)

    def _opened(self) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self._folder):
            try:
                return self._open()
            except _UNREADABLE as error:
                if not _damage(error):
                    raise OSError(str(error) or "the database is locked") from None
                _LOG.warning("replacing the damaged cache in %s (%s)", self._folder, error)
                for path in (self._folder / _DATABASE).glob("cache.db*"):
                    path.unlink(missing_ok=True)
                return self._open()

    def _open(self) -> Any:
        folder = self._folder / _DATABASE
        folder.mkdir(exist_ok=True, mode=0o700)
        cache = diskcache.Cache(
            str(folder),
            timeout=_LOCK_SECONDS,
            disk=_InlineBytes,
            size_limit=self._max_bytes,
            eviction_policy="least-recently-used",
            cull_limit=2,  # rows to evict per row stored; pages come back only when the transaction ends
            statistics=0,
            tag_index=0,
        )
        try:
            with cache.transact():  # proves that this process may write
                cache.expire()
        except BaseException:
            cache.close()
            raise
        return cache

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """The database may be locked, full, damaged or gone: say so once and go on without the entry."""
        try:
            yield
        except _UNREADABLE as error:
            if not self._silenced:
                self._silenced = True
                _LOG.warning("the cache in %s does not work: %s", self._folder, error)
            with suppress(*_BROKEN):
                self._cache.close()  # a connection in mid-transaction would keep the database locked


class _InlineBytes(diskcache.Disk):  # type: ignore[misc]  # the package has no types
    """Bytes for keys and values, in the database itself: nothing is unpickled, no path in a row is followed.

    A cache folder is data, and diskcache's own Disk would run code from a changed row.
    """

    def __init__(self, directory: str, **_settings: Any) -> None:
        super().__init__(directory)
        self.min_file_size = 1 << 62

    def put(self, key: Any) -> tuple[Any, bool]:
        return sqlite3.Binary(_bytes(key)), True

    def get(self, key: Any, raw: Any) -> bytes:
        return _bytes(key if raw else None)

    def store(self, value: Any, *_: Any, **__: Any) -> tuple[int, int, None, Any]:
        return 0, diskcache.core.MODE_RAW, None, sqlite3.Binary(_bytes(value))

    def fetch(self, mode: Any, filename: Any, value: Any, *_: Any) -> bytes:
        return _bytes(value if mode == diskcache.core.MODE_RAW and filename is None else None)

    def remove(self, file_path: Any) -> None:
        """Nothing is ever kept in a file, so there is none to remove."""


def _damage(error: Exception) -> bool:
    """Whether the database itself is at fault: not a lock, a full disk or a missing permission."""
    if isinstance(error, sqlite3.OperationalError):
        return "no such" in str(error)
    return not isinstance(error, OSError | diskcache.Timeout)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | memoryview):
        raise ValueError("a cache holds raw bytes only")  # noqa: TRY004  read as a damaged entry
    return bytes(value)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in ``folder``; raises ``OSError`` where it cannot be written."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
