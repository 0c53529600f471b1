"""Every transport runs the same routines to the same answers: over sockets, over POST, and inside this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from client_kit import TinyProxy
from starlette.types import Receive, Scope, Send

from fhe_llm.client.cipher import Cipher
from fhe_llm.client.session import Session
from fhe_llm.client.transport import (
    AppTransport,
    AsyncAppTransport,
    AsyncHttpTransport,
    Endpoint,
    FunctionTransport,
    HttpTransport,
    list_models,
)
from fhe_llm.client.transport.operations import HttpCall, Routine
from fhe_llm.errors import ProxyError, TransportError
from fhe_llm.models.steps import Floats, Linear

LAYER = "layers.0.up"


def asgi(proxy: TinyProxy, *, websocket: bool) -> Any:
    """The tiny proxy as an application; without ``websocket`` it refuses the handshake as an older proxy would."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            if not websocket:
                await send({"type": "websocket.close"})
                return
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "bytes": proxy.evaluate(message["bytes"])})
            return
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        status = 200
        if scope["path"] == "/v1/evaluate":
            body = proxy.evaluate(body)
        elif scope["path"].startswith("/v1/keys/"):
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            answer = proxy.serve(HttpCall(scope["method"], scope["path"], headers, body))
            status, body = answer.status, bytes(answer.body)
        else:
            status, body = 404, b'{"error":{"code":"not_found","message":"cannot find this path."}}'
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


@pytest.fixture(params=[True, False], ids=["websocket", "post"])
def url(proxy: TinyProxy, request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = asgi(proxy, websocket=request.param)
        settings = uvicorn.Config(app, lifespan="off", log_config=None, ws="websockets-sansio", http="h11")
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


def ask(cipher: Cipher, proxy: TinyProxy, x: Floats) -> Routine[Floats]:
    """Upload keys and evaluate one layer."""
    session = Session(cipher, proxy.listing)
    yield from session.open()
    y: Floats = yield from session.linear(Linear(LAYER, x))
    return y


def judge(run: Callable[[Routine[Any]], Any], cipher: Cipher, proxy: TinyProxy) -> None:
    """What every transport must do."""
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    exact = x @ proxy.weights[LAYER].T
    y = run(ask(cipher, proxy, x))
    assert np.abs(y - exact).max() < 2**-10 * np.abs(exact).max()
    assert [call.method for call in proxy.calls][:2] == ["HEAD", "PUT"]
    assert len(proxy.requests) == 1
    with pytest.raises(ProxyError) as refused:
        run(list_models())
    assert refused.value.proxy_code == "not_found"
    with pytest.raises(ZeroDivisionError):  # a routine's own failure comes out as it is
        run(failing())


def failing() -> Routine[None]:
    yield HttpCall("HEAD", f"/v1/keys/{'0' * 64}")
    raise ZeroDivisionError


def blocking(transport: Any) -> Callable[[Routine[Any]], Any]:
    return lambda routine: transport.run(routine)


def test_http(url: str, cipher: Cipher, proxy: TinyProxy) -> None:
    transport = HttpTransport(Endpoint(url))
    judge(blocking(transport), cipher, proxy)
    transport.close()


def test_async_http(url: str, cipher: Cipher, proxy: TinyProxy) -> None:
    with asyncio.Runner() as runner:
        transport = AsyncHttpTransport(Endpoint(url))
        judge(lambda routine: runner.run(transport.run(routine)), cipher, proxy)
        runner.run(transport.aclose())


def test_an_app_in_this_process(cipher: Cipher, proxy: TinyProxy) -> None:
    transport = AppTransport(asgi(proxy, websocket=False))
    judge(blocking(transport), cipher, proxy)
    transport.close()


def test_an_app_on_this_loop(cipher: Cipher, proxy: TinyProxy) -> None:
    with asyncio.Runner() as runner:
        transport = AsyncAppTransport(asgi(proxy, websocket=False))
        judge(lambda routine: runner.run(transport.run(routine)), cipher, proxy)
        runner.run(transport.aclose())


def test_a_function(cipher: Cipher, proxy: TinyProxy) -> None:
    def serve(call: HttpCall) -> Any:
        if call.path.startswith("/v1/keys/"):
            return proxy.serve(call)
        return FunctionTransport(proxy.evaluate)._perform(call)

    transport = FunctionTransport(proxy.evaluate, serve)
    x = np.ones((1, 40), dtype=np.float32)
    exact = x @ proxy.weights[LAYER].T
    assert np.abs(transport.run(ask(cipher, proxy, x)) - exact).max() < 2**-10 * np.abs(exact).max()
    transport.close()


def test_an_evicted_key_travels_again_and_the_round_with_the_same_bytes(
    cipher: Cipher, proxy: TinyProxy
) -> None:
    transport, session = FunctionTransport(proxy.evaluate, proxy.serve), Session(cipher, proxy.listing)
    transport.run(session.open())
    proxy.keys.clear()
    transport.run(session.linear(Linear(LAYER, np.ones((1, 40), dtype=np.float32))))
    assert len(proxy.requests) == 2
    assert proxy.requests[0] == proxy.requests[1]
    methods = [call.method for call in proxy.calls]
    uploads = [method for i, method in enumerate(methods) if i == 0 or method != methods[i - 1]]
    assert uploads == ["HEAD", "PUT", "HEAD", "PUT"]  # an upload is as many PUTs as it has chunks


@pytest.mark.parametrize(
    "url", ["", "proxy:8080", "ftp://proxy", "http://", "http://u:p@proxy", "http://proxy?x=1", 7]
)
def test_what_is_no_address_is_refused_at_once(url: Any) -> None:
    with pytest.raises(TransportError, match=r"^cannot use proxy URL"):
        Endpoint(url)


def test_an_api_key_is_never_shown() -> None:
    endpoint = Endpoint("https://proxy", "hush")
    assert "hush" not in repr(endpoint)
    assert endpoint.headers == {"authorization": "Bearer hush"}
    with pytest.raises(TransportError, match="characters no header may"):
        Endpoint("https://proxy", "a\nb")


def test_an_api_key_without_tls_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Endpoint("http://127.0.0.1:8080", "hush")
    assert caplog.text == ""
    Endpoint("http://proxy.example", "hush")
    assert "unencrypted" in caplog.text
    assert "hush" not in caplog.text
