"""The dropped bits of requests: the bound they are chosen by, and what they cost when measured."""

from __future__ import annotations

import numpy as np
import pytest

from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.trimming import LARGEST_LOSS, input_drop, loss, rotation_sigma
from fhe_llm.evaluator import rns
from fhe_llm.params import PRESETS
from fhe_llm.wire.composed import composed_format, pack_composed, unpack_composed
from fhe_llm.wire.seed import expand


def test_the_drop_is_the_largest_within_the_bound() -> None:
    assert {name: input_drop(preset) for name, preset in PRESETS.items()} == {"default": 7, "wide": 0}
    default = PRESETS["default"]
    assert loss(default, 0) == 0
    assert loss(default, 7) <= LARGEST_LOSS < loss(default, 8)
    assert rotation_sigma(default) == pytest.approx(44.6, abs=0.1)


def test_dropped_bits_add_the_rounding_error_and_no_more() -> None:
    """Decrypted with and without them, under the same randomness: at most 2^(t0 - 1) a coefficient."""
    ring = KeyRing.generate()
    preset, cipher = ring.preset, Cipher(ring)
    slots = np.random.default_rng().standard_normal((1, preset.slots)) + 0j
    _, c0 = cipher.encrypt_seeded(slots)
    form = composed_format(preset, cipher.drop0)
    trimmed = unpack_composed(pack_composed(c0, form), c0.shape, form)
    primes = np.array(preset.data_primes, dtype=np.int64)[:, None]
    moved = (trimmed.astype(np.int64) - c0) % primes
    moved = np.where(2 * moved > primes, moved - primes, moved)
    assert np.array_equal(moved[:, 0], moved[:, 1])  # one small integer in both residues
    assert np.abs(moved).max() <= 1 << (cipher.drop0 - 1)
    assert np.sqrt(np.mean(np.square(moved))) == pytest.approx(2**cipher.drop0 / np.sqrt(12), rel=0.1)


def test_a_trimmed_ciphertext_is_one_to_seal() -> None:
    ring = KeyRing.generate()
    preset, cipher = ring.preset, Cipher(ring)
    slots = np.random.default_rng().standard_normal((1, preset.slots)) + 0j
    seeds, c0 = cipher.encrypt_seeded(slots)
    form = composed_format(preset, cipher.drop0)
    trimmed = unpack_composed(pack_composed(c0, form), c0.shape, form)
    c1 = rns.ntt_inverse(expand(seeds[0].tobytes(), preset)[None], preset.ring_degree, preset.data_primes)
    back = cipher.decrypt(np.stack([trimmed, c1], axis=1), preset.log_input_scale)
    sigma = np.hypot(3.2, 2**cipher.drop0 / np.sqrt(12)) * np.sqrt(preset.ring_degree)
    assert np.abs(back - slots).max() < 6 * sigma * 2.0**-preset.log_input_scale
