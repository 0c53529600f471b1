"""Routes, the envelope, and what must not be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from rounds_kit import InstantEvaluator, LiveProxy, lifespan_of, make_settings
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import fhe_llm_server
from fhe_llm_server.app import create_app
from fhe_llm_server.refusal import STATUS, Refusal

PACKAGE = Path(fhe_llm_server.__file__).parent


def code_of(response: httpx.Response) -> str:
    """The code in the envelope, which must be the only thing in the body."""
    body = response.json()
    assert set(body) == {"error"}
    assert {"code", "message"} <= set(body["error"]) <= {"code", "message", "reason", "retry_after_ms"}
    assert STATUS[body["error"]["code"]] == response.status_code
    assert re.fullmatch(r"cannot [^:]+: .+\.", body["error"]["message"])
    code: str = body["error"]["code"]
    return code


def test_the_routes_are_exactly_these_and_none_of_them_handles_secrets(tmp_path: Path) -> None:
    app = create_app(make_settings(tmp_path, tmp_path), lambda _: InstantEvaluator())
    found = set()
    pending = list(app.routes)
    while pending:
        route: Any = pending.pop()
        inner = getattr(route, "original_router", None)
        if inner is not None:
            pending += inner.routes
            continue
        found.add((route.path, *sorted(getattr(route, "methods", None) or {"WS"})))
    assert found == {
        ("/healthz", "GET"),
        ("/readyz", "GET"),
        ("/metrics", "GET"),
        ("/v1/models", "GET"),
        ("/v1/models/{name}/bundle", "GET"),
        ("/v1/keys/{key_id}", "HEAD"),
        ("/v1/keys/{key_id}", "PUT"),
        ("/v1/evaluate", "POST"),
        ("/v1/evaluate", "WS"),
        ("/v1/budget", "GET"),
    }
    assert not [
        path for path, *_ in found if re.search("crypt|secret|keygen|encode|decode|prompt|token", path)
    ]


def test_the_server_imports_neither_tenseal_nor_the_client() -> None:
    for source in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith(("tenseal", "fhe_llm.client"))], source


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/redoc", "/v1/models/", "/v1/encrypt", "/%00"]
)
def test_unknown_paths_get_the_envelope(proxy: LiveProxy, path: str) -> None:
    assert code_of(httpx.get(proxy.url + path)) == "not_found"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/healthz"), ("GET", "/v1/evaluate"), ("DELETE", "/v1/models")]
)
def test_wrong_methods_get_the_envelope(proxy: LiveProxy, method: str, path: str) -> None:
    response = httpx.request(method, proxy.url + path)
    assert code_of(response) == "method_not_allowed"
    assert response.headers["allow"]


def test_websocket_on_an_unknown_path_is_refused_with_the_envelope(proxy: LiveProxy) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{proxy.port}/nope"):
        pass
    assert refused.value.response.status_code == 404
    assert b'"not_found"' in (refused.value.response.body or b"")


async def test_a_failure_inside_is_an_envelope_without_a_trace(tmp_path: Path, tiny_model_path: Path) -> None:
    app = create_app(make_settings(tiny_model_path, tmp_path), lambda _: InstantEvaluator())

    async def use(client: httpx.AsyncClient) -> None:
        app.state.proxy.host.ready = None  # calling it raises TypeError
        response = await client.get("/v1/models", headers={"x-request-id": "abcdefgh-1"})
        assert code_of(response) == "internal"
        assert "Traceback" not in response.text
        assert "NoneType" not in response.text
        assert response.headers["x-request-id"] == "abcdefgh-1"
        assert "abcdefgh-1" in response.text
        metrics = (await client.get("/metrics")).text
        assert 'fhe_llm_errors_total{code="internal"} 1.0' in metrics

    await lifespan_of(app, use)


def test_request_ids_of_strangers_are_not_echoed(proxy: LiveProxy) -> None:
    response = httpx.get(f"{proxy.url}/healthz", headers={"x-request-id": "<script>alert(1)</script>"})
    assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])


def test_every_code_has_an_envelope() -> None:
    for code in STATUS:
        refusal = Refusal(code, "cannot do it: no. Stop.", retry_after_ms=1500)
        assert code_of(httpx.Response(refusal.status, content=refusal.envelope())) == code
        assert refusal.headers()["retry-after"] == "2"


def test_the_bundle_can_be_fetched_whole_in_part_and_not_again(
    proxy: LiveProxy, listing: dict[str, Any]
) -> None:
    model = listing["models"][0]
    url = f"{proxy.url}/v1/models/{model['name']}/bundle"
    whole = httpx.get(url)
    assert len(whole.content) == model["bundle"]["size"]
    assert whole.headers["etag"] == f'"{model["bundle"]["digest"]}"'
    part = httpx.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert httpx.get(url, headers={"range": "bytes=-5"}).content == whole.content[-5:]
    assert httpx.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    assert code_of(httpx.get(url, headers={"range": "bytes=999999999-"})) == "bad_range"
    for ignored in ("lines=1-2", "bytes=9-1", "bytes=0-1,3-4", "bytes=-", "bytes=a-b"):
        assert httpx.get(url, headers={"range": ignored}).content == whole.content
    assert code_of(httpx.get(f"{proxy.url}/v1/models/other/bundle")) == "unknown_model"
