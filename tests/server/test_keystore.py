"""The key store on its own, then through the route."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

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
    wait_until,
)

from fhe_llm.wire import frame as wire
from fhe_llm_server import keystore as module
from fhe_llm_server.keystore import KeyStore
from fhe_llm_server.refusal import Refusal


def name_of(frame: bytes) -> str:
    return hashlib.sha256(frame).hexdigest()


def open_store(folder: Path, budget: int = 1000, most: int = 500) -> KeyStore:
    store = KeyStore(folder, budget, most, verify=lambda _: None)
    store.open()
    return store


def put(store: KeyStore, frame: bytes, chunk: int = 64) -> None:
    for start in range(0, len(frame), chunk):
        store.write(name_of(frame), start, len(frame), frame[start : start + chunk])


def refused(code: str) -> Any:
    return pytest.raises(Refusal, check=lambda error: error.proxy_code == code)


def test_a_key_is_here_only_once_it_is_whole_and_survives_a_restart(tmp_path: Path) -> None:
    store, frame = open_store(tmp_path), os.urandom(200)
    assert store.write(name_of(frame), 0, 200, frame[:100]) == 100
    assert name_of(frame) not in store
    assert store.write(name_of(frame), 50, 200, frame[50:120]) == 120
    assert store.write(name_of(frame), 120, 200, frame[120:]) is None
    assert store.write(name_of(frame), 0, 200, frame[:100]) is None
    assert store.read(name_of(frame)) == frame
    again = open_store(tmp_path)
    assert again.read(name_of(frame)) == frame
    assert (len(again), again.used_bytes) == (1, 200)


def test_leftover_uploads_and_foreign_files_are_not_keys(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write("a" * 64, 0, 200, bytes(10))
    (tmp_path / "keys" / "notes.key").write_text("hello")
    again = open_store(tmp_path)
    assert len(again) == 0
    assert not list((tmp_path / "uploads").iterdir())


def test_the_least_recently_used_key_makes_room_also_after_a_restart(tmp_path: Path) -> None:
    store, frames = open_store(tmp_path), [os.urandom(400) for _ in range(3)]
    put(store, frames[0])
    put(store, frames[1])
    os.utime(tmp_path / "keys" / f"{name_of(frames[1])}.key", (1, 1))
    store.read(name_of(frames[0]))
    again = open_store(tmp_path)
    put(again, frames[2])
    assert [name_of(frame) in again for frame in frames] == [True, False, True]
    with refused("unknown_key"):
        again.read(name_of(frames[1]))


def test_a_smaller_budget_after_a_restart_evicts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, os.urandom(400))
    put(store, os.urandom(400))
    assert len(open_store(tmp_path, budget=500)) == 1


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_key_damaged_on_disk_is_dropped_and_unknown(tmp_path: Path, damage: bytes | None) -> None:
    store, frame = open_store(tmp_path), os.urandom(200)
    put(store, frame)
    path = tmp_path / "keys" / f"{name_of(frame)}.key"
    path.write_bytes(damage) if damage is not None else path.unlink()
    with refused("unknown_key"):
        store.read(name_of(frame))
    assert name_of(frame) not in store
    put(store, frame)
    assert store.read(name_of(frame)) == frame


def test_bytes_that_are_not_the_named_key_are_refused_and_can_be_sent_again(tmp_path: Path) -> None:
    store, frame = open_store(tmp_path), os.urandom(200)
    with refused("key_mismatch"):
        store.write(name_of(frame), 0, 200, bytes(200))
    assert not list((tmp_path / "uploads").iterdir())
    put(store, frame)
    assert name_of(frame) in store


def test_what_verify_refuses_never_becomes_a_key(tmp_path: Path) -> None:
    def verify(_: bytes) -> None:
        raise Refusal("bad_frame", "cannot read it: no. Stop.")

    store = KeyStore(tmp_path, 1000, 500, verify)
    store.open()
    with refused("bad_frame"):
        put(store, os.urandom(100))
    assert len(store) == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_chunks_may_not_be_skipped_nor_change_the_total_nor_be_too_long(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write("a" * 64, 0, 200, bytes(10))
    with refused("upload_conflict"):
        store.write("a" * 64, 11, 200, bytes(10))
    with refused("upload_conflict"):
        store.write("a" * 64, 10, 201, bytes(10))
    with refused("body_too_large"):
        store.write("b" * 64, 0, 501, bytes(10))


def test_unfinished_uploads_are_bounded_and_go_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    for n in range(module.MAX_UPLOADS):
        store.write(f"{n:064x}", 0, 200, bytes(10))
    with refused("busy"):
        store.write("f" * 64, 0, 200, bytes(10))
    monkeypatch.setattr(module, "STALE_UPLOAD_SECONDS", 0.0)
    assert store.write("f" * 64, 0, 200, bytes(10)) == 10
    assert len(list((tmp_path / "uploads").iterdir())) == module.MAX_UPLOADS


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, frame = open_store(tmp_path), os.urandom(200)
    store.write(name_of(frame), 0, 200, frame[:100])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_at", full)
        with refused("storage_full"):
            store.write(name_of(frame), 100, 200, frame[100:])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    put(store, frame)
    assert store.read(name_of(frame)) == frame


def test_many_uploaders_of_one_key_end_with_one_key(tmp_path: Path) -> None:
    store, frame, failures = open_store(tmp_path), os.urandom(400), []

    def uploader() -> None:
        try:
            put(store, frame, chunk=7)
        except Refusal as refusal:
            failures.append(refusal)

    threads = [threading.Thread(target=uploader) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.read(name_of(frame)) == frame
    assert not list((tmp_path / "uploads").iterdir())


def test_uploading_is_idempotent_and_resumable(proxy: LiveProxy) -> None:
    frame = key_frame((3, 9), seed=77)
    name, total = wire.key_id(frame).hex(), len(frame)
    url = f"{proxy.url}/v1/keys/{name}"
    assert httpx.head(url).status_code == 404
    part = httpx.put(url, content=frame[:1000], headers={"content-range": f"bytes 0-999/{total}"})
    assert (part.status_code, part.json()["received"]) == (202, 1000)
    skipped = httpx.put(url, content=frame[2000:3000], headers={"content-range": f"bytes 2000-2999/{total}"})
    assert skipped.json()["error"]["code"] == "upload_conflict"
    rest = httpx.put(url, content=frame[1000:], headers={"content-range": f"bytes 1000-{total - 1}/{total}"})
    assert rest.status_code == 201
    assert httpx.put(url, content=frame).status_code == 201
    assert httpx.head(url).status_code == 200


@pytest.mark.parametrize(
    "content_range", ["bytes 0-3/3", "bytes 1-0/9", "bytes 0-1/9", "lines 0-4/5", "bytes */5", ""]
)
def test_a_content_range_that_is_not_the_bodys_is_refused(proxy: LiveProxy, content_range: str) -> None:
    answer = httpx.put(
        f"{proxy.url}/v1/keys/{'0' * 64}", content=b"12345", headers={"content-range": content_range}
    )
    assert answer.json()["error"]["code"] == "bad_request"


@pytest.mark.parametrize("name", ["x", "A" * 64, "0" * 63, "..%2f..%2fetc"])
def test_key_ids_are_sixty_four_hex_digits(proxy: LiveProxy, name: str) -> None:
    assert httpx.put(f"{proxy.url}/v1/keys/{name}", content=b"1").status_code in (400, 404)


def test_an_upload_that_is_no_key_frame_is_refused(proxy: LiveProxy) -> None:
    answer = httpx.put(f"{proxy.url}/v1/keys/{name_of(b'nonsense')}", content=b"nonsense").json()["error"]
    assert (answer["code"], answer["reason"]) == ("bad_frame", "truncated")
    answer = httpx.put(f"{proxy.url}/v1/keys/{'0' * 64}", content=b"nonsense").json()["error"]
    assert answer["code"] == "key_mismatch"


def test_keys_survive_a_restart_and_damage_is_noticed(tmp_path: Path, tiny_model_path: Path) -> None:
    settings = make_settings(tiny_model_path, tmp_path)
    with live(settings, lambda _: InstantEvaluator()) as proxy:
        listing = httpx.get(f"{proxy.url}/v1/models").json()
        frame = key_frame(listed_elements(listing))
        assert upload(proxy.url, frame, chunk=100_000).status_code == 201
    request = wire.encode(request_frame(listing, frame))
    with live(settings, lambda _: InstantEvaluator()) as proxy:
        assert httpx.post(f"{proxy.url}/v1/evaluate", content=request).status_code == 200
    path = tmp_path / "keys" / f"{wire.key_id(frame).hex()}.key"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with live(settings, lambda _: InstantEvaluator()) as proxy:
        assert (
            httpx.post(f"{proxy.url}/v1/evaluate", content=request).json()["error"]["code"] == "unknown_key"
        )


def test_evicting_a_key_does_not_disturb_the_round_that_uses_it(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def block() -> None:
        if gate:
            begun.set()
            go_on.wait(20)

    gate: list[bool] = []
    with live(make_settings(tiny_model_path, tmp_path), lambda _: InstantEvaluator(before=block)) as proxy:
        listing = httpx.get(f"{proxy.url}/v1/models").json()
        frame = key_frame(listed_elements(listing))
        upload(proxy.url, frame)
        gate.append(True)
        answers: list[httpx.Response] = []
        body = wire.encode(request_frame(listing, frame))
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{proxy.url}/v1/evaluate", content=body, timeout=30))
        )
        asking.start()
        assert begun.wait(20)
        running = proxy.app.state.proxy
        running.keystore.drop(wire.key_id(frame).hex())
        running.prepared.drop(wire.key_id(frame).hex())
        go_on.set()
        asking.join()
        assert answers[0].status_code == 200
        wait_until(lambda: httpx.head(f"{proxy.url}/v1/keys/{wire.key_id(frame).hex()}").status_code == 404)
