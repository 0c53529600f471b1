"""The secret of a folder that holds sealed data, kept beside the data as a key ring would be."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fhe_llm.client.keyfile import KeyPayload, read_key_file, write_key_file
from fhe_llm.client.prefix_store import locked
from fhe_llm.errors import KeyRingError, WrongPassphraseError

_LOG: Final = logging.getLogger(__name__)
_SECRET_BYTES: Final = 32


class FolderSecret:
    """32 random bytes of ``folder``, made on first use, for one ``use`` ("prefix cache")."""

    def __init__(self, folder: Path, passphrase: str | None, use: str) -> None:
        """Reads or makes ``folder/<use>.key``: encrypted under ``passphrase``, or with mode 0600 only.

        A plain one that is damaged is replaced: what lies in the folder is lost and nothing else. Raises ``OSError``
        where it cannot be kept, :class:`WrongPassphraseError`, and :class:`KeyRingError` where others can read it.
        """
        self._use = use
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{use.replace(' ', '-')}.key"
        with locked(folder):
            self._secret = _kept(path, passphrase, use) or _made(path, passphrase, use)

    def derived(self, purpose: str) -> bytes:
        """32 bytes for one purpose (HKDF-SHA256, RFC 5869)."""
        info = f"fhe-llm {self._use} 1 {purpose}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._secret)

    def __repr__(self) -> str:
        return f"FolderSecret({self._use!r})"


def _kept(path: Path, passphrase: str | None, use: str) -> bytes | None:
    if not path.exists():
        return None
    try:
        found = bytes(read_key_file(path, passphrase).secret)
    except WrongPassphraseError:
        raise
    except KeyRingError as error:
        if path.stat().st_mode & 0o077:
            raise
        _LOG.warning("replacing the key of the %s: %s", use, error)
        return None
    return found if len(found) == _SECRET_BYTES else None


def _made(path: Path, passphrase: str | None, use: str) -> bytes:
    secret = os.urandom(_SECRET_BYTES)
    try:
        write_key_file(path, KeyPayload({"use": use}, bytearray(secret)), passphrase)
    except KeyRingError as error:
        raise OSError(str(error)) from None
    return secret
