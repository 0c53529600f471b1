"""``GET /v1/budget``: a tenant sees its own work, nobody else's, and can change none of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rounds_kit import (
    InstantEvaluator,
    LiveProxy,
    key_frame,
    listed_elements,
    live,
    make_settings,
    request_frame,
    upload,
)
from websockets.sync.client import connect

from fhe_llm.privacy import Budget, SqliteLedger
from fhe_llm.wire import frame as wire

ALICE, BOB = "a" * 40, "b" * 40


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def tenant(key: str) -> str:
    return "key-" + hashlib.sha256(key.encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def proxy(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    settings = make_settings(tiny_model_path, tmp_path_factory.mktemp("data"), api_keys=(ALICE, BOB))
    with SqliteLedger(settings.ledger_place()) as ledger:
        ledger.set_budget(tenant(BOB), Budget("rounds", 3, "day"))
    with live(settings, lambda _: InstantEvaluator()) as running:
        yield running


@pytest.fixture(scope="module")
def frame(proxy: LiveProxy) -> bytes:
    listing = httpx.get(f"{proxy.url}/v1/models", headers=headers(ALICE)).json()
    key = key_frame(listed_elements(listing))
    assert upload(proxy.url, key, headers=headers(ALICE)).status_code == 201
    return bytes(wire.encode(request_frame(listing, key)))


def post(proxy: LiveProxy, key: str, frame: bytes) -> httpx.Response:
    return httpx.post(f"{proxy.url}/v1/evaluate", content=frame, headers=headers(key), timeout=60)


def budget(proxy: LiveProxy, key: str) -> dict[str, dict[str, int | str | None]]:
    answer = httpx.get(f"{proxy.url}/v1/budget", headers=headers(key))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["tenant"] == tenant(key)
    return {f"{b['unit']} {b['window']}": b for b in answer.json()["balances"]}


def test_each_tenant_sees_its_own_work_only(proxy: LiveProxy, frame: bytes) -> None:
    before = budget(proxy, ALICE).get("rounds lifetime", {"spent": 0})["spent"]
    assert post(proxy, ALICE, frame).status_code == 200
    with connect(proxy.ws_url, additional_headers=headers(ALICE), compression=None, max_size=None) as socket:
        socket.send(frame)
        wire.decode(bytes(socket.recv()))  # type: ignore[arg-type]
    found = budget(proxy, ALICE)
    assert found["rounds lifetime"]["spent"] == int(before or 0) + 2
    assert found["rounds lifetime"]["limit"] is None
    assert found["milliseconds lifetime"]["spent"]
    assert int(found["bytes lifetime"]["spent"] or 0) > 2 * len(frame)
    assert "rounds lifetime" not in budget(proxy, BOB)


def test_a_quota_ends_in_a_refusal_that_says_when_it_refreshes(proxy: LiveProxy, frame: bytes) -> None:
    answers = [post(proxy, BOB, frame) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    error = answers[-1].json()["error"]
    assert error["code"] == "budget_exhausted"
    assert "0 rounds of 3 rounds per day is left. It refreshes at" in error["message"]
    assert 0 < error["retry_after_ms"] <= 86_400_000
    assert int(answers[-1].headers["retry-after"]) > 0
    assert budget(proxy, BOB)["rounds day"]["left"] == 0
    assert post(proxy, ALICE, frame).status_code == 200


def test_no_request_resets_or_sets_a_budget(proxy: LiveProxy) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = httpx.request(method, f"{proxy.url}/v1/budget", headers=headers(BOB), json={"rounds": 10})
        assert answer.status_code == 405, method
    for path in ("/v1/budget/", f"/v1/budget/{tenant(ALICE)}", "/v1/budget/reset"):
        assert httpx.get(f"{proxy.url}{path}", headers=headers(BOB)).status_code == 404
    assert httpx.get(f"{proxy.url}/v1/budget").status_code == 401
    told = httpx.get(f"{proxy.url}/v1/budget?tenant={tenant(ALICE)}", headers=headers(BOB)).json()
    assert told["tenant"] == tenant(BOB)


def test_what_was_spent_survives_a_restart(tiny_model_path: Path, tmp_path: Path) -> None:
    settings = make_settings(tiny_model_path, tmp_path)
    for count in (1, 2):
        with live(settings, lambda _: InstantEvaluator()) as running:
            listing = httpx.get(f"{running.url}/v1/models").json()
            key = key_frame(listed_elements(listing))
            assert upload(running.url, key).status_code in (200, 201)
            data = bytes(wire.encode(request_frame(listing, key)))
            assert httpx.post(f"{running.url}/v1/evaluate", content=data, timeout=60).status_code == 200
            answer = httpx.get(f"{running.url}/v1/budget").json()
            assert answer["tenant"] == "local"
            rounds = [b for b in answer["balances"] if b["unit"] == "rounds"]
            assert rounds[0]["spent"] == count
