"""The SQLite file of a ledger: its tables, how it is made in one step, and how it is opened."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from pathlib import Path
from typing import Final

from fhe_llm.errors import LedgerError
from fhe_llm.privacy.charge import MAX_AMOUNT
from fhe_llm.privacy.sqlite_connections import WAIT_S

APPLICATION_ID: Final = 0x46484C42
VERSION: Final = 1

SCHEMA: Final = f"""
CREATE TABLE budgets (
    principal TEXT NOT NULL, unit TEXT NOT NULL, "window" TEXT NOT NULL,
    most INTEGER NOT NULL CHECK (typeof(most) = 'integer' AND most BETWEEN 0 AND {MAX_AMOUNT}),
    PRIMARY KEY (principal, unit, "window")
) WITHOUT ROWID;
CREATE TABLE counters (
    principal TEXT NOT NULL, unit TEXT NOT NULL, "window" TEXT NOT NULL, start INTEGER NOT NULL,
    spent INTEGER NOT NULL CHECK (typeof(spent) = 'integer' AND spent BETWEEN 0 AND {MAX_AMOUNT}),
    pending INTEGER NOT NULL CHECK (typeof(pending) = 'integer' AND pending BETWEEN 0 AND spent),
    PRIMARY KEY (principal, unit, "window")
) WITHOUT ROWID;
CREATE TABLE charges (
    principal TEXT NOT NULL, "key" TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'committed', 'released')),
    event TEXT NOT NULL, taken TEXT NOT NULL, time INTEGER NOT NULL,
    PRIMARY KEY (principal, "key")
) WITHOUT ROWID;
CREATE TABLE history (
    sequence INTEGER PRIMARY KEY,
    time INTEGER NOT NULL, principal TEXT NOT NULL, kind TEXT NOT NULL, action TEXT NOT NULL, "key" TEXT NOT NULL,
    change TEXT NOT NULL, event TEXT, budget TEXT
);
CREATE INDEX history_by_principal ON history (principal, sequence);
CREATE TRIGGER history_is_not_changed BEFORE UPDATE ON history
    BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
CREATE TRIGGER history_is_not_deleted BEFORE DELETE ON history
    BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
-- INSERT OR REPLACE deletes without asking the trigger above
CREATE TRIGGER history_is_not_replaced BEFORE INSERT ON history
    WHEN EXISTS (SELECT 1 FROM history WHERE sequence = NEW.sequence)
    BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""  # noqa: S608  only our numbers are put in
"""``taken`` is JSON: for each unit the amount and the time whose windows it was taken in."""


def make(path: Path) -> None:
    """Make an empty ledger unless there is a file: complete under another name first, so that nobody sees half of one.

    The file gets mode 0600 and a new folder 0700; SQLite gives its ``-wal`` and ``-shm`` the mode of the file. Raises
    :class:`OSError` and :class:`sqlite3.Error`.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(_connected(draft)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(draft, path)
    finally:
        for left in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            left.unlink(missing_ok=True)
    _sync(path.parent)


def opened(path: Path) -> sqlite3.Connection:
    """A connection to a ledger that exists.

    Raises :class:`LedgerError` where the file is not a ledger, or one of a newer version, and :class:`sqlite3.Error`.
    """
    connection = _connected(path)
    try:
        _check_ours(connection, path)
        _make_durable(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def identity(path: Path) -> tuple[int, int]:
    """Which file lies at ``path``: SQLite writes on into one that was deleted or replaced."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _connected(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None, check_same_thread=False)


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or version < 1:
        raise LedgerError(
            f"cannot use {path} as a ledger: it is another file, or damaged. Name another path."
        )
    if version > VERSION:
        raise LedgerError(
            f"cannot use the ledger {path}: a newer version wrote it ({version}, this one knows {VERSION}). "
            "Update fhe-llm."
        )


def _make_durable(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LedgerError(
            f"cannot use the ledger {path}: its file system does not carry SQLite's write-ahead log. "
            "Put it on a local disk."
        )
    connection.execute("PRAGMA synchronous = FULL")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
