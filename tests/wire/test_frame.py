"""Frames: golden bytes, round trips, and the refusals of encode and of the receiver's limits."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import GOLDEN, LAYER, golden_frames, keys, reply, request

from fhe_llm.errors import FrameError
from fhe_llm.params import PRESETS, Preset
from fhe_llm.wire.composed import composable
from fhe_llm.wire.frame import (
    REASONS,
    ErrorFrame,
    EvaluateReply,
    EvaluateRequest,
    Frame,
    KeyFrame,
    Kind,
    Limits,
    PhaseMicroseconds,
    decode,
    encode,
    key_id,
)

DEFAULT = PRESETS["default"]
ANY_PRESET = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)


@pytest.mark.parametrize("stem", golden_frames())
def test_golden_bytes(stem: str) -> None:
    golden = (GOLDEN / f"{stem}.bin").read_bytes()
    assert encode(golden_frames()[stem]) == golden, "the format changed: see make_golden.py"
    assert encode(decode(golden)) == golden
    assert encode(decode(memoryview(bytearray(golden)))) == golden


@settings(max_examples=60, deadline=None)
@given(
    preset=st.sampled_from(list(PRESETS.values())),
    request_id=st.integers(0, 2**64 - 1),
    ids=st.lists(st.binary(min_size=32, max_size=32), min_size=3, max_size=3),
    layer=st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True),
    jobs=st.integers(1, 3),
    n_in=st.integers(1, 3),
    seeded=st.booleans(),
    drop=st.integers(0, 20),
)
def test_requests_come_back(
    preset: Preset,
    request_id: int,
    ids: list[bytes],
    layer: str,
    jobs: int,
    n_in: int,
    seeded: bool,
    drop: int,
) -> None:
    drop0 = drop if seeded and composable(preset) else 0
    arrays = request(preset, jobs=jobs, n_in=n_in, seeded=seeded)
    sent = EvaluateRequest(preset, request_id, *ids, layer, arrays.words, arrays.seeds, drop0)
    data = encode(sent)
    got = decode(data, expect=(Kind.EVALUATE_REQUEST,))
    assert isinstance(got, EvaluateRequest)
    assert (got.preset, got.request_id, got.layer, got.jobs) == (preset, request_id, layer, jobs)
    assert [got.key_id, got.model_digest, got.plan_id] == ids
    assert got.drop0 == drop0
    assert got.words.shape == (jobs, n_in, 1 if seeded else 2, len(preset.data_primes), preset.ring_degree)
    assert drop0 or np.array_equal(got.words, sent.words)
    if got.seeds is not None and sent.seeds is not None:
        assert np.array_equal(got.seeds, sent.seeds)
    assert encode(got) == data


@settings(max_examples=60, deadline=None)
@given(
    preset=st.sampled_from(list(PRESETS.values())),
    jobs=st.integers(1, 3),
    n_out=st.integers(1, 3),
    limbs=st.integers(1, 2),
    drops=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    phases=st.tuples(*[st.integers(0, 2**32 - 1)] * 5),
)
def test_replies_come_back_to_within_the_dropped_bits(
    preset: Preset, jobs: int, n_out: int, limbs: int, drops: tuple[int, int], phases: Any
) -> None:
    drop0, drop1 = drops if limbs == 1 else (0, 0)
    sent = reply(preset, jobs=jobs, n_out=n_out, limbs=limbs, drop0=drop0, drop1=drop1)
    sent = replace(sent, timings=PhaseMicroseconds(*phases))
    data = encode(sent)
    got = decode(data)
    assert isinstance(got, EvaluateReply)
    assert (got.timings, got.drop0, got.drop1, got.jobs) == (sent.timings, drop0, drop1, jobs)
    primes = np.array(preset.data_primes[:limbs], np.int64)[:, None]
    error = (got.words.astype(np.int64) - sent.words) % primes
    error = np.minimum(error, primes - error)
    assert int(error[:, :, 0].max()) <= (1 << drop0) // 2
    assert int(error[:, :, 1].max()) <= (1 << drop1) // 2
    assert encode(got) == data


@ANY_PRESET
def test_keys_come_back_and_are_named_by_their_hash(preset: Preset) -> None:
    sent = keys(preset, elements=(3, 9, 27))
    data = encode(sent)
    got = decode(data)
    assert isinstance(got, KeyFrame)
    assert got.elements == (3, 9, 27)
    assert np.array_equal(got.words, sent.words)
    assert key_id(data) == hashlib.sha256(data).digest()


@settings(max_examples=100)
@given(message=st.text(max_size=200), retry=st.integers(0, 2**32 - 1))
def test_errors_come_back(message: str, retry: int) -> None:
    sent = ErrorFrame(2**64 - 1, "busy", message, retry)
    assert decode(encode(sent)) == sent


def test_long_messages_are_cut_between_characters() -> None:
    got = decode(encode(ErrorFrame(1, "internal", "a" + "ü" * 4096)))
    assert got == ErrorFrame(1, "internal", "a" + "ü" * 2047)


@pytest.mark.parametrize(
    ("frame", "size"),
    [("request_full", 61578), ("request_seeded", 30890), ("request_trimmed", 28330), ("keys", 186390)],
)
def test_sizes_are_what_the_specification_says(frame: str, size: int) -> None:
    assert (GOLDEN / f"{frame}.bin").stat().st_size == size


def test_only_expected_kinds_pass() -> None:
    data = encode(ErrorFrame(1, "busy", ""))
    with pytest.raises(FrameError) as refused:
        decode(data, expect=(Kind.EVALUATE_REQUEST, Kind.EVALUATION_KEYS))
    assert refused.value.reason == "bad_kind"


@pytest.mark.parametrize("limits", [Limits(max_frame_bytes=61_000), Limits(max_jobs=1)])
def test_limits_of_the_receiver_hold(limits: Limits) -> None:
    data = encode(request(DEFAULT, jobs=2))
    assert isinstance(decode(data), EvaluateRequest)
    with pytest.raises(FrameError) as refused:
        decode(data, limits=limits)
    assert refused.value.reason == "oversized"


def test_claimed_sizes_are_not_believed() -> None:
    golden = bytearray((GOLDEN / "request_full.bin").read_bytes()[:200])
    golden[8:16] = (200).to_bytes(8, "little")
    golden[134:137] = b"\x00\x01\xff"  # 256 jobs of 255 ciphertexts: 4 GB
    tracemalloc.start()
    with pytest.raises(FrameError) as refused:
        decode(bytes(golden))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.reason == "truncated"
    assert peak < 100_000


def bad_requests() -> dict[str, tuple[Frame, str]]:
    """Requests that encode must refuse, and why."""
    full, seeded = request(DEFAULT), request(DEFAULT, jobs=2, seeded=True)
    assert seeded.seeds is not None
    clear = full.words.copy()
    clear[:, :, 1] = 0
    high = full.words.copy()
    high[0, 0, 0, 0, 0] = DEFAULT.data_primes[0]
    return {
        "request id": (replace(full, request_id=1 << 64), "bad_field"),
        "key id": (replace(full, key_id=b"short"), "bad_field"),
        "layer": (replace(full, layer="Layers/0"), "bad_field"),
        "long layer": (replace(full, layer="a" * 65), "bad_field"),
        "words": (replace(full, words=full.words[0]), "bad_field"),
        "other preset": (replace(full, preset=PRESETS["wide"]), "bad_field"),
        "64-bit words": (replace(full, words=full.words.astype(np.uint64)), "bad_field"),
        "no jobs": (replace(full, words=full.words[:0]), "bad_field"),
        "many jobs": (
            replace(full, words=np.broadcast_to(full.words, (257, *full.words.shape[1:]))),
            "oversized",
        ),
        "high residue": (replace(full, words=high), "residue_out_of_range"),
        "transparent": (replace(full, words=clear), "transparent"),
        "drop of a full frame": (replace(full, drop0=1), "bad_field"),
        "drop of three primes": (replace(request(PRESETS["wide"], seeded=True), drop0=1), "bad_field"),
        "large drop": (replace(seeded, drop0=21), "bad_field"),
        "high residue of a trimmed frame": (
            replace(seeded, words=seeded.words | np.uint32(1 << 30), drop0=5),
            "residue_out_of_range",
        ),
        "seed shape": (replace(seeded, seeds=seeded.seeds[:1]), "bad_field"),
        "seeds repeat": (replace(seeded, seeds=np.zeros_like(seeded.seeds)), "bad_field"),
    }


def bad_answers() -> dict[str, tuple[Frame, str]]:
    """Frames of the other kinds that encode must refuse, and why."""
    answer, galois = reply(DEFAULT), keys(DEFAULT)
    high = answer.words.copy()
    high[0, 0, 0, 0, 0] = 0xFFFFFFFF
    return {
        "reply drop": (replace(answer, drop0=21), "bad_field"),
        "reply drop of two limbs": (replace(reply(DEFAULT, limbs=2), drop1=1), "bad_field"),
        "reply limbs": (replace(answer, words=np.repeat(answer.words, 3, axis=3)), "bad_field"),
        "reply residue": (replace(answer, words=high, drop0=3), "residue_out_of_range"),
        "reply time": (replace(answer, timings=PhaseMicroseconds(total=1 << 32)), "bad_field"),
        "key elements": (replace(galois, elements=(4,)), "bad_field"),
        "key order": (replace(keys(DEFAULT, (3, 9)), elements=(9, 3)), "bad_field"),
        "key words": (replace(galois, words=galois.words[:, :1]), "bad_field"),
        "key part": (
            replace(galois, words=galois.words * np.array([1, 0], np.uint32)[:, None, None]),
            "transparent",
        ),
        "error code": (ErrorFrame(0, "Not a code", ""), "bad_field"),
    }


def bad_frames() -> dict[str, tuple[Frame, str]]:
    return bad_requests() | bad_answers()


@pytest.mark.parametrize("name", bad_frames())
def test_encode_refuses_what_the_format_cannot_carry(name: str) -> None:
    frame, reason = bad_frames()[name]
    with pytest.raises(FrameError, match=r"cannot encode .*: .*\. .*\.") as refused:
        encode(frame)
    assert refused.value.reason == reason


def test_decoded_arrays_own_their_memory() -> None:
    data = bytearray(encode(request(DEFAULT, seeded=True)))
    got = decode(data)
    assert isinstance(got, EvaluateRequest)
    assert got.seeds is not None
    before = got.words.copy(), got.seeds.copy()
    data[:] = bytes(len(data))
    assert np.array_equal(got.words, before[0])
    assert np.array_equal(got.seeds, before[1])
    assert got.layer == LAYER


def test_the_room_imports_neither_tenseal_nor_its_neighbours() -> None:
    code = (
        "import sys, fhe_llm.wire.frame, fhe_llm.wire.seal;"
        "bad = [m for m in sys.modules if m == 'tenseal' or m.startswith(('fhe_llm.client', 'fhe_llm.evaluator'))];"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_specification_names_every_preset_and_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text("utf-8")
    for preset in PRESETS.values():
        assert all(str(prime) in page for prime in preset.primes)
        sizes = (
            request(preset),
            request(preset, seeded=True),
            request(preset, seeded=True, drop0=5 if composable(preset) else 0),
            reply(preset, limbs=preset.reply_limbs),
            keys(preset),
        )
        for frame, name in zip(sizes, (LAYER, LAYER, LAYER, "", ""), strict=True):
            assert f"{len(encode(frame)) - len(name):,}" in page
    assert all(f"| `{reason}` |" in page for reason in REASONS)
