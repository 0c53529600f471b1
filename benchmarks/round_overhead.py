"""Where a round's time goes besides the proxy's arithmetic: a real proxy process on loopback, real layer shapes.

    PYTHONPATH=tests python benchmarks/round_overhead.py --rounds 240

prints one JSON object: microseconds per round (p10, median, p95) of the client's phases, and of what is left of the
round trip when the proxy's own arithmetic is taken off. One transformer layer of SmolLM2-135M's shapes with random
weights. ``--pieces`` instead times the single steps in one warm thread, without a proxy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import TinyShape, write_tiny_folder

from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client import packing
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.session import Session, SessionOptions
from fhe_llm.client.transport import Endpoint, HttpTransport, list_models
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.models.steps import Linear
from fhe_llm.wire import frame as wire
from fhe_llm_server.inputs import ciphertexts
from fhe_llm_server.rounds import DROP_C0

SHAPE = TinyShape(n_layers=1, d_model=576, n_heads=9, n_kv_heads=3, d_mlp=1536)
PHASES = ("encrypt", "wire", "queue", "rotations", "products", "finish", "decrypt", "prepare")


def measure(rounds: int, data_dir: Path) -> dict[str, Any]:
    """Run the rounds of a token over and over; per-round statistics in microseconds."""
    model = write_tiny_folder(data_dir / "model", SHAPE)
    with ProxyProcess(str(model), data_dir=data_dir / "data") as proxy:
        transport = HttpTransport(Endpoint(proxy.base_url))
        listing = transport.run(list_models())
        cipher = Cipher(KeyRing.generate())
        session = Session(cipher, listing.models[0], listing.limits, SessionOptions(measure_precision=False))
        transport.run(session.open())
        names = [layer.name for layer in listing.models[0].layers]
        widths = {layer.name: layer.in_features for layer in listing.models[0].layers}
        samples: dict[str, list[float]] = {name: [] for name in (*PHASES, "total", "overhead", "bytes")}
        generator = np.random.default_rng(1)
        for i in range(-12, rounds):
            name = names[i % len(names)]
            step = Linear(name, generator.standard_normal((1, widths[name])).astype(np.float32))
            before = {p: getattr(session.stats, p) for p in PHASES}
            moved = session.stats.bytes_up + session.stats.bytes_down
            begun = time.perf_counter()
            transport.run(session.linear(step))
            total = time.perf_counter() - begun
            if i < 0:
                continue
            spent = {p: getattr(session.stats, p) - before[p] for p in PHASES}
            arithmetic = spent["rotations"] + spent["products"] + spent["finish"]
            for p in PHASES:
                samples[p].append(1e6 * spent[p])
            samples["total"].append(1e6 * total)
            samples["overhead"].append(1e6 * (total - arithmetic))
            samples["bytes"].append(session.stats.bytes_up + session.stats.bytes_down - moved)
        transport.close()
    return {name: quantiles(values) for name, values in samples.items()}


def quantiles(values: list[float]) -> dict[str, int]:
    """The tenth percentile stands for a quiet machine where others use it too."""
    return {
        name: round(float(np.quantile(values, q)))
        for name, q in (("p10", 0.1), ("median", 0.5), ("p95", 0.95))
    }


def pieces() -> dict[str, float]:
    """The least time, in microseconds, of each step of a round in one warm thread, for a layer of 576 x 576."""
    cipher = Cipher(KeyRing.generate())
    preset = cipher.preset
    plan = plan_linear(preset, 576, 576)
    x = np.random.default_rng(1).standard_normal((1, 576)).astype(np.float32)
    slots, scale = packing.pack(plan, x)
    cipher.prepare(250, seeded=True)
    seeds, c0 = cipher.encrypt_seeded(slots[0])
    shape = (1, 1, 1, *c0.shape[1:])
    ids = bytes(32), bytes(32), bytes(32), "layers.0.o"
    request = wire.EvaluateRequest(preset, 1, *ids, c0.reshape(shape), seeds[None], cipher.drop0)
    frame = wire.encode(request)
    words = np.stack([c0[0, :1], c0[0, :1]])
    reply = wire.EvaluateReply(preset, 1, words[None, None], drop0=DROP_C0)
    answer = wire.encode(reply)
    steps: dict[str, Callable[[], object]] = {
        "pack": lambda: packing.pack(plan, x),
        "encrypt with a prepared zero": lambda: cipher.encrypt_seeded(slots[0]),
        "encode request": lambda: wire.encode(request),
        "decode request": lambda: wire.decode(frame),
        "expand and transform": lambda: ciphertexts(request),
        "encode reply": lambda: wire.encode(reply),
        "decode reply": lambda: wire.decode(answer),
        "decrypt and decode": lambda: cipher.decrypt(reply.words[0], 26.0),
        "unpack": lambda: packing.unpack(plan, slots, scale),
        "prepare a zero": lambda: cipher.ring.engine().seeded_zero(),
    }
    return {name: least(step) for name, step in steps.items()}


def least(step: Callable[[], object], repeats: int = 200) -> float:
    """The shortest of many runs: others' load only ever adds."""
    spent = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        spent.append(time.perf_counter() - begun)
    return round(1e6 * min(spent), 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--pieces", action="store_true", help="single steps in one thread, no proxy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = pieces() if options.pieces else measure(options.rounds, Path(folder))
        print(json.dumps(found, indent=1))
