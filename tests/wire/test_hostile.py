"""Truncated, oversized, bit-flipped and random bytes: 20,000 for each decoder, and no outcome but a refusal."""

from __future__ import annotations

import numpy as np
import pytest
from mutations import CASES, attack
from wire_samples import GOLDEN

from fhe_llm.params import PRESETS
from fhe_llm.wire.frame import Kind, decode, encode
from fhe_llm.wire.seal import (
    SealCiphertext,
    SealGaloisKeys,
    SealPlaintext,
    parse_ciphertext,
    parse_galois_keys,
    parse_plaintext,
)

DEFAULT = PRESETS["default"]
DECODERS = {
    "request": (Kind.EVALUATE_REQUEST, ("request_full", "request_seeded", "request_trimmed")),
    "reply": (Kind.EVALUATE_REPLY, ("reply",)),
    "keys": (Kind.EVALUATION_KEYS, ("keys",)),
    "error": (Kind.ERROR, ("error",)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_frame_decoders_refuse_or_read_exactly_what_is_there(name: str) -> None:
    kind, stems = DECODERS[name]
    bases = [(GOLDEN / f"{stem}.bin").read_bytes() for stem in stems]

    def same_bytes(frame: object, data: bytes) -> None:
        assert encode(frame) == data  # type: ignore[arg-type]

    outcomes = attack(lambda data: decode(data, expect=(kind,)), bases, same_bytes)
    assert outcomes.total() >= CASES
    assert {
        "truncated",
        "oversized",
        "bad_magic",
        "bad_version",
        "bad_kind",
        "bad_preset",
        "bad_field",
    } <= set(outcomes)
    assert "residue_out_of_range" in outcomes or name == "error"


def test_ciphertext_parser(saved_ciphertext: dict[str, bytes]) -> None:
    def in_range(parsed: object, data: bytes) -> None:
        assert isinstance(parsed, SealCiphertext)
        assert parsed.words.dtype == np.uint32
        assert parsed.words.shape in {(2, 2, 4096), (2, 1, 4096)}

    outcomes = attack(lambda data: parse_ciphertext(data, DEFAULT), list(saved_ciphertext.values()), in_range)
    assert outcomes.total() >= CASES
    assert {"truncated", "oversized", "bad_magic", "bad_version", "bad_preset", "bad_field"} <= set(outcomes)


def test_plaintext_parser(saved_plaintext: dict[str, bytes]) -> None:
    def in_range(parsed: object, data: bytes) -> None:
        assert isinstance(parsed, SealPlaintext)
        assert parsed.words.shape in {(2, 4096), (1, 4096)}

    outcomes = attack(lambda data: parse_plaintext(data, DEFAULT), list(saved_plaintext.values()), in_range)
    assert outcomes.total() >= CASES
    assert {"truncated", "oversized", "bad_magic", "bad_version", "bad_preset", "bad_field"} <= set(outcomes)


def test_galois_key_parser(saved_galois_keys: dict[str, bytes]) -> None:
    def in_range(parsed: object, data: bytes) -> None:
        assert isinstance(parsed, SealGaloisKeys)
        assert parsed.words.shape == (len(parsed.elements), 2, 2, 3, 4096)

    outcomes = attack(
        lambda data: parse_galois_keys(data, DEFAULT), list(saved_galois_keys.values()), in_range
    )
    assert outcomes.total() >= CASES
    assert {"truncated", "oversized", "bad_magic", "bad_version", "bad_preset", "bad_field"} <= set(outcomes)
