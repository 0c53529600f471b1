"""Prompts through a session: tokens share ciphertexts where the proxy offers it, and every answer is right."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from client_kit import TinyProxy
from numpy.typing import NDArray

from fhe_llm.client.cipher import Cipher
from fhe_llm.client.session import Session, SessionOptions
from fhe_llm.client.transport import FunctionTransport
from fhe_llm.errors import KeyRingError, ReplyError
from fhe_llm.evaluator.packed_plan import PackedPlan, packed_plans, split_tokens
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.models.steps import Linear
from fhe_llm.wire import frame as wire

LAYER = "layers.0.up"  # 96 x 40


@pytest.fixture
def proxy(proxy: TinyProxy) -> TinyProxy:
    """The shared proxy, offering plans for groups."""
    proxy.packed = True
    return proxy


def vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 40)) * 10.0 ** rng.integers(-2, 3, (count, 1))).astype(np.float32)


def requests(proxy: TinyProxy) -> list[tuple[bytes, int, int]]:
    """(plan id, jobs, ciphertexts a job) of everything sent."""
    frames = [wire.decode(data, expect=(wire.Kind.EVALUATE_REQUEST,)) for data in proxy.requests]
    return [(f.plan_id, *f.words.shape[:2]) for f in frames if isinstance(f, wire.EvaluateRequest)]


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("count", [1, 3, 17, 45, 64, 66, 150])
def test_answers_are_right_and_travel_as_planned(
    proxy: TinyProxy, cipher: Cipher, count: int, seeded: bool
) -> None:
    transport = FunctionTransport(proxy.evaluate, proxy.serve)
    session = Session(cipher, proxy.listing, options=SessionOptions(seeded=seeded, measure_precision=False))
    transport.run(session.open())
    x = vectors(count)
    y = transport.run(session.linear(Linear(LAYER, x)))
    expected = x @ proxy.weights[LAYER].T
    assert y.shape == expected.shape
    scale = np.sqrt(np.mean(expected**2, axis=1, keepdims=True))
    assert (np.abs(y - expected) < 2.0**-10 * scale).all()
    single, groups = plan_linear(proxy.preset, 96, 40), packed_plans(proxy.preset, 96, 40)
    planned = [
        (plan.plan_id, -(-n // plan.tokens) if isinstance(plan, PackedPlan) else n, plan.input_ciphertexts)
        for plan, n in split_tokens(single, groups, count)
    ]
    assert requests(proxy) == planned
    assert session.stats.rounds == len(planned)


def test_a_proxy_that_offers_no_groups_gets_single_tokens(cipher: Cipher) -> None:
    old = TinyProxy(shapes={LAYER: (50, 700)})
    transport = FunctionTransport(old.evaluate, old.serve)
    session = Session(cipher, old.listing, options=SessionOptions(measure_precision=False))
    transport.run(session.open())
    x = np.random.default_rng(1).standard_normal((20, 700)).astype(np.float32)
    y = transport.run(session.linear(Linear(LAYER, x)))
    np.testing.assert_allclose(y, x @ old.weights[LAYER].T, atol=1e-2)
    assert [jobs for _, jobs, _ in requests(old)] == [20]


def test_precision_is_measured_in_a_place_left_over(proxy: TinyProxy, cipher: Cipher) -> None:
    transport = FunctionTransport(proxy.evaluate, proxy.serve)
    session = Session(cipher, proxy.listing)
    transport.run(session.open())
    assert len(transport.run(session.linear(Linear(LAYER, vectors(64))))) == 64  # no place for a repeat
    assert session.stats.precision_log2 is None
    assert len(transport.run(session.linear(Linear(LAYER, vectors(60))))) == 60
    measured, worst = session.stats.precision_log2, session.stats.worst_error
    assert measured is not None
    assert worst is not None
    assert -24 < measured < -10
    assert measured == round(measured, 1)  # the digits of a decrypted error stay here
    assert 0 <= measured - log2(worst) < 0.1


def test_a_group_that_comes_back_short_retires_the_key(proxy: TinyProxy, cipher: Cipher) -> None:
    def cut(data: bytes) -> bytes:
        reply = wire.decode(proxy.evaluate(data), expect=(wire.Kind.EVALUATE_REPLY,))
        assert isinstance(reply, wire.EvaluateReply)
        return wire.encode(wire.EvaluateReply(reply.preset, reply.request_id, reply.words[:, :1]))

    honest = FunctionTransport(proxy.evaluate, proxy.serve)
    session = Session(cipher, proxy.listing)
    honest.run(session.open())
    with pytest.raises(ReplyError, match="retired"):
        FunctionTransport(cut, proxy.serve).run(session.linear(Linear(LAYER, vectors(45))))
    assert cipher.ring.retired
    with pytest.raises(KeyRingError, match="cannot use the session"):
        honest.run(session.linear(Linear(LAYER, vectors(45))))
