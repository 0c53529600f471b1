"""A TCP relay in front of a proxy: it records every byte and can cut connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Relay:
    """Forwards a free loopback port to ``target_url``; ``up`` and ``down`` hold what passed."""

    def __init__(self, target_url: str) -> None:
        host, _, port = target_url.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._cut_at: int | None = None
        self._cut_answers = 0
        self.up, self.down = bytearray(), bytearray()
        self.cuts = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def cut_after(self, more_bytes: int) -> None:
        """Cut all connections, once, when so many more bytes have gone up."""
        with self._lock:
            self._cut_at = len(self.up) + more_bytes

    def cut_answers(self, count: int) -> None:
        """Cut all connections in place of the next so many answers, which the target has given."""
        with self._lock:
            self._cut_answers = count

    def cut(self) -> None:
        """Cut all connections now."""
        with self._lock:
            open_now, self._open = self._open, set()
            self.cuts += bool(open_now)
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            self._start(self._pump, client, server, self.up)
            self._start(self._pump, server, client, self.down)

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, record: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    record += data
                    due = self._cut_at is not None and len(self.up) >= self._cut_at
                    self._cut_at = None if due else self._cut_at
                    if self._cut_answers and record is self.down:
                        self._cut_answers -= 1
                        due = True
                if due:
                    self.cut()
                    return
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
