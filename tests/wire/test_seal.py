"""SEAL's container against SEAL itself: what it saves we parse, what we build it loads and decrypts."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from seal_objects import SealParty, stored

from fhe_llm.errors import FrameError
from fhe_llm.params import PRESETS, Preset
from fhe_llm.wire.seal import build_ciphertext, parms_id, parse_ciphertext, parse_galois_keys, parse_plaintext

DEFAULT = PRESETS["default"]
VALUES = [complex(i % 7 - 3, (i % 5) / 4) for i in range(2048)]
SAMPLED = [0, 1, 4095, 4096, 8191, 8192, 16383]


def as_bytes(words: list[int]) -> bytes:
    return struct.pack("<4Q", *words)


def test_parms_id_is_seals(party: SealParty) -> None:
    context = party.context
    assert parms_id(DEFAULT.primes, 4096) == as_bytes(context.key_parms_id())
    assert parms_id(DEFAULT.data_primes, 4096) == as_bytes(context.first_parms_id())
    assert parms_id(DEFAULT.primes[:1], 4096) == as_bytes(context.last_parms_id())


def test_parsed_ciphertext_holds_seals_words(party: SealParty) -> None:
    ciphertext = party.encrypt(VALUES)
    parsed = parse_ciphertext(party.save(ciphertext), DEFAULT)
    assert parsed.words.shape == (2, 2, 4096)
    assert parsed.scale == ciphertext.scale
    flat = parsed.words.reshape(-1)
    assert [int(flat[i]) for i in SAMPLED] == [ciphertext.dyn_array().at(i) for i in SAMPLED]


def test_parsed_plaintext_holds_seals_words(party: SealParty) -> None:
    plaintext = party.encode(VALUES)
    parsed = parse_plaintext(party.save(plaintext), DEFAULT)
    assert parsed.words.shape == (2, 4096)
    assert parsed.scale == plaintext.scale
    assert [int(w) for w in parsed.words.reshape(-1)] == [plaintext.data(i) for i in range(8192)]


def test_seal_loads_and_decrypts_what_we_build(party: SealParty) -> None:
    parsed = parse_ciphertext(party.save(party.encrypt(VALUES)), DEFAULT)
    loaded = party.load_ciphertext(build_ciphertext(parsed.words, DEFAULT, scale=parsed.scale))
    assert np.allclose(party.decrypt(loaded), VALUES, atol=1e-4)


def test_seal_loads_and_decrypts_a_reply_of_one_limb(party: SealParty) -> None:
    ciphertext = party.encrypt(VALUES, 2.0**22)
    party.evaluator.mod_switch_to_next_inplace(ciphertext)
    parsed = parse_ciphertext(party.save(ciphertext), DEFAULT)
    assert parsed.words.shape == (2, 1, 4096)
    loaded = party.load_ciphertext(build_ciphertext(parsed.words, DEFAULT, scale=2.0**20))
    assert np.allclose(party.decrypt(loaded), np.array(VALUES) * 4, atol=1e-2)


def test_words_that_we_changed_decrypt_to_the_changed_value(party: SealParty) -> None:
    parsed = parse_ciphertext(party.save(party.encrypt(VALUES)), DEFAULT)
    addend = parse_plaintext(party.save(party.encode([1.5 - 1j] * 2048)), DEFAULT)
    words = parsed.words.astype(np.uint64)
    words[0] += addend.words
    words %= np.array(DEFAULT.data_primes, np.uint64)[:, None]
    built = build_ciphertext(words.astype(np.uint32), DEFAULT, scale=parsed.scale)
    assert np.allclose(party.decrypt(party.load_ciphertext(built)), np.array(VALUES) + 1.5 - 1j, atol=1e-4)


def test_build_equals_what_seal_saves(saved_ciphertext: dict[str, bytes]) -> None:
    parsed = parse_ciphertext(saved_ciphertext["zstd"], DEFAULT)
    assert build_ciphertext(parsed.words, DEFAULT, scale=parsed.scale) == saved_ciphertext["stored"]


@pytest.mark.parametrize("name", ["default", "wide"])
def test_parsed_galois_keys_hold_seals_words(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    party = SealParty(preset, tmp_path / "keys")
    wanted = sorted(pow(3, step, 2 * preset.ring_degree) for step in (1, 2, 5, 100, preset.slots - 1))
    keys = party.galois_keys(wanted)
    parsed = parse_galois_keys(party.save(keys), preset)
    digits, limbs = len(preset.data_primes), len(preset.primes)
    assert list(parsed.elements) == wanted
    assert parsed.words.shape == (len(wanted), digits, 2, limbs, preset.ring_degree)
    for place, element in enumerate(wanted):
        for digit, key in enumerate(keys.key(element)):
            flat, found = parsed.words[place, digit].reshape(-1), key.data().dyn_array()
            assert found.size() == flat.size
            for i in (0, 1, preset.ring_degree, flat.size // 2, flat.size - 1):
                assert int(flat[i]) == found.at(i)


def edited(container: bytes, at: int, value: bytes) -> bytes:
    """The container with bytes of its body replaced."""
    body = bytearray(container[16:])
    body[at : at + len(value)] = value
    return container[:16] + bytes(body)


BODY_EDITS = {
    "parameters": (0, b"\0" * 32, "bad_preset"),
    "not NTT": (32, b"\0", "bad_field"),
    "three parts": (33, struct.pack("<Q", 3), "bad_field"),
    "huge size": (33, struct.pack("<Q", 1 << 63), "bad_field"),
    "ring degree": (41, struct.pack("<Q", 8192), "bad_field"),
    "limbs": (49, struct.pack("<Q", 1), "bad_field"),
    "scale not a number": (57, struct.pack("<d", float("nan")), "bad_field"),
    "scale zero": (57, struct.pack("<d", 0.0), "bad_field"),
    "correction factor": (65, struct.pack("<Q", 2), "bad_field"),
    "inner magic": (73, b"\0\0", "bad_magic"),
    "inner version": (76, b"\x03", "bad_version"),
    "inner compression": (78, b"\x02", "bad_field"),
    "inner length": (81, struct.pack("<Q", 24), "oversized"),
    "inner count": (89, struct.pack("<Q", 8192), "bad_field"),
    "residue": (97, struct.pack("<Q", DEFAULT.primes[0]), "residue_out_of_range"),
    "residue above 32 bits": (97, struct.pack("<Q", 1 << 32), "residue_out_of_range"),
}


@pytest.mark.parametrize("name", BODY_EDITS)
def test_each_wrong_field_has_its_reason(name: str, saved_ciphertext: dict[str, bytes]) -> None:
    at, value, reason = BODY_EDITS[name]
    with pytest.raises(FrameError, match=r"^cannot ") as refused:
        parse_ciphertext(edited(saved_ciphertext["stored"], at, value), DEFAULT)
    assert refused.value.reason == reason


def compressed(container: bytes, body: bytes, *, sized: bool = True) -> bytes:
    """The container around a newly compressed body."""
    packed = zstandard.ZstdCompressor(write_content_size=sized).compress(body)
    return container[:8] + (16 + len(packed)).to_bytes(8, "little") + packed


def test_a_decompression_bomb_is_refused_by_its_claimed_size(saved_ciphertext: dict[str, bytes]) -> None:
    with pytest.raises(FrameError, match="decompresses to") as refused:
        parse_ciphertext(compressed(saved_ciphertext["zstd"], bytes(1 << 24)), DEFAULT)
    assert refused.value.reason == "oversized"


def test_compressed_bytes_must_tell_their_size_and_end_there(saved_ciphertext: dict[str, bytes]) -> None:
    good = saved_ciphertext["zstd"]
    longer = good[:8] + (len(good) + 1).to_bytes(8, "little") + good[16:] + b"\0"
    for data in (compressed(good, bytes(1 << 24), sized=False), longer):
        with pytest.raises(FrameError) as refused:
            parse_ciphertext(data, DEFAULT)
        assert refused.value.reason == "bad_field"


def test_keys_of_the_wrong_shape_are_refused(party: SealParty, saved_galois_keys: dict[str, bytes]) -> None:
    container = saved_galois_keys["stored"]
    body = container[16:]
    no_keys = body[:40] + bytes(8 * 4096)
    cases = {
        "truncated": (stored(container, body[:-8]), "truncated"),
        "longer": (stored(container, body + bytes(8)), "oversized"),
        "three digits": (edited(container, 48, struct.pack("<Q", 3)), "bad_field"),
        "too many slots": (edited(container, 32, struct.pack("<Q", 4097)), "bad_field"),
        "none": (stored(container, no_keys), "bad_field"),
        "other parameters": (edited(container, 0, bytes(32)), "bad_preset"),
        "inner length": (edited(container, 56 + 8, struct.pack("<Q", 16)), "oversized"),
    }
    for data, reason in cases.values():
        with pytest.raises(FrameError) as refused:
            parse_galois_keys(data, DEFAULT)
        assert refused.value.reason == reason
    with pytest.raises(FrameError, match="more than") as refused:
        parse_galois_keys(party.save(party.galois_keys([3, 9])), DEFAULT, max_elements=1)
    assert refused.value.reason == "oversized"


@pytest.mark.parametrize(
    ("shape", "preset"),
    [((2, 2, 8192), DEFAULT), ((2, 3, 4096), DEFAULT), ((1, 2, 4096), DEFAULT), ((2, 4096), DEFAULT)],
)
def test_build_refuses_other_shapes(shape: tuple[int, ...], preset: Preset) -> None:
    with pytest.raises(FrameError, match="cannot build SEAL object"):
        build_ciphertext(np.zeros(shape, np.uint32), preset, scale=1.0)
