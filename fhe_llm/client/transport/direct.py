"""A WebSocket whose bytes the calling thread moves itself: no reader thread, no hand-over between threads.

The protocol is the websockets library's own, used without its I/O. A reader thread costs 0.1 ms a round, and a
caller that holds its own socket can see whether the answer is there before it starts other work. HTTP proxies are left
to the library's own client: :class:`ThreadedConnection`.

A connection belongs to the process that opened it. A forked child holds a copy of the descriptor: a byte it sent or
read would be missing in the parent's conversation, and so would a goodbye.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Self

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidMessage
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.sync.client import ClientConnection
from websockets.uri import parse_uri

_RECEIVE_BYTES: Final = 1 << 18


class DirectConnection:
    """One open connection. Not thread-safe. Methods raise ``OSError``, ``TimeoutError`` and the library's
    ``WebSocketException`` when it fails; it is then of no further use but to be closed."""

    def __init__(self, stream: socket.socket, protocol: ClientProtocol) -> None:
        """Use :meth:`open`."""
        self._stream = stream
        self._process = os.getpid()
        self._protocol = protocol
        self._messages: deque[str | bytes] = deque()
        self._pieces: list[bytes] = []
        self._text = False

    @classmethod
    def open(
        cls,
        url: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        *,
        seconds: float,
        max_size: int,
    ) -> Self:
        """Connect and shake hands within ``seconds``; no extensions, no Nagle delay.

        Raises the library's ``InvalidHandshake`` and ``InvalidURI`` besides.
        """
        uri, deadline = parse_uri(url), time.monotonic() + seconds
        stream = socket.create_connection((uri.host, uri.port), timeout=seconds)
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if uri.secure:
                context = tls or ssl.create_default_context()
                stream = context.wrap_socket(stream, server_hostname=uri.host)
            connection = cls(stream, ClientProtocol(uri, max_size=max_size))
            connection._shake_hands(headers, deadline)
        except BaseException:
            stream.close()
            raise
        return connection

    @property
    def inherited(self) -> bool:
        """Whether this process has it from its parent: it may only be closed then."""
        return self._process != os.getpid()

    def send(self, frame: bytes, *, seconds: float) -> None:
        """One binary message."""
        self._protocol.send_binary(frame)
        self._flush(time.monotonic() + seconds)

    def readable(self) -> bool:
        """Whether bytes of an answer are there; costs a microsecond."""
        if self._messages or (isinstance(self._stream, ssl.SSLSocket) and self._stream.pending()):
            return True
        ready = select.poll()  # select() takes no descriptor past 1023
        ready.register(self._stream, select.POLLIN)
        return bool(ready.poll(0))

    def receive(self, *, seconds: float) -> str | bytes:
        """The next message; raises ``ConnectionClosed`` where there will be none."""
        deadline = time.monotonic() + seconds
        while not self._messages:
            if self._protocol.state is State.CLOSED:
                raise self._protocol.close_exc
            if self._protocol.state is not State.OPEN:
                raise ConnectionError("the proxy is closing it")
            self._read(deadline)
        return self._messages.popleft()

    def close(self, *, seconds: float = 0.2) -> None:
        """Say goodbye where that is possible at once, then let go; an inherited one is let go in silence."""
        try:
            if self._protocol.state is State.OPEN and not self.inherited:
                self._protocol.send_close(1000)
                self._flush(time.monotonic() + seconds)
        finally:
            self._stream.close()

    def _shake_hands(self, headers: Mapping[str, str], deadline: float) -> None:
        request = self._protocol.connect()
        for name, value in headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)
        self._flush(deadline)
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._read(deadline)
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc
        if self._protocol.state is not State.OPEN:
            raise InvalidMessage("the connection was closed during the handshake")

    def _read(self, deadline: float) -> None:
        """Wait for bytes and hand them to the protocol, with whatever it wants to send back."""
        self._limit(deadline)
        data = self._stream.recv(_RECEIVE_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                continue
            assert isinstance(event, Frame)  # noqa: S101  a client gets nothing else
            self._take(event)
        self._flush(deadline)

    def _take(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        self._pieces.append(bytes(frame.data))
        if frame.fin:
            whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._messages.append(whole.decode("utf-8", "replace") if self._text else whole)
            self._pieces.clear()

    def _flush(self, deadline: float) -> None:
        for data in self._protocol.data_to_send():
            if data:  # else the library's sign to half-close; we close altogether a little later
                self._limit(deadline)
                self._stream.sendall(data)

    def _limit(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self._stream.settimeout(left)


class ThreadedConnection:
    """The library's blocking client behind the same methods."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._process = os.getpid()

    @property
    def inherited(self) -> bool:
        """Whether this process has it from its parent, without the library's thread."""
        return self._process != os.getpid()

    def send(self, frame: bytes, *, seconds: float) -> None:  # noqa: ARG002  the library has no limit to set
        """One binary message."""
        self._connection.send(frame)

    def readable(self) -> bool:
        """Always true: nobody but the library's thread could tell."""
        return True

    def receive(self, *, seconds: float) -> str | bytes:
        """The next message."""
        return self._connection.recv(timeout=seconds)

    def close(self, *, seconds: float = 0.2) -> None:
        """Say goodbye and let go; an inherited one is let go in silence."""
        if self.inherited:
            self._connection.socket.close()
            return
        self._connection.close_timeout = seconds
        self._connection.close()


def through_a_proxy(url: str) -> bool:
    """Whether the environment asks for an HTTP or SOCKS proxy on the way to ``url``."""
    proxies: dict[str, Any] = urllib.request.getproxies()
    if not proxies.keys() & {"ws", "wss", "http", "https", "socks", "all"}:
        return False
    uri = parse_uri(url)
    return not urllib.request.proxy_bypass(f"{uri.host}:{uri.port}")
