"""Are the answers the model's? Teacher-force the oracle's prompts through a proxy process and compare.

``python benchmarks/fidelity.py [--prompts 3] [--tokens 32]`` prints one JSON object: the share of positions whose
arg-max agrees with transformers' where its margin exceeds 0.1, and log2 errors per layer kind against the plaintext
(root mean square of the error over that of the output, one figure per vector; median and worst).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.conversation import Settings, connect
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.session import Session, SessionOptions
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.models.resolve import cache_root, open_model
from fhe_llm.models.steps import Forward
from fhe_llm.params import preset

VECTORS = Path(__file__).parents[1] / "tests" / "vectors" / "smollm2_135m.json"
MODEL = "smollm2-135m"
MARGIN = 0.1

Errors = dict[str, list[float]]


def watched(forward: Forward, weights: Mapping[str, NDArray[np.float32]], errors: Errors) -> Forward:
    """The same steps, noting how far every answer [T, out] is from the plaintext product."""
    step = next(forward)
    while True:
        y = yield step
        exact = step.x @ weights[step.layer].T
        off = np.sqrt(np.mean((y - exact) ** 2, axis=1) / np.mean(exact**2, axis=1))
        errors[step.layer.rpartition(".")[2]] += [float(e) for e in np.log2(off)]
        try:
            step = forward.send(y)
        except StopIteration as stop:
            result: NDArray[np.float32] = stop.value
            return result


def compare(vectors: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """Run every vector's first ``tokens`` positions in one teacher-forced pass each, over a real proxy process."""
    source = open_model(MODEL)
    weights = dict(source.linear_weights())
    errors: Errors = defaultdict(list)
    right = counted = 0
    with ProxyProcess(MODEL) as proxy:
        transport = HttpTransport(Endpoint(proxy.base_url))
        connected = transport.run(connect(Settings(model=MODEL, cache=cache_root())))
        cipher = Cipher(KeyRing.generate(preset("default")))
        session = Session(cipher, connected.model, connected.limits, SessionOptions(measure_precision=False))
        transport.run(session.open())
        for vector in vectors:
            ids = vector["prompt_ids"] + vector["greedy_ids"][: tokens - 1]
            half = connected.half
            forward = half.forward(ids, half.new_cache(), logits="all")
            logits = transport.run(session.drive(watched(forward, weights, errors)))
            chosen = logits[len(vector["prompt_ids"]) - 1 :].argmax(axis=1)
            clear = np.array(vector["margins"][:tokens]) > MARGIN
            right += int((chosen == np.array(vector["greedy_ids"][:tokens]))[clear].sum())
            counted += int(clear.sum())
        transport.close()
    return {
        "prompts": len(vectors),
        "positions": counted,
        "agreement": right / counted,
        "log2_error": {
            kind: {"median": round(float(np.median(e)), 2), "worst": round(max(e), 2)}
            for kind, e in errors.items()
        },
    }


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    asked = parser.parse_args()
    vectors = json.loads(VECTORS.read_text())["prompts"][: asked.prompts]
    sys.stdout.write(json.dumps(compare(vectors, asked.tokens), indent=2) + "\n")


if __name__ == "__main__":
    main()
