"""The key file: what is in it, how it is protected, and how it replaces an older one.

Layout, little endian: magic ``FHEK``, u8 version, u8 protection (0 plain, 1 passphrase), then

* plain: u32 n, SHA-256 of the payload, payload of n bytes;
* passphrase: u8 log2 N, u8 r, u8 p of scrypt, 16-byte salt, 12-byte nonce, u32 n, then AES-256-GCM of the payload with
  everything before it as associated data (n bytes and a 16-byte tag).

The payload is u32 m, m bytes of JSON, then the secret key as SEAL saves it. Sources: RFC 7914 (scrypt), NIST SP
800-38D (GCM). A fresh salt gives every save its own key, so the random nonce never repeats under one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import stat
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fhe_llm.errors import KeyRingError, WrongPassphraseError

MAGIC: Final = b"FHEK"
VERSION: Final = 1
PLAIN: Final = 0
PASSPHRASE: Final = 1
SCRYPT_COST: Final = (15, 8, 1)
"""log2 N, r, p: 32 MiB and about 0.1 s."""
MAX_FILE_BYTES: Final = 1 << 22
_PREFIX: Final = struct.Struct("<4sBB")
_PLAIN_HEADER: Final = struct.Struct("<4sBBI32s")
_SEALED_HEADER: Final = struct.Struct("<4sBBBBB16s12sI")
_TAG_BYTES: Final = 16


@dataclass(frozen=True, slots=True, repr=False)
class KeyPayload:
    """Facts about the key, and the secret key's bytes in a buffer that can be overwritten."""

    facts: dict[str, Any]
    secret: bytearray


def write_key_file(path: Path, payload: KeyPayload, passphrase: str | None) -> None:
    """Replace ``path`` atomically: mode 0600 from the first byte, synced, then renamed.

    On any failure (a full disk, a read-only folder) the old file stays as it was and :class:`KeyRingError` is raised.
    """
    facts = json.dumps(payload.facts, sort_keys=True).encode()
    body = bytearray(struct.pack("<I", len(facts)) + facts)
    body += payload.secret
    try:
        parts = _protect(body, passphrase)
        replace_file(path, parts)
    except OSError as error:
        raise KeyRingError(
            f"cannot save the key to {path}: {error.strerror or error}. The older file, if any, is unchanged; "
            "free some space or choose another folder."
        ) from None
    finally:
        body[:] = bytes(len(body))


def read_key_file(path: Path, passphrase: str | None) -> KeyPayload:
    """Open and check a key file.

    Raises :class:`WrongPassphraseError` (wrong or missing passphrase) and :class:`KeyRingError` (no such file,
    readable by others, damaged, of another version).
    """
    data = _read_private(path)
    try:
        magic, version, protection = _PREFIX.unpack_from(data)
    except struct.error:
        raise _damaged(path, "it is too short") from None
    if magic != MAGIC or protection not in (PLAIN, PASSPHRASE):
        raise _damaged(path, "it is not a key file")
    if version != VERSION:
        raise KeyRingError(f"cannot load the key from {path}: it has version {version}. Use a newer fhe-llm.")
    body = _open_plain(path, data) if protection == PLAIN else _open_sealed(path, data, passphrase)
    try:
        (size,) = struct.unpack_from("<I", body)
        facts = json.loads(bytes(body[4 : 4 + size]))
        if not isinstance(facts, dict) or 4 + size >= len(body):
            raise _damaged(path, "its contents do not hold together")
        return KeyPayload(facts, body[4 + size :])
    except (struct.error, ValueError):
        raise _damaged(path, "its contents do not hold together") from None
    finally:
        body[:] = bytes(len(body))


def replace_file(path: Path, parts: list[bytes | bytearray]) -> None:
    """Write ``parts`` beside ``path`` (mode 0600), sync, rename over it, sync the folder; raises ``OSError``.

    A failure leaves ``path`` untouched and no temporary file behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part)
                while len(view):
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _protect(body: bytearray, passphrase: str | None) -> list[bytes | bytearray]:
    if passphrase is None:
        return [_PLAIN_HEADER.pack(MAGIC, VERSION, PLAIN, len(body), hashlib.sha256(body).digest()), body]
    if not passphrase:
        raise KeyRingError("cannot save the key: the passphrase is empty. Pass None to save it unencrypted.")
    salt, nonce = os.urandom(16), os.urandom(12)
    header = _SEALED_HEADER.pack(MAGIC, VERSION, PASSPHRASE, *SCRYPT_COST, salt, nonce, len(body))
    encryptor = Cipher(
        algorithms.AES256(_derive(passphrase, salt, SCRYPT_COST)), modes.GCM(nonce)
    ).encryptor()
    encryptor.authenticate_additional_data(header)
    return [header, encryptor.update(body), encryptor.finalize(), encryptor.tag]


def _open_plain(path: Path, data: bytes) -> bytearray:
    if len(data) < _PLAIN_HEADER.size:
        raise _damaged(path, "it is too short")
    size, digest = _PLAIN_HEADER.unpack_from(data)[3:]
    body = bytearray(data[_PLAIN_HEADER.size :])
    if len(body) != size or not hmac.compare_digest(hashlib.sha256(body).digest(), digest):
        raise _damaged(path, "its checksum does not match")
    return body


def _open_sealed(path: Path, data: bytes, passphrase: str | None) -> bytearray:
    if not passphrase:
        raise WrongPassphraseError(f"cannot load the key from {path}: it is encrypted. Give its passphrase.")
    if len(data) < _SEALED_HEADER.size:
        raise _damaged(path, "it is too short")
    log_n, r, p, salt, nonce, size = _SEALED_HEADER.unpack_from(data)[3:]
    sealed, tag = data[_SEALED_HEADER.size : -_TAG_BYTES], data[-_TAG_BYTES:]
    if (log_n, r, p) != SCRYPT_COST or len(sealed) != size:
        raise _damaged(path, "its header does not hold together")
    key = _derive(passphrase, salt, SCRYPT_COST)
    decryptor = Cipher(algorithms.AES256(key), modes.GCM(nonce, tag)).decryptor()
    decryptor.authenticate_additional_data(data[: _SEALED_HEADER.size])
    body = bytearray(size + 16)
    try:
        written = decryptor.update_into(sealed, body)
        decryptor.finalize()
    except InvalidTag:
        body[:] = bytes(len(body))
        raise WrongPassphraseError(
            f"cannot load the key from {path}: the passphrase is wrong or the file was changed. "
            "Check the passphrase, or restore the file from a copy."
        ) from None
    del body[written:]
    return body


def _derive(passphrase: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    log_n, r, p = cost
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=r, p=p).derive(passphrase.encode("utf-8"))


def _read_private(path: Path) -> bytes:
    """The file's bytes; refuses what other users of the machine can read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                raise _damaged(path, "it is not a key file")
            if status.st_mode & 0o077:
                raise KeyRingError(
                    f"cannot load the key from {path}: other users can read it (mode {status.st_mode & 0o777:04o}). "
                    f"Run chmod 600 {path}, and make a new key if others had access."
                )
            return file.read()
    except OSError as error:
        raise KeyRingError(
            f"cannot load the key from {path}: {error.strerror or error}. Check the path, or make a key first."
        ) from None


def _damaged(path: Path, cause: str) -> KeyRingError:
    return KeyRingError(
        f"cannot load the key from {path}: {cause}. Restore it from a copy, or make a new key."
    )
