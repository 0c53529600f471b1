"""One conversation with the proxy: every linear layer becomes pack, encrypt, exchange, check, decrypt, unpack.

A session is routines without I/O; any transport runs them, blocking or not. A reply that fails its checks closes
the session and retires the key: CKKS is not secure against someone who learns how decryptions of crafted
ciphertexts turn out, so nothing the client does afterwards may depend on one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Final, NoReturn, TypeVar

import numpy as np

from fhe_llm.client import group_packing, packing
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import EvaluationKeyExport
from fhe_llm.client.listing import LayerListing, ModelListing, ProxyLimits
from fhe_llm.client.transport import KeyUpload, Patience, exchange, upload_keys
from fhe_llm.client.transport.operations import Routine
from fhe_llm.errors import FrameError, KeyRingError, ModelError, ReplyError
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan, packed_plans, plan_elements, split_tokens
from fhe_llm.evaluator.plan import LinearPlan, plan_linear
from fhe_llm.models.config import layer_kind
from fhe_llm.models.steps import Floats, Linear
from fhe_llm.progress import Progress, silent
from fhe_llm.wire import frame as wire
from fhe_llm.wire.seed import SEED_BYTES

R = TypeVar("R")

_FRAME_OVERHEAD: Final = 1024
_SPARE_ZEROS: Final = 128
"""Encryptions of zero made ahead where there is time: about the rounds of one token."""


@dataclass(slots=True)
class SessionStats:
    """What rounds cost so far. Times in seconds: ``encrypt`` includes packing and encoding, ``decrypt`` decoding and
    unpacking, ``prepare`` the encryptions made while waiting (inside ``wire``); ``wire`` is the round trip without
    the proxy's own four phases. ``worst_error`` is the largest error met, relative to its output's largest entry."""

    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    encrypt: float = 0.0
    wire: float = 0.0
    prepare: float = 0.0
    queue: float = 0.0
    rotations: float = 0.0
    products: float = 0.0
    finish: float = 0.0
    decrypt: float = 0.0
    worst_error: float | None = None
    layers_seen: set[str] = field(default_factory=set)

    @property
    def precision_log2(self) -> float | None:
        """log2 of ``worst_error``, rounded up to a tenth of a bit; None where nothing was measured.

        The error is decrypted noise, which depends on the key: its digits are not for publication.
        """
        return None if self.worst_error is None else ceil(10 * log2(max(self.worst_error, 2.0**-60))) / 10


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """``seeded`` halves the upload. ``measure_precision`` sends one vector of each layer kind twice in one request, in
    ciphertexts of its own or in two places of a group that shares some, and compares the answers: this sees the noise
    of encryption and evaluation, but no error that both have in common, such as the rounding of the weights."""

    seeded: bool = True
    measure_precision: bool = True
    patience: Patience = field(default_factory=Patience)
    progress: Progress = silent
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, slots=True)
class _Layer:
    name: str
    plan: LinearPlan
    packed: tuple[PackedPlan, ...]
    log_scales: dict[Plan, float]
    kind: str

    def split(self, count: int) -> tuple[tuple[Plan, int], ...]:
        """Plans for ``count`` vectors, in order, and how many each takes."""
        return split_tokens(self.plan, self.packed, count)


@dataclass(frozen=True, slots=True)
class _Use:
    """A layer under one of its plans."""

    layer: _Layer
    plan: Plan

    @property
    def tokens(self) -> int:
        """Vectors one job holds."""
        return self.plan.tokens if isinstance(self.plan, PackedPlan) else 1

    def pack(self, x: Floats) -> tuple[packing.Slots, packing.Scales]:
        """Slots [jobs, input_ciphertexts, slots] and the vectors' divisors."""
        if isinstance(self.plan, PackedPlan):
            return group_packing.pack_groups(self.plan, x)
        return packing.pack(self.plan, x)

    def unpack(self, slots: packing.Slots, scale: packing.Scales) -> Floats:
        """Products [len(scale), out_features] of slots [jobs * output_ciphertexts, slots]."""
        slots = slots.reshape(-1, self.plan.output_ciphertexts, self.plan.slots)
        if isinstance(self.plan, PackedPlan):
            return group_packing.unpack_groups(self.plan, slots, scale)
        return packing.unpack(self.plan, slots, scale)


