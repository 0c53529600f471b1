"""Rounds over POST and WebSocket against the real evaluator."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds_kit import LiveProxy, key_frame, listed_elements, request_frame, residues, upload
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from fhe_llm.evaluator.contract import EvaluationKeys, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import preset
from fhe_llm.wire import frame as wire
from fhe_llm_server.inputs import ciphertexts


def post(proxy: LiveProxy, frame: wire.EvaluateRequest | bytes) -> httpx.Response:
    data = frame if isinstance(frame, bytes) else wire.encode(frame)
    return httpx.post(f"{proxy.url}/v1/evaluate", content=data, timeout=60)


def reply_of(data: bytes | str) -> wire.EvaluateReply:
    assert isinstance(data, bytes)
    frame = wire.decode(data)
    assert isinstance(frame, wire.EvaluateReply), frame
    return frame


def error_of(data: bytes | str) -> wire.ErrorFrame:
    assert isinstance(data, bytes)
    frame = wire.decode(data)
    assert isinstance(frame, wire.ErrorFrame)
    return frame


def socket_to(proxy: LiveProxy) -> ClientConnection:
    return connect(proxy.ws_url, compression=None, max_size=None)


def _send_and_receive(socket: ClientConnection, message: bytes) -> bytes | str:
    socket.send(message)
    return socket.recv()


def direct(proxy: LiveProxy, key: bytes, request: wire.EvaluateRequest) -> list[np.ndarray[Any, Any]]:
    """The same round on an evaluator of our own, one job at a time."""
    evaluator = CpuEvaluator(request.preset, 1)
    keys = wire.decode(key)
    assert isinstance(keys, wire.KeyFrame)
    prepared = evaluator.prepare_keys(EvaluationKeys(keys.preset, keys.elements, keys.words))
    layer = proxy.app.state.proxy.host.ready().layers[request.layer].encoded
    outputs = [evaluator.evaluate(layer, [Job(prepared, words)])[0][0] for words in ciphertexts(request)]
    evaluator.close()
    return outputs


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_round_is_the_evaluators_answer_with_five_bits_dropped(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes, layer: int
) -> None:
    request = request_frame(listing, key, layer, jobs=11, seed=layer)
    reply = reply_of(post(proxy, request).content)
    expected = np.stack(direct(proxy, key, request)).astype(np.int64)
    prime = request.preset.data_primes[0]
    distance = (reply.words.astype(np.int64) - expected + prime // 2) % prime - prime // 2
    assert reply.request_id == request.request_id
    assert (reply.drop0, reply.drop1) == (5, 0)
    assert np.abs(distance[:, :, 0]).max() <= 16
    assert not distance[:, :, 1].any()
    assert reply.timings.total >= reply.timings.products > 0


def test_seeded_and_full_requests_answer_alike(proxy: LiveProxy, listing: dict[str, Any], key: bytes) -> None:
    full = request_frame(listing, key)
    seeds = np.arange(32, dtype=np.uint8).reshape(1, 1, 32)
    seeded = request_frame(listing, key, words=full.words[:, :, :1], seeds=seeds)
    same = request_frame(listing, key, words=ciphertexts(seeded))
    first, second = post(proxy, seeded), post(proxy, same)
    assert np.array_equal(reply_of(first.content).words, reply_of(second.content).words)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key_id": bytes(32)}, "unknown_key"),
        ({"model_digest": bytes(32)}, "unknown_model"),
        ({"plan_id": bytes(32)}, "wrong_plan"),
        ({"layer": "layers.9.qkv"}, "unknown_layer"),
        ({"preset": preset("wide")}, "wrong_preset"),
        ({"words": residues((1, 2, 2, 2, 4096), preset("default").data_primes, 0)}, "bad_frame"),
    ],
)
def test_wrong_requests_have_their_codes_on_both_transports(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes, changes: dict[str, Any], code: str
) -> None:
    request = request_frame(listing, key, **changes)
    assert post(proxy, request).json()["error"]["code"] == code
    with socket_to(proxy) as socket:
        socket.send(wire.encode(request))
        error = error_of(socket.recv())
        assert (error.code, error.request_id) == (code, request.request_id)
        socket.send(wire.encode(request_frame(listing, key)))
        reply_of(socket.recv())


def test_keys_that_lack_a_rotation_are_refused(proxy: LiveProxy, listing: dict[str, Any]) -> None:
    short = key_frame(listed_elements(listing)[:1], seed=5)
    assert upload(proxy.url, short).status_code == 201
    answer = post(proxy, request_frame(listing, short)).json()["error"]
    assert answer["code"] == "missing_rotation_key"


def test_keys_of_another_preset_are_refused_at_upload(proxy: LiveProxy) -> None:
    answer = upload(proxy.url, key_frame((3,), parameters=preset("wide")))
    assert answer.json()["error"]["code"] == "wrong_preset"


def test_an_evicted_key_is_unknown_until_it_is_uploaded_again(
    proxy: LiveProxy, listing: dict[str, Any]
) -> None:
    frame = key_frame(listed_elements(listing), seed=9)
    upload(proxy.url, frame)
    request = request_frame(listing, frame)
    first = reply_of(post(proxy, request).content)
    running = proxy.app.state.proxy
    name = wire.key_id(frame).hex()
    running.keystore.drop(name)
    running.prepared.drop(name)
    assert post(proxy, request).json()["error"]["code"] == "unknown_key"
    upload(proxy.url, frame)
    assert np.array_equal(reply_of(post(proxy, request).content).words, first.words)


def test_many_requests_share_one_socket(proxy: LiveProxy, listing: dict[str, Any], key: bytes) -> None:
    requests = {n: request_frame(listing, key, n % 4, request_id=n, seed=n) for n in range(24)}
    with socket_to(proxy) as socket:
        for request in requests.values():
            socket.send(wire.encode(request))
        replies = {reply.request_id: reply for reply in (reply_of(socket.recv()) for _ in requests)}
    assert set(replies) == set(requests)
    for n in (0, 5, 23):
        assert np.array_equal(replies[n].words, reply_of(post(proxy, requests[n]).content).words)


@pytest.mark.parametrize("message", ["text", b"", b"not a frame", b"FHE"])
def test_what_is_no_frame_at_all_closes_the_socket_with_1003(proxy: LiveProxy, message: str | bytes) -> None:
    with socket_to(proxy) as socket:
        socket.send(message)
        assert error_of(socket.recv()).code == "bad_frame"
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1003


def test_a_message_over_the_limit_closes_the_socket(proxy: LiveProxy, listing: dict[str, Any]) -> None:
    too_long = bytes(listing["limits"]["max_body_bytes"] + 1)
    with socket_to(proxy) as socket, pytest.raises(ConnectionClosedError) as closed:
        _send_and_receive(socket, too_long)
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    assert httpx.get(f"{proxy.url}/healthz").status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.booleans(),
)
def test_damaged_frames_get_error_frames_and_the_socket_lives(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes, flips: list[tuple[int, int]], cut: bool
) -> None:
    damaged = bytearray(wire.encode(request_frame(listing, key)))
    for position, mask in flips:
        damaged[position] ^= mask
    damaged[:4] = b"FHEL"
    with socket_to(proxy) as socket:
        socket.send(bytes(damaged[: 200 if cut else None]))
        answer = wire.decode(socket.recv())
        assert isinstance(answer, wire.ErrorFrame | wire.EvaluateReply)
        socket.send(wire.encode(request_frame(listing, key, request_id=3)))
        assert reply_of(socket.recv()).request_id == 3


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300),
    path=st.sampled_from(
        ["/v1/evaluate", "/v1/keys/" + "0" * 64, "/v1/keys/x", "/v1/models", "/readyz", "/metrics"]
    ),
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    content_range=st.sampled_from(
        ["", "bytes 0-0/1", "bytes 5-2/9", "bytes 0-299/300", "bytes */1", "x" * 50]
    ),
)
def test_garbage_on_any_route_gets_an_envelope(
    proxy: LiveProxy, body: bytes, path: str, method: str, content_range: str
) -> None:
    answer = httpx.request(method, proxy.url + path, content=body, headers={"content-range": content_range})
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}


def test_two_sessions_are_unharmed_by_the_garbage_of_a_third(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes
) -> None:
    expected = reply_of(post(proxy, request_frame(listing, key, 2, jobs=3)).content).words
    stop, failures = threading.Event(), []

    def vandal() -> None:
        rng = np.random.default_rng(3)
        frame = wire.encode(request_frame(listing, key, 2, jobs=3))
        while not stop.is_set():
            with socket_to(proxy) as socket:
                socket.send(b"FHEL" + rng.bytes(2000))
                socket.send(frame[: int(rng.integers(16, len(frame)))])
                socket.send(frame)  # and leave without reading the answer

    def session() -> None:
        for _ in range(8):
            with socket_to(proxy) as socket:
                socket.send(wire.encode(request_frame(listing, key, 2, jobs=3)))
                if not np.array_equal(reply_of(socket.recv()).words, expected):
                    failures.append("another answer")

    threads = [threading.Thread(target=target) for target in (vandal, session, session)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    assert failures == []


def test_the_event_loop_turns_while_rounds_are_evaluated(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes
) -> None:
    request = wire.encode(request_frame(listing, key, 2, jobs=128))
    worker = threading.Thread(target=post, args=(proxy, request))
    delays = []
    with httpx.Client(base_url=proxy.url) as client:
        client.get("/healthz")
        worker.start()
        while worker.is_alive():
            started = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            delays.append(time.perf_counter() - started)
    assert len(delays) > 3
    assert float(np.median(delays)) < 0.1
    assert max(delays) < 1.0


def test_metrics_count_rounds_bytes_errors_and_seconds(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes
) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{proxy.url}/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)

    names = [
        'fhe_llm_rounds_total{layer_kind="down"}',
        "fhe_llm_jobs_total",
        'fhe_llm_bytes_total{direction="up"}',
        'fhe_llm_bytes_total{direction="down"}',
        'fhe_llm_phase_seconds_count{phase="products"}',
        'fhe_llm_errors_total{code="unknown_key"}',
        'fhe_llm_key_cache_events_total{event="hit"}',
    ]
    before = [value(name) for name in names]
    body = wire.encode(request_frame(listing, key, 3, jobs=2))
    reply = post(proxy, body).content
    post(proxy, request_frame(listing, key, key_id=bytes(32)))
    grown = [value(name) - was for name, was in zip(names, before, strict=True)]
    assert grown[:2] == [1, 2]
    assert grown[2] >= len(body)
    assert grown[3] >= len(reply)
    assert grown[4:6] == [1, 1]
    assert value("fhe_llm_ready") == 1
    assert value("fhe_llm_queue_jobs") == 0
    assert value("fhe_llm_key_files") >= 1


def test_layers_are_listed_with_the_plans_both_sides_make(listing: dict[str, Any]) -> None:
    for entry in listing["models"][0]["layers"]:
        plan = plan_linear(preset("default"), entry["out_features"], entry["in_features"])
        assert entry["plan_id"] == plan.plan_id.hex()
