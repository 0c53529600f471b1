"""Evaluation keys on disk, by content hash: ``keys/<sha-256 of the key frame>.key``.

A key arrives in chunks in a temporary file and is renamed into place only when its hash is its name and its
frame decodes. Least recently used keys make room under a byte budget. Everything here is blocking and
thread-safe; the routes call it from worker threads. No key here decrypts anything.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fhe_llm_server.refusal import Refusal

KEY_ID: Final = re.compile(r"[0-9a-f]{64}")
MAX_UPLOADS: Final = 8
STALE_UPLOAD_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Upload:
    path: Path
    total: int
    received: int = 0
    touched: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


class KeyStore:
    """LRU of key files. ``verify`` gets a complete key frame and raises to refuse it."""

    def __init__(
        self, directory: Path, budget_bytes: int, max_key_bytes: int, verify: Callable[[bytes], None]
    ) -> None:
        self._keys = directory / "keys"
        self._uploads_dir = directory / "uploads"
        self._budget = budget_bytes
        self.max_key_bytes = min(max_key_bytes, budget_bytes)
        self._verify = verify
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Create the folders, forget unfinished uploads, and learn which keys survived the last run."""
        for folder in (self._keys, self._uploads_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._uploads_dir.iterdir():
            leftover.unlink(missing_ok=True)
        found = [(entry.stat(), entry) for entry in self._keys.glob("*.key") if KEY_ID.fullmatch(entry.stem)]
        with self._lock:
            for stat, entry in sorted(found, key=lambda item: item[0].st_mtime_ns):
                self._sizes[entry.stem] = stat.st_size
            self._make_room(keep=None)

    def __contains__(self, key_id: str) -> bool:
        with self._lock:
            return key_id in self._sizes

    @property
    def used_bytes(self) -> int:
        """Bytes of all complete keys."""
        with self._lock:
            return sum(self._sizes.values())

    def __len__(self) -> int:
        with self._lock:
            return len(self._sizes)

    def write(self, key_id: str, start: int, total: int, chunk: bytes) -> int | None:
        """Store ``chunk`` at ``start``; how many bytes are here so far, or ``None`` once the key is complete.

        Chunks may be repeated but not skipped. Raises :class:`Refusal` with ``body_too_large``,
        ``upload_conflict``, ``busy``, ``key_mismatch``, ``storage_full`` or what ``verify`` raises.
        """
        if key_id in self:
            return None
        upload = self._upload(key_id, total)
        with upload.lock, _clean_storage_errors():
            if self._uploads.get(key_id) is not upload and key_id in self:
                return None
            if start > upload.received or self._uploads.get(key_id) is not upload:
                message = (
                    f"cannot store this chunk: bytes from {upload.received} on are missing. Send them first."
                )
                raise Refusal("upload_conflict", message)
            try:
                _write_at(upload.path, start, chunk)
            except OSError:
                self._forget(key_id, upload)
                raise
            upload.received = max(upload.received, start + len(chunk))
            upload.touched = time.monotonic()
            if upload.received < total:
                return upload.received
            self._complete(key_id, upload)
            return None

    def read(self, key_id: str) -> bytes:
        """The key frame, its hash checked again; raises ``unknown_key``, also for a file damaged on disk."""
        if key_id not in self:
            raise unknown_key()
        path = self._path(key_id)
        try:
            frame = path.read_bytes()
        except OSError:
            self.drop(key_id)
            raise unknown_key() from None
        if hashlib.sha256(frame).hexdigest() != key_id:
            self.drop(key_id)
            raise unknown_key()
        self.touch(key_id)
        return frame

    def touch(self, key_id: str) -> None:
        """Mark as just used; the file's time carries the order over a restart."""
        with self._lock:
            if key_id in self._sizes:
                self._sizes.move_to_end(key_id)
        with contextlib.suppress(OSError):
            os.utime(self._path(key_id))

    def drop(self, key_id: str) -> None:
        """Forget a key. Evaluations that already hold it are not affected."""
        with self._lock:
            self._sizes.pop(key_id, None)
        with contextlib.suppress(OSError):
            self._path(key_id).unlink(missing_ok=True)

    def _path(self, key_id: str) -> Path:
        return self._keys / f"{key_id}.key"

    def _upload(self, key_id: str, total: int) -> _Upload:
        if total > self.max_key_bytes:
            message = (
                f"cannot store this key: it is longer than {self.max_key_bytes} bytes. Use a smaller key."
            )
            raise Refusal("body_too_large", message)
        with self._lock:
            upload = self._uploads.get(key_id)
            if upload is None:
                self._admit_upload()
                upload = self._uploads[key_id] = _Upload(self._uploads_dir / f"{key_id}.part", total)
        if upload.total != total:
            message = (
                "cannot store this chunk: it names another total length. Repeat that of the first chunk."
            )
            raise Refusal("upload_conflict", message)
        return upload

    def _admit_upload(self) -> None:
        if len(self._uploads) < MAX_UPLOADS:
            return
        key_id, stalest = min(self._uploads.items(), key=lambda item: item[1].touched)
        if time.monotonic() - stalest.touched < STALE_UPLOAD_SECONDS:
            message = "cannot store this key: too many uploads at once. Retry a little later."
            raise Refusal("busy", message, retry_after_ms=2000)
        del self._uploads[key_id]
        stalest.path.unlink(missing_ok=True)

    def _forget(self, key_id: str, upload: _Upload) -> None:
        with self._lock:
            if self._uploads.get(key_id) is upload:
                del self._uploads[key_id]
        with contextlib.suppress(OSError):
            upload.path.unlink(missing_ok=True)

    def _complete(self, key_id: str, upload: _Upload) -> None:
        try:
            frame = upload.path.read_bytes()
            if hashlib.sha256(frame).hexdigest() != key_id:
                message = (
                    "cannot store this key: its SHA-256 is not its id. Upload it again from the first byte."
                )
                raise Refusal("key_mismatch", message)
            self._verify(frame)
            with upload.path.open("rb+") as file:
                os.fsync(file.fileno())
            upload.path.replace(self._path(key_id))
        finally:
            self._forget(key_id, upload)
        with self._lock:
            self._sizes[key_id] = len(frame)
            self._make_room(keep=key_id)

    def _make_room(self, keep: str | None) -> None:
        total = sum(self._sizes.values())
        for victim in list(self._sizes):
            if total <= self._budget:
                return
            if victim != keep:
                total -= self._sizes.pop(victim)
                with contextlib.suppress(OSError):
                    self._path(victim).unlink(missing_ok=True)


def unknown_key() -> Refusal:
    """The answer to a key id that is not here, or no longer."""
    return Refusal(
        "unknown_key", "cannot use this key: it is not stored here. Upload the evaluation keys again."
    )


def _write_at(path: Path, start: int, chunk: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.seek(start)
        file.write(chunk)


@contextlib.contextmanager
def _clean_storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        message = "cannot store this key: the proxy's disk is full. Ask its operator, or retry later."
        raise Refusal("storage_full", message) from None