class Session:
    """Rounds of one model under one key. Not for concurrent use; many sessions may share a :class:`Cipher`."""

    def __init__(
        self,
        cipher: Cipher,
        model: ModelListing,
        limits: ProxyLimits | None = None,
        options: SessionOptions | None = None,
    ) -> None:
        """Raises :class:`ModelError` where the proxy plans a layer otherwise, or uses another preset."""
        self.stats = SessionStats()
        self._cipher = cipher
        self._model = model
        self._limits = limits or ProxyLimits()
        self._options = options or SessionOptions()
        self._layers = _planned(cipher, model)
        self._keys: EvaluationKeyExport | None = None
        self._measured: set[str] = set()
        self._widest: dict[int, int] = {}
        self._request_id = secrets.randbits(63)
        self._waits: dict[tuple[str, int], float] = {}
        self._zero_seconds = 1e-3
        self._closed: str | None = None

    def open(self) -> Routine[bool]:
        """Make the evaluation keys this model needs and upload them where the proxy lacks them (True then)."""
        return (yield from upload_keys(self._upload(), patience=self._options.patience))

    def drive(self, steps: Generator[Linear, Floats, R]) -> Routine[R]:
        """Answer every :class:`Linear` of ``steps``; returns what ``steps`` returns."""
        try:
            step = next(steps)
            while True:
                step = steps.send((yield from self.linear(step)))
        except StopIteration as stop:
            result: R = stop.value
            return result
        finally:
            steps.close()

    def linear(self, step: Linear) -> Routine[Floats]:
        """x [T, in_features] to y [T, out_features], in as few rounds as the proxy's limits allow.

        Raises :class:`TransportError`, :class:`ProxyError`; :class:`ReplyError` once, for a reply that fails its
        checks, and :class:`RetiredKeyError` ever after.
        """
        layer, answers, first = self._layer(step.layer), list[Floats](), 0
        for plan, count in layer.split(len(step.x)):
            answers.append((yield from self._rounds(_Use(layer, plan), step.x[first : first + count])))
            first += count
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def close(self) -> None:
        """Refuse further rounds."""
        self._closed = self._closed or "it was closed"

    def _rounds(self, use: _Use, x: Floats) -> Routine[Floats]:
        """x under one plan. The last vector goes twice where it fits beside the others and nothing was measured yet."""
        most = self._most_jobs(use.plan) * use.tokens
        beside = len(x) % (use.tokens if use.tokens > 1 else most) != 0
        repeat = self._options.measure_precision and use.layer.kind not in self._measured and beside
        if repeat:
            x = np.concatenate([x, x[-1:]])
        answers = []
        for first in range(0, len(x), most):
            answers.append((yield from self._round(use, x[first : first + most])))
        y = answers[0] if len(answers) == 1 else np.concatenate(answers)
        if repeat:
            self._measured.add(use.layer.kind)
            self._note_error(y[-2], y[-1])
            y = y[:-1]
        return y

    def _round(self, use: _Use, x: Floats) -> Routine[Floats]:
        clock, stats = self._options.clock, self.stats
        begun = clock()
        frame, scale, jobs = self._request(use, x)
        sent = clock()
        try:
            answer = yield from exchange(
                frame,
                self._upload(),
                meanwhile=lambda: self._prepare(len(x)),
                spare=lambda: self._spare(sent, self._waits.get((use.layer.kind, len(x)), 0.0)),
                patience=self._options.patience,
            )
            received = clock()
            self._waits[use.layer.kind, len(x)] = received - sent
            reply = self._checked(answer, use, jobs)
            y = self._opened(reply, use, scale)
        except (FrameError, ReplyError) as error:
            self._retire(use.layer, error)
        t = reply.timings
        phases = [1e-6 * us for us in (t.queue, t.rotations, t.products, t.finish)]
        stats.rounds += 1
        stats.layers_seen.add(use.layer.name)
        stats.bytes_up += len(frame)
        stats.bytes_down += len(answer)
        stats.encrypt += sent - begun
        stats.wire += max(0.0, received - sent - sum(phases))
        stats.queue += phases[0]
        stats.rotations += phases[1]
        stats.products += phases[2]
        stats.finish += phases[3]
        stats.decrypt += clock() - received
        return y

    def _request(self, use: _Use, x: Floats) -> tuple[bytes, packing.Scales, int]:
        if self._closed is not None:
            raise KeyRingError(f"cannot use the session: {self._closed}. Start a new one.")
        plan, preset = use.plan, self._cipher.preset
        slots, scale = use.pack(x)
        flat = slots.reshape(-1, plan.slots)
        jobs, limbs = (len(slots), plan.input_ciphertexts), len(preset.data_primes)
        if self._options.seeded:
            seeds, c0 = self._cipher.encrypt_seeded(flat)
            words, seeds = c0.reshape(*jobs, 1, limbs, preset.ring_degree), seeds.reshape(*jobs, SEED_BYTES)
        else:
            words, seeds = self._cipher.encrypt(flat).reshape(*jobs, 2, limbs, preset.ring_degree), None
        self._request_id += 1
        request = wire.EvaluateRequest(
            preset=preset,
            request_id=self._request_id,
            key_id=self._export().key_id,
            model_digest=bytes.fromhex(self._model.model_digest),
            plan_id=plan.plan_id,
            layer=use.layer.name,
            words=words,
            seeds=seeds,
            drop0=0 if seeds is None else self._cipher.drop0,
        )
        return wire.encode(request), scale, len(slots)

    def _checked(self, data: bytes, use: _Use, jobs: int) -> wire.EvaluateReply:
        """The reply, once every count in it is what the request calls for; raises FrameError, ReplyError."""
        preset = self._cipher.preset
        limits = wire.Limits(max_frame_bytes=len(data), max_jobs=jobs)
        reply = wire.decode(data, expect=(wire.Kind.EVALUATE_REPLY,), limits=limits)
        assert isinstance(reply, wire.EvaluateReply)  # noqa: S101  what decode was told to expect
        wanted = (jobs, use.plan.output_ciphertexts, 2, preset.reply_limbs, preset.ring_degree)
        if reply.preset != preset or reply.request_id != self._request_id or reply.words.shape != wanted:
            raise ReplyError("it does not answer the request that was sent")
        return reply

    def _opened(self, reply: wire.EvaluateReply, use: _Use, scale: packing.Scales) -> Floats:
        """Decrypt, decode, unpack."""
        log_scale = self._cipher.preset.log_reply_scale(use.layer.log_scales[use.plan])
        flat = reply.words.reshape(-1, *reply.words.shape[2:])
        return use.unpack(self._cipher.decrypt(flat, log_scale), scale)

    def _retire(self, layer: _Layer, error: Exception) -> NoReturn:
        self._closed = "a reply failed its checks"
        self._cipher.retire(f"a reply for {layer.name} failed its checks")
        raise ReplyError(
            f"cannot use the proxy's reply for {layer.name}: {error} "
            "The session is closed and its key retired. Make a new key, and find out who changed the reply."
        ) from None

    def _prepare(self, count: int) -> None:
        """While the proxy works: encryptions of zero for a round of as many vectors."""
        begun = self._options.clock()
        self._cipher.prepare(self._most_ciphertexts(count), seeded=self._options.seeded)
        self.stats.prepare += self._options.clock() - begun

    def _spare(self, sent: float, wait: float) -> bool:
        """One more encryption of zero, if a wait as long as the last one of its kind leaves time for it.

        The margin is for cores that the proxy shares: an encryption that outlasts the wait delays the round.
        """
        clock, ready = self._options.clock, self._cipher.ready(seeded=self._options.seeded)
        begun = clock()
        if ready >= _SPARE_ZEROS or begun - sent + 2 * self._zero_seconds > wait:
            return False
        self._cipher.prepare(ready + 1, seeded=self._options.seeded)
        self._zero_seconds = clock() - begun
        self.stats.prepare += self._zero_seconds
        return True

    def _most_ciphertexts(self, count: int) -> int:
        """Ciphertexts that ``count`` vectors need in the layer that needs most."""
        if count not in self._widest:
            self._widest[count] = max(
                sum(
                    ceil(n / _Use(layer, plan).tokens) * plan.input_ciphertexts
                    for plan, n in layer.split(count)
                )
                for layer in self._layers.values()
            )
        return self._widest[count]

    def _most_jobs(self, plan: Plan) -> int:
        """Vectors, or groups of them, one request may hold."""
        preset = self._cipher.preset
        half = sum(p.bit_length() for p in preset.data_primes) * preset.ring_degree // 8
        each = plan.input_ciphertexts * (half + SEED_BYTES if self._options.seeded else 2 * half)
        fitting = (self._limits.max_body_bytes - _FRAME_OVERHEAD) // each
        if fitting < 1:
            raise ModelError(
                f"cannot send a vector of {each} bytes: the proxy takes {self._limits.max_body_bytes} at most. "
                "Ask for a larger limit there."
            )
        return min(fitting, self._limits.max_jobs, 256)

    def _note_error(self, y: Floats, again: Floats) -> None:
        error = float(np.abs(y - again).max()) / (float(np.abs(y).max()) or 1.0)
        self.stats.worst_error = max(error, self.stats.worst_error or 0.0)

    def _layer(self, name: str) -> _Layer:
        try:
            return self._layers[name]
        except KeyError:
            raise ModelError(
                f"cannot evaluate layer {name!r}: {self._model.name} has none at the proxy."
            ) from None

    def _export(self) -> EvaluationKeyExport:
        if self._keys is None:
            plans = (plan for layer in self._layers.values() for plan in layer.log_scales)
            elements = plan_elements(self._cipher.preset, plans)
            elements = elements or (
                3,
            )  # layers small enough need no rotation; a key frame holds one at least
            self._keys = self._cipher.ring.evaluation_keys(elements, progress=self._options.progress)
        return self._keys

    def _upload(self) -> KeyUpload:
        return KeyUpload(self._export().key_id, lambda: self._export().frame, self._options.progress)


