"""One round: request frame in, reply frame out, whichever transport carried it.

Small frames are decoded and encoded where they arrive (tens of microseconds); large ones in a worker thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

import numpy as np

from fhe_llm.errors import FrameError
from fhe_llm.evaluator.contract import Job
from fhe_llm.wire import frame as wire
from fhe_llm_server.batcher import Batcher, RoundResult
from fhe_llm_server.inputs import ciphertexts
from fhe_llm_server.keyframes import check_preset
from fhe_llm_server.metrics import Metrics
from fhe_llm_server.model_host import HostedModel, HostedPlan, ModelHost
from fhe_llm_server.prepared_keys import PreparedKeys
from fhe_llm_server.refusal import Refusal
from fhe_llm_server.work_meter import RoundWork, WorkMeter

T = TypeVar("T")

INLINE_BYTES: Final = 256 * 1024
"""Frames up to this size are not worth a thread switch."""
DROP_C0: Final = 5
"""Low bits of c0 left out of one-limb replies: 2^5/sqrt(12) = 9.2 rms a coefficient beside the sqrt(N/18) = 15 that
rescaling c1 has left already (N = 4096), so at most 0.23 bits of precision, and less where rotations and rounded
weights have left more. c1 has no bit to spare: losing one is 30 rms beside the 15."""
_REQUEST_ID: Final = slice(16, 24)


class Rounds:
    """Checks a request against the hosted model, finds the key, evaluates, encodes."""

    def __init__(
        self,
        host: ModelHost,
        prepared: PreparedKeys,
        batcher: Batcher,
        meter: WorkMeter,
        pool: Executor,
        metrics: Metrics,
        limits: wire.Limits,
    ) -> None:
        self._host = host
        self._prepared = prepared
        self._batcher = batcher
        self._meter = meter
        self._pool = pool
        self._metrics = metrics
        self._limits = limits

    async def answer(self, data: bytes | bytearray, tenant: str) -> bytes:
        """The reply frame to a request frame; raises :class:`Refusal` with the code that says why not."""
        model = self._host.ready()
        request = await self._run(len(data), lambda: self._decode(data))
        layer = _check(request, model)
        key = await self._prepared.get(request.key_id.hex())
        if not layer.elements <= key.elements:
            missing = len(layer.elements - key.elements)
            message = (
                f"cannot evaluate this layer: {missing} rotation keys are missing. Make keys for this model."
            )
            raise Refusal("missing_rotation_key", message)
        await self._meter.admit(tenant, _work(len(data), request, layer))
        inputs = await self._run(request.words.nbytes, lambda: ciphertexts(request))
        jobs = [Job(key.prepared, words) for words in inputs]
        result = await self._batcher.submit(key.key_id, layer.encoded, jobs)
        self._meter.count_seconds(tenant, result.rotations + result.products + result.finish)
        size = sum(words.nbytes for words in result.outputs)
        reply = await self._run(size, lambda: _encode(request, result))
        # counted once the reply is on its way
        asyncio.get_running_loop().call_soon(self._count, request.layer, result)
        return reply

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _decode(self, data: bytes | bytearray) -> wire.EvaluateRequest:
        try:
            frame = wire.decode(data, expect=(wire.Kind.EVALUATE_REQUEST,), limits=self._limits)
        except FrameError as error:
            raise Refusal("bad_frame", str(error), reason=error.reason) from None
        assert isinstance(frame, wire.EvaluateRequest)  # noqa: S101 - the only kind expected
        return frame

    def _count(self, layer: str, result: RoundResult) -> None:
        metrics = self._metrics
        metrics.rounds.labels(layer.rpartition(".")[2]).inc()
        for phase in ("queue", "rotations", "products", "finish", "total"):
            metrics.phase[phase].observe(getattr(result, phase))


def _work(length: int, request: wire.EvaluateRequest, layer: HostedPlan) -> RoundWork:
    """Ciphertexts and bytes both ways; a reply's words are counted as they are before they are trimmed."""
    plan, preset = layer.encoded.plan, request.preset
    jobs = request.words.shape[0]
    out = jobs * plan.output_ciphertexts
    return RoundWork(
        ciphertexts=jobs * plan.input_ciphertexts + out,
        bytes=length + out * 2 * preset.reply_limbs * preset.ring_degree * 4,
    )


def is_frame(data: bytes) -> bool:
    """Whether a message at least begins like a frame of this protocol."""
    return data.startswith(b"FHEL")


def error_frame(data: bytes, refusal: Refusal) -> bytes:
    """The error frame that answers ``data``, with its request id where it is long enough to have one."""
    raw = bytes(data[_REQUEST_ID])
    request_id = int.from_bytes(raw, "little") if len(raw) == 8 and is_frame(data) else 0
    code = refusal.proxy_code
    return wire.encode(wire.ErrorFrame(request_id, code, str(refusal), refusal.retry_after_ms or 0))


def _check(request: wire.EvaluateRequest, model: HostedModel) -> HostedPlan:
    check_preset(request.preset, model.preset)
    if request.model_digest != model.digest:
        raise Refusal("unknown_model", "cannot use this model: it is not served here. See /v1/models.")
    layer = model.layers.get(request.layer)
    if layer is None:
        raise Refusal(
            "unknown_layer", "cannot use this layer: the model has none of that name. See /v1/models."
        )
    hosted = layer.plan(request.plan_id)
    if hosted is None:
        message = (
            "cannot use this plan: the proxy plans this layer otherwise. Use the same version on both sides."
        )
        raise Refusal("wrong_plan", message)
    plan = hosted.encoded.plan
    if request.words.shape[1] != plan.input_ciphertexts:
        message = (
            f"cannot use this request: a job has {plan.input_ciphertexts} ciphertexts. Pack with the plan."
        )
        raise Refusal("bad_frame", message, reason="bad_field")
    return hosted


def _encode(request: wire.EvaluateRequest, result: RoundResult) -> bytes:
    timings = wire.PhaseMicroseconds(
        *(
            min(int(1e6 * seconds), (1 << 32) - 1)
            for seconds in (result.queue, result.rotations, result.products, result.finish, result.total)
        )
    )
    drop = DROP_C0 if request.preset.reply_limbs == 1 else 0
    words = result.outputs[0][None] if len(result.outputs) == 1 else np.stack(result.outputs)
    try:
        return wire.encode(wire.EvaluateReply(request.preset, request.request_id, words, timings, drop, 0))
    except FrameError as error:
        message = (
            "cannot send this reply: it would be readable without a key. Send properly encrypted vectors."
        )
        raise Refusal("bad_frame", message, reason=error.reason) from None
