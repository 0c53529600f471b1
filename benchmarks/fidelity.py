"""Are the answers the model's? Teacher-force the oracle's prompts through a proxy process and compare.

``python benchmarks/fidelity.py [--prompts 6] [--tokens 32] [--parts FOLDER] [--output FILE]`` prints one JSON
record: the share of positions whose arg-max agrees with transformers' where its margin exceeds 0.1, and log2 errors
per layer kind against the plaintext (root mean square of the error over that of the output, one figure per vector;
median and worst).

``--prompts N`` takes N prompts spread evenly over the file. With ``--parts`` each prompt's figures are kept in a file
of their own as soon as they are there, and a later run of the same commit, model and preset measures what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.cli.bench.record import record
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.conversation import Connected, Settings, connect
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.session import Session, SessionOptions
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.models.resolve import KNOWN, cache_root, open_model
from fhe_llm.models.steps import Forward
from fhe_llm.params import preset

VECTORS = Path(__file__).parents[1] / "tests" / "vectors" / "smollm2_135m.json"
MODEL = "smollm2-135m"
PRESET = "default"
MARGIN = 0.1

Errors = dict[str, list[float]]
Part = dict[str, Any]
Vector = dict[str, Any]


def watched(forward: Forward, weights: Mapping[str, NDArray[np.float32]], errors: Errors) -> Forward:
    """The same steps, noting how far every answer [T, out] is from the plaintext product."""
    step = next(forward)
    while True:
        y = yield step
        exact = step.x @ weights[step.layer].T
        off = np.sqrt(np.mean((y - exact) ** 2, axis=1) / np.mean(exact**2, axis=1))
        errors[step.layer.rpartition(".")[2]] += [round(float(e), 3) for e in np.log2(off)]
        try:
            step = forward.send(y)
        except StopIteration as stop:
            result: NDArray[np.float32] = stop.value
            return result


class Encrypted:
    """The encrypted path to a proxy, and the plaintext weights to judge it by."""

    def __init__(
        self, transport: HttpTransport, connected: Connected, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._transport = transport
        self._half = connected.half
        self._weights = weights
        cipher = Cipher(KeyRing.generate(preset(PRESET)))
        options = SessionOptions(measure_precision=False)
        self._session = Session(cipher, connected.model, connected.limits, options)
        transport.run(self._session.open())

    def measure(self, vector: Vector, tokens: int) -> Part:
        """One prompt and its first ``tokens`` answers in one teacher-forced pass."""
        errors: Errors = defaultdict(list)
        ids = vector["prompt_ids"] + vector["greedy_ids"][: tokens - 1]
        forward = self._half.forward(ids, self._half.new_cache(), logits="all")
        logits = self._transport.run(self._session.drive(watched(forward, self._weights, errors)))
        chosen = logits[len(vector["prompt_ids"]) - 1 :].argmax(axis=1)
        clear = np.array(vector["margins"][:tokens]) > MARGIN
        right = (chosen == np.array(vector["greedy_ids"][:tokens]))[clear]
        return {"positions": int(clear.sum()), "agreeing": int(right.sum()), "log2_errors": errors}


@contextmanager
def encrypted() -> Iterator[Encrypted]:
    """A proxy process of our own and a session with it."""
    weights = dict(open_model(MODEL).linear_weights())
    with ProxyProcess(MODEL, preset=PRESET) as proxy:
        transport = HttpTransport(Endpoint(proxy.base_url))
        try:
            connected = transport.run(connect(Settings(model=MODEL, cache=cache_root())))
            yield Encrypted(transport, connected, weights)
        finally:
            transport.close()


def compare(vectors: Sequence[Vector], tokens: int, folder: Path | None = None) -> dict[str, Any]:
    """Run every vector that has no part in ``folder`` yet, and put all parts together."""
    parts = [_kept(folder, vector, tokens) for vector in vectors]
    missing = [i for i, part in enumerate(parts) if part is None]
    if missing:
        with encrypted() as path:
            for done, i in enumerate(missing):
                parts[i] = path.measure(vectors[i], tokens)
                _keep(folder, vectors[i], tokens, parts[i] or {})
                sys.stderr.write(f"{done + 1} of {len(missing)} prompts\n")
    return summary([part for part in parts if part is not None], tokens)


def summary(parts: Sequence[Part], tokens: int) -> dict[str, Any]:
    """Agreement over all positions; median and worst error of each layer kind over all vectors."""
    errors: Errors = defaultdict(list)
    for part in parts:
        for kind, found in part["log2_errors"].items():
            errors[kind] += found
    positions = sum(part["positions"] for part in parts)
    agreeing = sum(part["agreeing"] for part in parts)
    return {
        "prompts": len(parts),
        "tokens": tokens,
        "positions": positions,
        "agreeing": agreeing,
        "agreement": agreeing / positions,
        "log2_error": {
            kind: {"median": round(float(np.median(e)), 2), "worst": round(max(e), 2), "vectors": len(e)}
            for kind, e in errors.items()
        },
    }


def spread_evenly(vectors: Sequence[Vector], count: int) -> list[Vector]:
    """``count`` of the vectors, the first and the last among them."""
    if not 1 <= count <= len(vectors):
        raise SystemExit(f"cannot take {count} prompts: the file has {len(vectors)}. Choose 1 to as many.")
    return [vectors[round(i)] for i in np.linspace(0, len(vectors) - 1, count)]


def _identity(vector: Vector, tokens: int) -> dict[str, Any]:
    """What must be the same for a kept part to count."""
    made = record("fidelity part", preset(PRESET), {})
    return {
        "commit": made["commit"],
        "preset": made["preset"],
        "model": KNOWN[MODEL].gguf_sha256,
        "tokens": tokens,
        "prompt_ids": vector["prompt_ids"],
    }


def _part_path(folder: Path, vector: Vector) -> Path:
    number = json.loads(VECTORS.read_text())["prompts"].index(vector)
    return folder / f"prompt-{number:02}.json"


def _kept(folder: Path | None, vector: Vector, tokens: int) -> Part | None:
    try:
        kept = json.loads(_part_path(folder, vector).read_text()) if folder is not None else {}
    except (FileNotFoundError, ValueError):
        return None
    part: Part | None = kept.get("part")
    return part if kept.get("identity") == _identity(vector, tokens) else None


def _keep(folder: Path | None, vector: Vector, tokens: int, part: Part) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        made = {"identity": _identity(vector, tokens), "part": part}
        _part_path(folder, vector).write_text(json.dumps(made))


def main() -> None:
    """Print the comparison as JSON, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=3, help="how many, spread over the file")
    parser.add_argument("--tokens", type=int, default=32, help="positions a prompt")
    parser.add_argument(
        "--parts", type=Path, help="folder to keep each prompt's figures in, and to resume from"
    )
    parser.add_argument("--output", type=Path, help="file for the record")
    asked = parser.parse_args()
    vectors = spread_evenly(json.loads(VECTORS.read_text())["prompts"], asked.prompts)
    figures = compare(vectors, asked.tokens, asked.parts)
    made = record("fidelity", preset(PRESET), {"model": MODEL, "margin_above": MARGIN, **figures})
    text = json.dumps(made, indent=2) + "\n"
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
