"""Bodies, speeds and numbers of connections; API keys."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from rounds_kit import InstantEvaluator, LiveProxy, live, make_settings, request_frame, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from fhe_llm.wire import frame as wire
from fhe_llm_server import guarded_protocols, limits

MOST = 100_000


@pytest.fixture
def small(tiny_model_path: Path, tmp_path: Path) -> Iterator[LiveProxy]:
    """A proxy with tight limits."""
    settings = make_settings(tiny_model_path, tmp_path, max_body_bytes=MOST, max_connections=3)
    with live(settings, lambda _: InstantEvaluator()) as proxy:
        yield proxy


def raw(proxy: LiveProxy, *parts: bytes, seconds: float = 10.0) -> tuple[int, str]:
    """Send bytes, read one answer: its status and the code in its envelope."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=seconds) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while b"}}" not in answer:
            received = connection.recv(65536)
            assert received, answer
            answer += received
    head, _, body = answer.rpartition(b"\r\n\r\n")
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), json.loads(body)["error"]["code"]


def closed_by_peer(connection: socket.socket) -> bool:
    """Whether the other side closes, orderly or not, before the timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def head(*lines: str, method: str = "POST", path: str = "/v1/evaluate") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


@pytest.mark.parametrize("length", [str(MOST + 1), "9" * 17, "9" * 40])
def test_a_body_over_the_limit_is_refused_before_any_of_it_is_sent(small: LiveProxy, length: str) -> None:
    assert raw(small, head(f"Content-Length: {length}")) in ((413, "body_too_large"), (400, "bad_request"))
    assert raw(small, head("Expect: 100-continue", f"Content-Length: {MOST + 1}"))[1] == "body_too_large"


def test_a_chunked_body_is_stopped_once_it_passes_the_limit(small: LiveProxy) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    assert raw(small, head("Transfer-Encoding: chunked"), chunk, chunk)[1] == "body_too_large"


def test_a_client_that_keeps_sending_still_reads_the_refusal(small: LiveProxy) -> None:
    answer = httpx.post(f"{small.url}/v1/evaluate", content=bytes(40 * MOST))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    put = httpx.put(f"{small.url}/v1/keys/{'0' * 64}", content=bytes(MOST + 1))
    assert put.json()["error"]["code"] == "body_too_large"


def test_a_body_that_stalls_is_given_up(small: LiveProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_SECONDS", 0.2)
    assert raw(small, head("Content-Length: 500"), b"abc") == (408, "request_timeout")


def test_a_body_that_trickles_is_given_up(small: LiveProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
        connection.sendall(head("Content-Length: 500"))
        connection.setblocking(False)
        answer, deadline = b"", time.monotonic() + 10
        while b"request_timeout" not in answer and time.monotonic() < deadline:
            try:
                connection.send(b"x")
                answer += connection.recv(4096)
            except BlockingIOError:
                time.sleep(0.05)
    assert b" 408 " in answer


def test_a_head_that_never_ends_is_cut(small: LiveProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_protocols, "HEAD_SECONDS", 0.3)
    for start in (b"", b"GET /healthz HT"):
        with socket.create_connection(("127.0.0.1", small.port), timeout=10) as connection:
            connection.sendall(start)
            assert closed_by_peer(connection)
    with httpx.Client(base_url=small.url) as client:
        for _ in range(2):
            assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"\r\n \r\n\r\n"]
)
def test_what_is_not_http_gets_the_envelope(small: LiveProxy, nonsense: bytes) -> None:
    assert raw(small, nonsense) == (400, "bad_request")


def test_connections_are_bounded_and_health_checks_get_through(small: LiveProxy) -> None:
    with contextlib.ExitStack() as sockets:
        for _ in range(3):
            sockets.enter_context(connect(small.ws_url, compression=None))
        busy = httpx.get(f"{small.url}/v1/models")
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "busy")
        assert busy.headers["retry-after"] == "1"
        with pytest.raises(InvalidStatus) as refused, connect(small.ws_url):
            pass
        assert b'"busy"' in (refused.value.response.body or b"")
        assert httpx.get(f"{small.url}/readyz").status_code == 200
    wait_until(lambda: httpx.get(f"{small.url}/v1/models").status_code == 200)


def test_a_peer_that_does_not_read_is_cut_and_others_are_served(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_protocols, "SEND_SECONDS", 0.3)
    request = wire.encode(request_frame(listing, key, jobs=64))
    with contextlib.suppress(ConnectionClosed), connect(proxy.ws_url, max_size=None, max_queue=1) as deaf:
        for _ in range(100):
            deaf.send(request)
        pytest.fail("the proxy went on reading from a peer that does not read")
    assert httpx.post(f"{proxy.url}/v1/evaluate", content=request, timeout=60).status_code == 200


def test_raw_connections_are_bounded(small: LiveProxy) -> None:
    silent = [socket.create_connection(("127.0.0.1", small.port), timeout=10) for _ in range(60)]
    time.sleep(0.2)
    for connection in silent:
        connection.close()
    assert httpx.get(f"{small.url}/healthz").status_code == 200


@pytest.fixture
def guarded(tiny_model_path: Path, tmp_path: Path) -> Iterator[LiveProxy]:
    """A proxy with two API keys."""
    (tmp_path / "keys.txt").write_text("# tenants\nfrom-file\n\n")
    settings = make_settings(
        tiny_model_path, tmp_path, api_keys=(SecretStr("secret"),), api_key_file=tmp_path / "keys.txt"
    )
    with live(settings, lambda _: InstantEvaluator()) as proxy:
        yield proxy


def test_api_keys_guard_everything_but_health(guarded: LiveProxy) -> None:
    for path in ("/v1/models", "/metrics", "/nope", "/v1/models/tiny/bundle"):
        answer = httpx.get(guarded.url + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer nope", "Basic secret", "secret", "Bearer", "Bearer secretx", "Bearer sécret"):
        headers = {"authorization": wrong.encode("latin-1")}
        assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 401
    for right in ("Bearer secret", "bearer from-file"):
        assert httpx.get(f"{guarded.url}/v1/models", headers={"authorization": right}).status_code == 200
    assert httpx.get(f"{guarded.url}/healthz").status_code == 200


def test_api_keys_guard_sockets_and_uploads_before_the_body(guarded: LiveProxy) -> None:
    assert raw(guarded, head("Content-Length: 5000")) == (401, "unauthorized")
    with pytest.raises(InvalidStatus) as refused, connect(guarded.ws_url):
        pass
    assert refused.value.response.status_code == 401
    with connect(guarded.ws_url, additional_headers={"authorization": "Bearer secret"}) as open_socket:
        open_socket.send(b"FHEL")
        assert isinstance(open_socket.recv(), bytes)
