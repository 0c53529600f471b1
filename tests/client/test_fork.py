"""A fork in the middle of a conversation: the child opens connections of its own, the parent's stay as they were."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest
from forking import forked
from test_direct import contexts, endpoint_of, served
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from fhe_llm.client.transport import AsyncHttpTransport, Endpoint, HttpTransport
from fhe_llm.client.transport.operations import Answer, HttpCall, Operation, Round, Routine
from fhe_llm.client.transport.websocket import AsyncSocket, Socket

ROUNDS = 20


class Log:
    """An echo that remembers the messages of each connection, and whether it ended with a goodbye."""

    def __init__(self) -> None:
        self.connections: list[list[bytes]] = []
        self.goodbyes: Queue[bool] = Queue()

    def __call__(self, connection: ServerConnection) -> None:
        messages: list[bytes] = []
        self.connections.append(messages)
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                assert isinstance(message, bytes)
                messages.append(message)
                connection.send(b"to " + message)
        self.goodbyes.put(connection.protocol.close_rcvd is not None)


def ask(wire: Socket, who: str) -> bytes:
    """Several rounds; every answer must belong to its round."""
    for n in range(ROUNDS):
        message = f"{who} {n}".encode()
        assert wire.exchange(Round(message)).body == b"to " + message
    return who.encode()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("threaded", [False, True])  # the library's client, which passes HTTP proxies
def test_parent_and_child_talk_at_once(
    tls: bool, threaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhe_llm.client.transport.websocket.through_a_proxy", lambda _: threaded)
    server, client = contexts(tmp_path)
    log = Log()
    with served(log, **({"ssl": server} if tls else {})) as url:
        scheme = "https" if tls else "http"
        address = scheme + "://" + url.partition("://")[2].removesuffix("/v1/evaluate")
        wire = Socket(Endpoint(address, connect_seconds=5, tls=client if tls else None))
        ask(wire, "before")
        with forked(lambda: (ask(wire, "child"), wire.close())[0]) as result:
            ask(wire, "parent")
            assert result() == b"child"
            ask(wire, "after")
        wire.close()
    (parents, childs), expected = log.connections, ["before", "parent", "after"]
    assert [message.split()[0].decode() for message in parents[::ROUNDS]] == expected
    assert {message.split()[0] for message in childs} == {b"child"}
    assert [log.goodbyes.get(timeout=30) for _ in range(2)] == [True, True]  # each on its own connection


def test_a_child_that_closes_what_it_inherited_says_nothing() -> None:
    log = Log()
    with served(log) as url:
        wire = Socket(endpoint_of(url))
        ask(wire, "before")
        with forked(lambda: wire.close() or b"closed") as result:
            assert result() == b"closed"
        ask(wire, "after")
        wire.close()
    assert len(log.connections) == 1


def test_an_event_loop_of_the_child_leaves_the_parents_alone() -> None:
    log = Log()

    async def exchange(wire: AsyncSocket, who: bytes) -> bytes:
        for _ in range(ROUNDS):
            assert (await wire.exchange(Round(who))).body == b"to " + who
        return who

    async def in_child(wire: AsyncSocket) -> bytes:
        who = await exchange(wire, b"child")
        await wire.close()
        return who

    with served(log) as url, asyncio.Runner() as runner:
        wire = AsyncSocket(endpoint_of(url))
        runner.run(exchange(wire, b"before"))
        with forked(lambda: asyncio.Runner().run(in_child(wire))) as result:
            runner.run(exchange(wire, b"parent"))
            assert result() == b"child"
            runner.run(exchange(wire, b"after"))
        runner.run(wire.close())
    assert [set(messages) for messages in log.connections] == [{b"before", b"parent", b"after"}, {b"child"}]


class Echo(BaseHTTPRequestHandler):
    """Answers with the body it got and the port it came from; keeps connections open."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])) + b" %d" % self.client_address[1]
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name there
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def posts(who: str) -> Routine[bytes]:
    """Several requests; the ports they came from."""
    ports = set()
    for n in range(ROUNDS):
        body = f"{who}-{n}".encode()
        operation: Operation = HttpCall("POST", "/", body=body)
        answer: Answer = yield operation
        said, port = answer.body.split()
        assert said == body
        ports.add(port)
    return b",".join(ports)


def open_ports() -> set[int]:
    """Local ports of this process's TCP sockets."""
    held = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(str(entry.readlink()))
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in held}


def test_requests_of_parent_and_child_do_not_share_a_connection(echo: str) -> None:
    transport = HttpTransport(Endpoint(echo))
    before = transport.run(posts("before"))
    assert int(before) in open_ports()

    def child() -> bytes:
        ports = transport.run(posts("child"))
        gc.collect()
        assert int(before) not in open_ports()  # nothing keeps the copy
        transport.close()
        return ports

    with forked(child) as result:
        assert transport.run(posts("parent")) == before
        assert result() not in (b"", before)
        assert transport.run(posts("after")) == before
    transport.close()


def test_requests_on_an_event_loop_of_the_child_neither(echo: str) -> None:
    with asyncio.Runner() as runner:
        transport = AsyncHttpTransport(Endpoint(echo))
        before = runner.run(transport.run(posts("before")))

        async def child() -> bytes:
            ports = await transport.run(posts("child"))
            await transport.aclose()
            return ports

        with forked(lambda: asyncio.Runner().run(child())) as result:
            assert runner.run(transport.run(posts("parent"))) == before
            assert result() not in (b"", before)
            assert runner.run(transport.run(posts("after"))) == before
        runner.run(transport.aclose())
