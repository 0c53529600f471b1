"""The WebSocket that the calling thread moves itself, against the websockets library's own server."""

from __future__ import annotations

import contextlib
import datetime
import http
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.server import Server, ServerConnection, serve

from fhe_llm.client.transport import Endpoint
from fhe_llm.client.transport.direct import DirectConnection, through_a_proxy
from fhe_llm.client.transport.operations import Round, Unreachable
from fhe_llm.client.transport.websocket import NoWebSocket, Socket

FRAME = bytes(range(256)) * 200


@contextlib.contextmanager
def served(handler: Callable[[ServerConnection], None], **options: Any) -> Iterator[str]:
    """A server on a free port; its address."""
    quiet = logging.getLogger("tests.websockets")
    quiet.setLevel(logging.CRITICAL)
    with serve(handler, "127.0.0.1", 0, compression=None, logger=quiet, **options) as server:
        assert isinstance(server, Server)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            scheme = "wss" if "ssl" in options else "ws"
            yield f"{scheme}://127.0.0.1:{server.socket.getsockname()[1]}/v1/evaluate"
        finally:
            server.shutdown()
            thread.join()


def opened(url: str, *, tls: ssl.SSLContext | None = None, max_size: int = 1 << 20) -> DirectConnection:
    return DirectConnection.open(url, {"x-test": "yes"}, tls, seconds=5, max_size=max_size)


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def test_messages_go_and_come_without_nagle_and_with_headers() -> None:
    seen: list[str | None] = []

    def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers.get("x-test"))
        echo(connection)

    with served(handler) as url:
        connection = opened(url)
        assert connection._stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for size in (0, 1, 30_000, 700_000):
            connection.send(FRAME[:size] or b"", seconds=5)
            assert connection.receive(seconds=5) == FRAME[:size]
        connection.close()
    assert seen == ["yes"]


def test_fragments_pings_and_text_are_understood() -> None:
    pongs: list[bool] = []

    def handler(connection: ServerConnection) -> None:
        connection.send([FRAME[:1000], FRAME[1000:2000], FRAME[2000:]])
        pong = connection.ping()
        connection.send("text")
        pongs.append(pong.wait(5))
        connection.recv()

    with served(handler) as url:
        connection = opened(url)
        assert connection.receive(seconds=5) == FRAME
        assert connection.receive(seconds=5) == "text"
        while not pongs:  # answering the ping needs someone who reads
            with contextlib.suppress(TimeoutError):
                connection.receive(seconds=0.05)
        connection.close()
    assert pongs == [True]


@pytest.mark.parametrize("code", [1000, 1011])
def test_a_closed_connection_is_said_to_be_closed(code: int) -> None:
    def handler(connection: ServerConnection) -> None:
        connection.recv()
        connection.close(code)

    with served(handler) as url:
        connection = opened(url)
        connection.send(b"x", seconds=5)
        with pytest.raises((ConnectionClosed, ConnectionError)):
            connection.receive(seconds=5)
        connection.close()


def test_a_cut_connection_a_silent_one_and_a_long_answer_end_the_round() -> None:
    def handler(connection: ServerConnection) -> None:
        match connection.recv():
            case b"cut":
                connection.socket.shutdown(socket.SHUT_RDWR)
            case b"long":
                connection.send(bytes(5000))
        with contextlib.suppress(ConnectionClosed):
            connection.recv()

    with served(handler) as url:
        for message, failure in ((b"cut", ConnectionClosed), (b"silent", TimeoutError)):
            connection = opened(url)
            connection.send(message, seconds=5)
            with pytest.raises(failure):
                connection.receive(seconds=0.3)
            connection.close()
        connection = opened(url, max_size=4000)
        connection.send(b"long", seconds=5)
        with pytest.raises((ConnectionClosed, ConnectionError)):
            connection.receive(seconds=5)
        connection.close()


def test_a_refused_handshake_is_a_fact_about_the_route() -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(http.HTTPStatus.NOT_FOUND, "no\n")

    with served(echo, process_request=refuse) as url:
        with pytest.raises(InvalidStatus):
            opened(url)
        with pytest.raises(NoWebSocket):
            Socket(endpoint_of(url)).exchange(Round(b"x"))
    with pytest.raises(Unreachable):
        Socket(endpoint_of(url)).exchange(Round(b"x"))


def test_tls_checks_the_certificate(tmp_path: Path) -> None:
    server, client = contexts(tmp_path)
    with served(echo, ssl=server) as url:
        connection = opened(url, tls=client)
        connection.send(FRAME, seconds=5)
        assert connection.receive(seconds=5) == FRAME
        connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            opened(url)


def test_spare_work_stops_when_the_answer_is_there() -> None:
    go, calls = threading.Event(), list[str]()

    def handler(connection: ServerConnection) -> None:
        for _ in range(2):
            connection.recv()
            go.wait(5)
            connection.send(b"answer")

    def spare() -> bool:
        calls.append("spare")
        if len(calls) == 4:
            go.set()
            time.sleep(0.3)  # long enough for the answer to arrive
        return True

    with served(handler) as url:
        wire = Socket(endpoint_of(url))
        answer = wire.exchange(Round(b"x", lambda: calls.append("meanwhile"), spare))
        assert answer.body == b"answer"
        assert calls == ["meanwhile", "spare", "spare", "spare"]
        wire.exchange(Round(b"x", spare=lambda: bool(calls.append("once"))))
        assert calls[4:] in ([], ["once"])  # False ends it; an answer that is already there, too
        wire.close()


def test_proxies_of_the_environment_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert not through_a_proxy("ws://proxy.example/v1/evaluate")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert through_a_proxy("wss://proxy.example/v1/evaluate")
    monkeypatch.setenv("no_proxy", "proxy.example")
    assert not through_a_proxy("wss://proxy.example/v1/evaluate")


def endpoint_of(url: str) -> Endpoint:
    return Endpoint("http" + url.removeprefix("ws").removesuffix("/v1/evaluate"), connect_seconds=5)


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server with a certificate of its own for 127.0.0.1, and a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    certificate = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(address, False)
    signed = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "both.pem"
    path.write_bytes(signed + private)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cadata=signed.decode())