def _planned(cipher: Cipher, model: ModelListing) -> dict[str, _Layer]:
    preset = cipher.preset
    if model.preset != preset.name:
        raise ModelError(
            f"cannot use model {model.name}: the proxy runs preset {model.preset!r} and the key is for "
            f"{preset.name!r}. Make a key for that preset."
        )
    return dict(_planned_layers(cipher, model.layers))


def _planned_layers(cipher: Cipher, listings: Iterable[LayerListing]) -> Iterable[tuple[str, _Layer]]:
    for listing in listings:
        plan = plan_linear(cipher.preset, listing.out_features, listing.in_features)
        if plan.plan_id.hex() != listing.plan_id:
            raise ModelError(
                f"cannot use layer {listing.name}: the proxy lays it out otherwise. Use the same fhe-llm version there."
            )
        scales: dict[Plan, float] = {plan: listing.log_weight_scale}
        offered = {entry.plan_id: entry.log_weight_scale for entry in listing.packed}
        packed = packed_plans(cipher.preset, listing.out_features, listing.in_features)
        packed = tuple(group for group in packed if group.plan_id.hex() in offered)
        scales |= {group: offered[group.plan_id.hex()] for group in packed}
        yield listing.name, _Layer(listing.name, plan, packed, scales, layer_kind(listing.name))
