"""Connections to one SQLite file: each used by one thread at a time, and none that a forked child inherits.

SQLite keeps locks per process in memory that a fork copies, so a child that only opens a connection of its own may
believe that it holds a lock. Whoever forks therefore waits for running calls, and all connections are closed before.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

WAIT_S: Final = 30.0
"""How long a call waits for others before it is refused."""


class Connections:
    """Opens connections as they are needed and keeps them for the next call."""

    def __init__(self, opener: Callable[[], sqlite3.Connection]) -> None:
        self._opener = opener
        self._free: list[sqlite3.Connection] = []
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        _forks().tell(self)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the file until the end."""
        with self._borrowed() as connection, _transaction(connection, "BEGIN"):
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the file's write lock; what it wrote is committed at the end, or not at all."""
        if not self._turn.acquire(timeout=WAIT_S):  # threads queue here: SQLite's own wait is a poll
            raise sqlite3.OperationalError("database is locked")
        try:
            with self._borrowed() as connection, _transaction(connection, "BEGIN IMMEDIATE"):
                yield connection
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        with self._changed:
            if self._closed:
                raise sqlite3.ProgrammingError("it was closed")
            free = self._free.pop() if self._free else None
            self._used += 1
        broken = False
        try:
            free = free or self._opener()
            yield free
        except sqlite3.Error:
            broken = True  # what state SQLite left it in, who knows
            raise
        finally:
            with self._changed:
                self._used -= 1
                if free is not None:
                    self._free.append(free)
                if broken or self._closed:
                    self._close_free()
                self._changed.notify_all()

    def close(self) -> None:
        """Close them all; the ones in use when their calls end."""
        with self._changed:
            self._closed = True
            self._close_free()

    def _close_free(self) -> None:
        while self._free:
            _close(self._free.pop())

    def hold(self) -> None:
        """Before a fork: let calls end, start none, and close everything."""
        self._changed.acquire()
        while self._used:
            self._changed.wait()
        self._close_free()

    def go_on(self) -> None:
        """After it, in the parent."""
        self._changed.release()

    def start_over(self) -> None:
        """After it, in the child: threads that waited for these locks do not exist here."""
        self._changed = threading.Condition()
        self._turn = threading.Lock()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself after some errors
            connection.execute("ROLLBACK")
        raise


def _close(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.close()


class _Forks:
    """All connections of this process, told of its forks."""

    def __init__(self) -> None:
        self._living: weakref.WeakSet[Connections] = weakref.WeakSet()
        self._held: list[Connections] = []
        # two threads that fork at once would hold what the other waits for, and none may be added in between
        self._forking = threading.Lock()
        os.register_at_fork(before=self._before, after_in_parent=self._parent, after_in_child=self._child)

    def tell(self, connections: Connections) -> None:
        """Tell it from now on."""
        with self._forking:
            self._living.add(connections)

    def _before(self) -> None:
        self._forking.acquire()
        self._held.extend(self._living)
        for connections in self._held:
            connections.hold()

    def _parent(self) -> None:
        for connections in self._held:
            connections.go_on()
        self._held.clear()
        self._forking.release()

    def _child(self) -> None:
        for connections in self._held:
            connections.start_over()
        self._held.clear()
        self._forking.release()


_forks = cache(_Forks)
