"""What only the client may know is nowhere at the proxy: not in a byte sent, a log line, or a file.

A conversation is recorded at the socket (over plain POST: a WebSocket client masks its bytes, which would hide a leak
from this test) and at the transport (for the WebSocket). Then everything the client knows is looked for in every form
it could leak in. That the search finds what is there is tested too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from relay import Relay

from fhe_llm import Answer, EncryptedLLM, KeyRing
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.cli.tap import Tap
from fhe_llm.client.ask import Ask
from fhe_llm.client.session import Session
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.client.transport.operations import HttpCall, Operation, Round
from fhe_llm.wire.limbs import limb_format, pack

QUESTION = "Is Ottilie Quastenflosser, 1961-04-17, ill?"
SYSTEM = "Zirbeldruese: confidential"
SECRET_WORDS = ("Ottilie", "Quastenflosser", "1961-04-17", "Zirbeldruese", "confidential")
WINDOW = 4


@dataclass
class Knowledge:
    """Everything a conversation made the client know."""

    ring: KeyRing
    prompt_ids: tuple[int, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    inputs: list[NDArray[np.float32]] = field(default_factory=list)
    outputs: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass
class Recording:
    """Everything the proxy got and kept."""

    up: bytes
    down: bytes
    log: bytes
    files: dict[str, bytes]

    def places(self) -> dict[str, bytes]:
        return {"sent": self.up, "received": self.down, "log": self.log, **self.files}


@pytest.fixture(scope="module", params=["http", "auto"])
def conversation(
    request: pytest.FixtureRequest, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Knowledge, Recording]]:
    data_dir, cache = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("cache")
    ring, operations = KeyRing.generate(), list[Operation]()
    known = Knowledge(ring)
    with (
        pytest.MonkeyPatch.context() as patch,
        ProxyProcess(str(tiny_model_path), data_dir=data_dir) as proxy,
        Relay(proxy.base_url) as relay,
    ):
        patch.setattr(Session, "linear", _overheard(Session.linear, known))
        inner = HttpTransport(Endpoint(relay.url, websocket=request.param == "auto"))
        with EncryptedLLM("tiny", transport=Tap(inner, operations.append), keys=ring, cache_dir=cache) as llm:
            chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
            known.answers.append(llm.chat(chat, max_tokens=8))
            known.answers.append(llm.generate(QUESTION, max_tokens=5, temperature=1.0, seed=1))
            assert llm._connected is not None
            known.prompt_ids = llm._connected.prompt_ids(Ask.of(chat, {}))
        inner.close()
        masked = request.param == "auto"
        up = b"".join(map(_bytes_of, operations)) if masked else bytes(relay.up)
        files = {str(path): path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
        recording = Recording(up, bytes(relay.down), proxy.log_path.read_bytes(), files)
    yield known, recording
    ring.wipe()


def _overheard(linear: Any, known: Knowledge) -> Any:
    def listen(self: Session, step: Any) -> Any:
        known.inputs.append(step.x.copy())
        y = yield from linear(self, step)
        known.outputs.append(y.copy())
        return y

    return listen


def _bytes_of(operation: Operation) -> bytes:
    match operation:
        case Round(frame):
            return frame
        case HttpCall(method, path, headers, body):
            return b"\n".join([method.encode(), path.encode(), repr(dict(headers)).encode(), bytes(body)])
    return b""


def assert_absent(needles: dict[str, bytes], recording: Recording) -> None:
    assert needles
    for what, needle in needles.items():
        assert len(needle) >= 6, what
        assert len(set(needle)) > 2, what
        for where, haystack in recording.places().items():
            assert needle not in haystack, f"{what} is in {where}"


def texts(known: Knowledge) -> dict[str, bytes]:
    """The prompts, words of them, and the answers."""
    plain = {
        QUESTION,
        SYSTEM,
        *SECRET_WORDS,
        *(a.text[:12] for a in known.answers),
        *(a.text[-12:] for a in known.answers),
    }
    return {
        f"{text!r} in {encoding}": text.encode(encoding)
        for text in plain
        for encoding in ("utf-8", "utf-16-le", "utf-32-le")
        if len(text.encode(encoding)) >= 6 and len(set(text.encode(encoding))) > 2
    }


def token_sequences(known: Knowledge) -> dict[str, bytes]:
    """Windows of token ids as integers of every width and order, and as JSON."""
    sequences = [known.prompt_ids, *(answer.token_ids for answer in known.answers)]
    needles = {}
    for ids in sequences:
        for start in range(0, len(ids) - WINDOW + 1, 2 * WINDOW):
            window = ids[start : start + WINDOW]
            if len(set(window)) < WINDOW:
                continue
            for form in ("<i2", "<i4", "<i8", ">i4", ">i8", "<f4"):
                needles[f"tokens {window} as {form}"] = np.array(window).astype(form).tobytes()
            needles[f"tokens {window} as JSON"] = ", ".join(map(str, window)).encode()
    return needles


def activations(known: Knowledge) -> dict[str, bytes]:
    """Windows of layer inputs and outputs: as they are and divided by their maximum, in both precisions."""
    needles = {}
    for name, vectors in (("input", known.inputs), ("output", known.outputs)):
        for n, x in enumerate(vectors[:: max(1, len(vectors) // 12)]):
            for row, start in ((0, 0), (len(x) - 1, x.shape[1] // 2)):
                for form, values in (
                    ("plain", x[row]),
                    ("scaled", x[row] / np.float32(np.abs(x[row]).max())),
                ):
                    window = values[start : start + WINDOW]
                    for kind in ("<f4", "<f8", "<f2"):
                        needles[f"{name} {n}.{row} {form} {kind}"] = window.astype(kind).tobytes()
    return needles


def secret_keys(known: Knowledge) -> dict[str, bytes]:
    """Windows of the secret key: as SEAL saves it, and its residues in words, limbs and packed bits."""
    engine, preset = known.ring.engine(), known.ring.preset
    saved = bytes(engine.save_secret())
    needles = {f"saved key at {at}": saved[at : at + 24] for at in range(128, len(saved) - 24, 4096)}
    data = engine._secret.data()
    words = np.array([data[i] for i in range(len(preset.primes) * preset.ring_degree)], np.uint64)
    limbs = words.reshape(len(preset.primes), preset.ring_degree)
    packed = np.asarray(pack(limbs[:-1].astype(np.uint32), limb_format(preset.data_primes))).tobytes()
    for limb in range(len(limbs)):
        for at in (0, 1024, 4000):
            for form in ("<u4", "<u8"):
                needles[f"key limb {limb} at {at} as {form}"] = (
                    limbs[limb, at : at + WINDOW].astype(form).tobytes()
                )
    needles |= {f"packed key at {at}": packed[at : at + 24] for at in range(0, len(packed) - 24, 3000)}
    return needles


def test_no_text_reaches_the_proxy(conversation: tuple[Knowledge, Recording]) -> None:
    known, recording = conversation
    assert_absent(texts(known), recording)


def test_no_token_ids_reach_the_proxy(conversation: tuple[Knowledge, Recording]) -> None:
    known, recording = conversation
    assert_absent(token_sequences(known), recording)


def test_no_activation_reaches_the_proxy(conversation: tuple[Knowledge, Recording]) -> None:
    known, recording = conversation
    assert len(known.inputs) == sum(answer.receipt.rounds for answer in known.answers)
    assert_absent(activations(known), recording)


def test_no_secret_key_reaches_the_proxy(conversation: tuple[Knowledge, Recording]) -> None:
    known, recording = conversation
    assert_absent(secret_keys(known), recording)


def test_what_the_proxy_may_know_is_found(conversation: tuple[Knowledge, Recording]) -> None:
    """The recording is of this conversation: names, key id and evaluation keys are where they should be."""
    known, recording = conversation
    export = known.ring.evaluation_keys((3,))
    assert known.ring.key_id == export.key_id
    assert b"layers.1.down" in recording.up
    assert export.key_id in recording.up
    assert export.key_id.hex().encode() in recording.log
    assert any(export.frame in content for content in recording.files.values())
    assert export.frame[100:200] in recording.up
    assert len(recording.up) > sum(answer.receipt.bytes_up for answer in known.answers)


@pytest.mark.parametrize("search", [texts, token_sequences, activations, secret_keys])
def test_the_search_finds_a_leak(conversation: tuple[Knowledge, Recording], search: Any) -> None:
    known, recording = conversation
    needle = list(search(known).values())[-1]
    leaks = [
        replace(recording, **{place: getattr(recording, place) + needle}) for place in ("up", "down", "log")
    ]
    for leaky in [*leaks, replace(recording, files={"leak": b"..." + needle + b"..."})]:
        with pytest.raises(AssertionError, match="is in"):
            assert_absent({"leak": needle}, leaky)
