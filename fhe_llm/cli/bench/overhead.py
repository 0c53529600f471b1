"""What proxy and wire cost a round beside the arithmetic: recorded requests sent again, less the evaluator's own time.

The same bytes go again, as after a cut connection; nothing is decrypted, so nothing is learnt from the replies.
"""

from __future__ import annotations

import os
import time
from typing import Any

from fhe_llm.cli.asking import Served, served
from fhe_llm.cli.bench.record import percentile, record, spread, usable_cores
from fhe_llm.cli.bench.subject import PROMPT, open_subject, plain_settings
from fhe_llm.cli.tap import Tap
from fhe_llm.client.transport import Endpoint, HttpTransport, exchange
from fhe_llm.client.transport.operations import Operation, Round
from fhe_llm.client.transport.routines import KeyUpload
from fhe_llm.errors import FrameError
from fhe_llm.llm import EncryptedLLM
from fhe_llm.models.config import layer_kind
from fhe_llm.params import preset as find_preset
from fhe_llm.wire import frame as wire


def bench_overhead(
    model: str, passes: int, preset: str = "default", base_url: str | None = None
) -> dict[str, Any]:
    """The record of ``passes`` times the rounds of one decoded token."""
    subject = open_subject(model)
    name = model if base_url is None else subject.source.config.name
    with served(base_url, name, preset) as proxy:
        requests, rounds = _recorded(proxy, preset)
        transport = HttpTransport(_endpoint(proxy))
        for request in requests[: len(requests) // 4]:
            _replay(transport, request)
        seconds = [
            (layer_kind(_layer(request)), *_replay(transport, request))
            for _ in range(passes)
            for request in requests
        ]
        transport.close()
    overhead = [beside for _, beside, _, _ in seconds]
    kinds = {name for name, *_ in seconds}
    figures = {
        "model": subject.source.config.name,
        "model_digest": subject.source.model_digest,
        "threads": {"proxy": usable_cores() if base_url is None else None, "client": 1},
        "proxy": "same machine" if base_url is None else base_url,
        "rounds": len(overhead),
        "rounds_per_token": rounds,
        "overhead_seconds": _distribution(overhead),
        "queue_seconds": _distribution([queue for *_, queue in seconds]),
        "arithmetic_seconds": _distribution([arithmetic for _, _, arithmetic, _ in seconds]),
        "overhead_seconds_by_layer": {
            k: _distribution([beside for name, beside, _, _ in seconds if name == k]) for k in sorted(kinds)
        },
    }
    return record("overhead", find_preset(preset), figures)


def _recorded(proxy: Served, preset: str) -> tuple[list[bytes], int]:
    """The request frames of one decoded token, and how many there are."""
    frames: list[bytes] = []

    def note(operation: Operation) -> None:
        if isinstance(operation, Round):
            frames.append(operation.frame)

    transport = Tap(HttpTransport(_endpoint(proxy)), note)
    with EncryptedLLM(proxy.model, preset=preset, transport=transport, **plain_settings()) as llm:
        llm.generate(PROMPT, max_tokens=1)
        before = len(frames)
        llm.generate(PROMPT, max_tokens=2)
    transport.close()
    rounds = len(frames) - 2 * before
    return frames[-rounds:], rounds


def _replay(transport: HttpTransport, request: bytes) -> tuple[float, float, float]:
    """Seconds of one round beside the arithmetic, in the arithmetic, and in the queue (part of the first)."""
    begun = time.perf_counter()
    answer = transport.run(exchange(request, KeyUpload(bytes(32), _no_keys)))
    total = time.perf_counter() - begun
    reply = wire.decode(answer, expect=(wire.Kind.EVALUATE_REPLY,))
    assert isinstance(reply, wire.EvaluateReply)  # noqa: S101  what decode was told to expect
    t = reply.timings
    arithmetic = 1e-6 * (t.rotations + t.products + t.finish)
    return total - arithmetic, arithmetic, 1e-6 * t.queue


def _no_keys() -> bytes:
    raise FrameError("cannot repeat a round: the proxy has lost the keys. Raise its key budget.")


def _layer(request: bytes) -> str:
    frame = wire.decode(request)
    return frame.layer if isinstance(frame, wire.EvaluateRequest) else ""


def _endpoint(proxy: Served) -> Endpoint:
    return Endpoint(proxy.base_url, os.environ.get("FHE_LLM_API_KEY"))


def _distribution(seconds: list[float]) -> dict[str, float]:
    found = spread(seconds)
    return {
        "p50": found.median,
        "p95": percentile(seconds, 0.95),
        "minimum": found.minimum,
        "maximum": found.maximum,
    }
