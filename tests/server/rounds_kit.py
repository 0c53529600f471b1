"""Frames for server tests without a key that decrypts: residues are uniform, which is all a proxy ever sees."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Evaluator, Job, Timings
from fhe_llm.evaluator.packed_plan import plan_elements
from fhe_llm.evaluator.plan import LinearPlan, plan_linear
from fhe_llm.params import Preset, preset
from fhe_llm.wire import frame as wire
from fhe_llm_server.app import create_app
from fhe_llm_server.serving import ProxyServer, bind, config
from fhe_llm_server.settings import Settings

DEFAULT = preset("default")


def residues(shape: tuple[int, ...], primes: tuple[int, ...], seed: int) -> NDArray[np.uint32]:
    """Uniform residues [..., len(primes), N]."""
    rng = np.random.default_rng(seed)
    words = np.empty(shape, np.uint32)
    for limb, prime in enumerate(primes):
        words[..., limb, :] = rng.integers(0, prime, words[..., limb, :].shape, dtype=np.uint32)
    return words


def key_frame(elements: tuple[int, ...], seed: int = 0, parameters: Preset = DEFAULT) -> bytes:
    """An evaluation-key frame of uniform residues."""
    limbs, degree = len(parameters.data_primes), parameters.ring_degree
    shape = (len(elements), limbs, 2, limbs + 1, degree)
    return wire.encode(wire.KeyFrame(parameters, elements, residues(shape, parameters.primes, seed)))


def listed_elements(listing: dict[str, Any]) -> tuple[int, ...]:
    """The Galois elements a client makes for every layer of a listing."""
    model = listing["models"][0]
    parameters = preset(model["preset"])
    plans = [
        plan_linear(parameters, layer["out_features"], layer["in_features"]) for layer in model["layers"]
    ]
    return plan_elements(parameters, plans)


def request_frame(
    listing: dict[str, Any], key: bytes, position: int = 0, **changes: Any
) -> wire.EvaluateRequest:
    """A request for the layer at ``position``; ``changes`` override fields, ``jobs`` and ``seed`` shape the words."""
    model = listing["models"][0]
    entry = model["layers"][position]
    parameters = changes.pop("preset", preset(model["preset"]))
    plan = plan_linear(preset(model["preset"]), entry["out_features"], entry["in_features"])
    shape = (
        changes.pop("jobs", 1),
        plan.input_ciphertexts,
        2,
        len(parameters.data_primes),
        parameters.ring_degree,
    )
    fields: dict[str, Any] = {
        "request_id": 7,
        "key_id": wire.key_id(key),
        "model_digest": bytes.fromhex(model["model_digest"]),
        "plan_id": bytes.fromhex(entry["plan_id"]),
        "layer": entry["name"],
        "words": residues(shape, parameters.data_primes, changes.pop("seed", 1)),
    }
    return wire.EvaluateRequest(parameters, **{**fields, **changes})


class InstantEvaluator:
    """Answers with the first limbs of the inputs; ``before`` runs first, to block or to fail."""

    parallel = 1
    jobs_per_pass = 8

    def __init__(self, parameters: Preset = DEFAULT, before: Callable[[], None] | None = None) -> None:
        self.preset = parameters
        self.before = before
        self.encoded: list[str] = []
        self.batches: list[tuple[str, int]] = []

    def encode(self, name: str, plan: LinearPlan, weights: NDArray[np.float32]) -> EncodedLayer:
        self.encoded.append(name)
        return EncodedLayer(name, plan, self.preset.log_weight_scale, np.ascontiguousarray(weights * 3))

    def prepare_keys(self, keys: EvaluationKeys) -> EvaluationKeys:
        return keys

    def evaluate(self, layer: EncodedLayer, jobs: Any) -> tuple[list[NDArray[Any]], Timings]:
        if self.before is not None:
            self.before()
        self.batches.append((layer.name, len(jobs)))
        limbs, outputs = self.preset.reply_limbs, layer.plan.output_ciphertexts
        replies = [np.repeat(job.inputs[:1, :, :limbs], outputs, axis=0) for job in jobs]
        return replies, Timings(0.001, 0.002, 0.003)


class LiveProxy:
    """A proxy behind a real socket, in a thread of this process."""

    def __init__(self, settings: Settings, evaluator: Callable[[Settings], Evaluator] | None = None) -> None:
        self.app = create_app(settings, evaluator)
        self._socket = bind(settings.host, settings.port)
        self._server = ProxyServer(config(self.app, settings), self.app, announce=lambda _url: None)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}/v1/evaluate"

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self._server.started)

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def live(
    settings: Settings, evaluator: Callable[[Settings], Evaluator] | None = None, *, ready: bool = True
) -> Iterator[LiveProxy]:
    """Start, wait until it is ready, stop."""
    proxy = LiveProxy(settings, evaluator)
    proxy.start()
    try:
        if ready:
            wait_until(lambda: httpx.get(f"{proxy.url}/readyz").status_code == 200, seconds=600)
        yield proxy
    finally:
        proxy.stop()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def upload(
    url: str, frame: bytes, chunk: int = 4 << 20, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Upload a key in chunks; the last response."""
    name = wire.key_id(frame).hex()
    with httpx.Client(base_url=url, headers=headers) as client:
        for start in range(0, len(frame), chunk):
            part = frame[start : start + chunk]
            position = f"bytes {start}-{start + len(part) - 1}/{len(frame)}"
            response = client.put(f"/v1/keys/{name}", content=part, headers={"Content-Range": position})
            if response.status_code >= 300:
                break
    return response


def make_settings(model: Path, data_dir: Path, **changes: Any) -> Settings:
    """Settings on a free port that ignore the environment."""
    return Settings(model=str(model), port=0, data_dir=data_dir, **changes)


def job(seed: int, plan: LinearPlan, keys: Any = None, parameters: Preset = DEFAULT) -> Job:
    """One job of uniform residues."""
    shape = (plan.input_ciphertexts, 2, len(parameters.data_primes), parameters.ring_degree)
    return Job(keys, residues(shape, parameters.data_primes, seed))


async def lifespan_of(app: Any, use: Callable[[httpx.AsyncClient], Any]) -> None:
    """Run ``use`` with an in-process client while the application lives."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.02)
        await use(client)
