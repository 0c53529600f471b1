"""Where a round's time goes besides the proxy's arithmetic: a real proxy process on loopback, real layer shapes.

    PYTHONPATH=tests python benchmarks/round_overhead.py --rounds 240

prints one JSON object: microseconds per round (p10, median, p95) of the client's phases, and of what is left of the
round trip when the proxy's own arithmetic is taken off. One transformer layer of SmolLM2-135M's shapes with random
weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import TinyShape, write_tiny_folder

from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.session import Session, SessionOptions
from fhe_llm.client.transport import Endpoint, HttpTransport, list_models
from fhe_llm.models.steps import Linear

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=120)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(parser.parse_args().rounds, Path(folder)), indent=1))
