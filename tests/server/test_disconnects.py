"""A client that goes away takes its waiting work with it, and nobody else's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
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
from websockets.sync.client import connect

from fhe_llm.wire import frame as wire


class Held:
    """A proxy whose evaluator waits until :meth:`release`, with one round held inside it."""

    def __init__(self, proxy: LiveProxy, gate: threading.Event, begun: threading.Event) -> None:
        self.proxy, self.release = proxy, gate.set
        self.listing: dict[str, Any] = httpx.get(f"{proxy.url}/v1/models").json()
        self.key = key_frame(listed_elements(self.listing))
        upload(proxy.url, self.key)
        self.answers: list[int] = []
        gate.clear()
        begun.clear()
        self.first = threading.Thread(target=lambda: self.answers.append(self.post(seconds=60).status_code))
        self.first.start()
        assert begun.wait(20)

    def post(self, seconds: float) -> httpx.Response:
        return httpx.post(f"{self.proxy.url}/v1/evaluate", content=self.frame(), timeout=seconds)

    def frame(self, jobs: int = 1) -> bytes:
        return wire.encode(request_frame(self.listing, self.key, jobs=jobs))

    def queued(self) -> int:
        jobs: int = self.proxy.app.state.proxy.batcher.queued_jobs
        return jobs


@pytest.fixture
def held(tiny_model_path: Path, tmp_path: Path) -> Iterator[Held]:
    """A proxy at work."""
    gate, begun = threading.Event(), threading.Event()
    gate.set()

    def before() -> None:
        begun.set()
        gate.wait(30)

    with live(make_settings(tiny_model_path, tmp_path), lambda _: InstantEvaluator(before=before)) as proxy:
        holding = Held(proxy, gate, begun)
        try:
            yield holding
        finally:
            holding.release()
            holding.first.join()


def test_a_post_that_is_given_up_leaves_the_queue(held: Held) -> None:
    with pytest.raises(httpx.ReadTimeout):
        held.post(seconds=0.3)
    wait_until(lambda: held.queued() == 0)
    held.release()
    held.first.join()
    assert held.answers == [200]


def test_a_socket_that_closes_leaves_the_queue(held: Held) -> None:
    with connect(held.proxy.ws_url, compression=None) as leaving:
        leaving.send(held.frame(jobs=3))
        leaving.send(held.frame(jobs=4))
        wait_until(lambda: held.queued() == 7)
    wait_until(lambda: held.queued() == 0)
    held.release()
    held.first.join()
    assert held.answers == [200]


def test_the_same_bytes_can_be_sent_again_on_a_new_socket(held: Held) -> None:
    frame = held.frame(jobs=2)
    with connect(held.proxy.ws_url, compression=None) as cut:
        cut.send(frame)
        wait_until(lambda: held.queued() == 2)
        cut.socket.shutdown(socket.SHUT_RDWR)
    held.release()
    answers = []
    for _ in range(2):
        with connect(held.proxy.ws_url, compression=None) as again:
            again.send(frame)
            answer = wire.decode(again.recv())
            assert isinstance(answer, wire.EvaluateReply)
            answers.append(answer.words.tobytes())
    assert answers[0] == answers[1]
