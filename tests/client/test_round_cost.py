"""What one round costs, in counts: bytes each way, encryptions, decryptions. Times are for the benchmarks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from client_kit import TinyProxy

from fhe_llm.client import session as session_module
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.engine import SecretEngine
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.session import Session, SessionOptions
from fhe_llm.client.transport import FunctionTransport
from fhe_llm.models.steps import Linear
from fhe_llm.wire import frame as wire
from fhe_llm_server.rounds import DROP_C0

LAYER, WIDTH = "layers.0.qkv", 192


def step(rows: int = 1) -> Linear:
    return Linear(LAYER, np.random.default_rng().standard_normal((rows, WIDTH)).astype(np.float32))


@pytest.fixture(scope="module")
def rotating() -> TinyProxy:
    """A proxy whose layer needs rotations."""
    return TinyProxy(shapes={LAYER: (320, WIDTH)})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of the engine's secret operations."""
    calls: Counter[str] = Counter()
    for name in ("zero", "seeded_zero", "decrypt"):
        original = getattr(SecretEngine, name)

        def count(self: Any, *arguments: Any, _name: str = name, _original: Any = original) -> Any:
            calls[_name] += 1
            return _original(self, *arguments)

        monkeypatch.setattr(SecretEngine, name, count)
    return calls


@pytest.mark.parametrize(("seeded", "bytes_up"), [(True, 27_294), (False, 61_566)])
def test_bytes_and_secret_operations_of_a_round(
    rotating: TinyProxy, ring: KeyRing, counted: Counter[str], seeded: bool, bytes_up: int
) -> None:
    proxy = rotating
    transport = FunctionTransport(proxy.evaluate, proxy.serve)
    options = SessionOptions(seeded=seeded, measure_precision=False)
    session = Session(Cipher(ring), proxy.listing, options=options)
    transport.run(session.open())
    transport.run(session.linear(step()))
    counted.clear()
    before = session.stats.bytes_up, session.stats.bytes_down
    for _ in range(3):
        transport.run(session.linear(step()))
    assert session.stats.bytes_up - before[0] == 3 * (bytes_up + len(LAYER))
    assert counted == {"seeded_zero" if seeded else "zero": 3, "decrypt": 3}


def test_a_reply_of_the_proxy_is_under_28_kb() -> None:
    """Bytes of one decoded token of SmolLM2-135M, both ways: 30 layers of four rounds, names of at most 17 letters."""
    preset = KeyRing.generate().preset
    words = np.ones((1, 1, 2, 1, preset.ring_degree), np.uint32)
    reply = len(wire.encode(wire.EvaluateReply(preset, 1, words, drop0=DROP_C0)))
    assert reply == 28_210
    assert 120 * (27_294 + 17 + reply) < 6.7e6


class Clock:
    """Time that passes only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_spare_encryptions_fill_a_wait_but_never_outlast_it(
    proxy: TinyProxy, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, cipher = Clock(), Cipher(ring)
    session = Session(cipher, proxy.listing, options=SessionOptions(clock=clock))
    prepare = cipher.prepare

    def slow(count: int, *, seeded: bool) -> None:
        prepare(count, seeded=seeded)
        clock.now += 0.001

    monkeypatch.setattr(cipher, "prepare", slow)
    assert not session._spare(clock.now, 0.0)  # nothing is known of the wait: none
    assert not session._spare(clock.now, 0.0015)  # a wait that the encryption might outlast: none
    sent = clock.now
    made = 0
    while session._spare(sent, 0.0205):
        made += 1
    assert made == cipher.ready(seeded=True) == 19
    assert clock.now - sent <= 0.0205
    monkeypatch.setattr(session_module, "_SPARE_ZEROS", 20)
    while session._spare(clock.now, 1.0):
        made += 1
    assert made == cipher.ready(seeded=True) == 20
