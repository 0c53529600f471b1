"""Answers kept on disk, sealed: what a host program's cache of model answers should be."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fhe_llm.client.folder_secret import FolderSecret
from fhe_llm.client.prefix_store import DiskStore
from fhe_llm.errors import KeyRingError, RequestError

DEFAULT_MAX_BYTES: Final = 64 << 20
DEFAULT_TTL: Final = 7 * 86400.0


class AnswerCache:
    """Texts under names, both unreadable without the key: values are sealed with AES-256-GCM, names are HMACs.

    The key lies in ``directory`` as :meth:`KeyRing.save` would keep it: encrypted under ``passphrase``, or with mode
    0600 only. Threads and processes may share a directory. An entry that was changed counts as absent.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        passphrase: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        ttl: float = DEFAULT_TTL,
    ) -> None:
        """``max_bytes`` bounds what is kept (least recently used goes first), ``ttl`` its age in seconds.

        Raises :class:`RequestError` for bad settings, :class:`WrongPassphraseError`, and :class:`KeyRingError` where
        the directory cannot be written or others can read its key.
        """
        if not max_bytes >= 1 or not ttl > 0:
            raise RequestError("cannot make the cache: max_bytes and ttl must be positive. Change them.")
        self.directory = Path(directory).expanduser()
        try:
            secret = FolderSecret(self.directory, passphrase, "answer cache")
            self._store = DiskStore(self.directory, secret.derived("values"), max_bytes, ttl)
        except OSError as error:
            raise KeyRingError(f"cannot use {self.directory}: {error}. Name another directory.") from None
        self._names = secret.derived("names")

    def get(self, *name: str) -> str | None:
        """The text under a name of one or more parts; None where there is none."""
        found = self._store.get(self._name(name))
        return None if found is None else found.decode()

    def put(self, text: str, *name: str) -> None:
        """Keep ``text`` under a name."""
        self._store.put([(self._name(name), text.encode())], self._store.epoch())

    def clear(self) -> None:
        """Forget everything."""
        self._store.clear()

    def close(self) -> None:
        """Let go of the files; entries stay."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"AnswerCache({str(self.directory)!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot copy or pickle an answer cache. Open its directory again.")

    def _name(self, parts: tuple[str, ...]) -> bytes:
        return hmac.digest(self._names, json.dumps(parts).encode(), hashlib.sha256)
