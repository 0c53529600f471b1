"""Transforms, products, sums, rotation, rescaling and encoding equal SEAL's bit for bit, on fresh random inputs."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal.sealapi as seal
from numpy.typing import NDArray
from seal_oracle import SealOracle

from fhe_llm.evaluator import keyswitch, linear, rns
from fhe_llm.evaluator.encoding import coefficients_to_words, slots_to_coefficients
from fhe_llm.params import PRESETS, Preset

STEPS = (1, 7, 16, 640, 2047)


@pytest.fixture(scope="module", params=sorted(PRESETS))
def oracle(request: pytest.FixtureRequest) -> SealOracle:
    return SealOracle(PRESETS[request.param], STEPS)


def random_slots(preset: Preset) -> NDArray[np.complex128]:
    rng = np.random.default_rng()
    return rng.normal(size=preset.slots) + 1j * rng.normal(size=preset.slots)


def fresh(oracle: SealOracle) -> tuple[object, NDArray[np.uint32]]:
    ciphertext = oracle.encrypt(random_slots(oracle.preset), 2.0**oracle.preset.log_input_scale)
    return ciphertext, oracle.words(ciphertext)


def rotate(
    ciphertext: NDArray[np.uint32], key: NDArray[np.uint32], k: int, tables: keyswitch.EngineTables
) -> NDArray[np.uint32]:
    """A giant step's rotation of one ciphertext [2, L, N] by k slots, divided at once."""
    limbs, n = ciphertext.shape[1:]
    w = keyswitch.workspace(n, limbs)
    switched = np.zeros((2, limbs + 1, n), dtype=np.uint32)
    direct = np.zeros((limbs, n), dtype=np.uint32)
    out = np.empty((2, limbs, n), dtype=np.uint32)
    keyswitch.rotate_lazily(ciphertext, key, k, switched, direct, w, tables)
    for c in range(2):
        keyswitch.mod_down(switched[c], out[c], w, tables)
    for limb in range(limbs):
        keyswitch.shift_add(direct[limb], out[0, limb], 0, tables.q[limb])
    return out


def test_primes_are_those_seal_chooses(oracle: SealOracle) -> None:
    preset = oracle.preset
    chosen = seal.CoeffModulus.Create(preset.ring_degree, list(preset.prime_bits))
    assert preset.primes == tuple(m.value() for m in chosen)


def test_inverse_and_forward_transform(oracle: SealOracle) -> None:
    preset = oracle.preset
    ciphertext, words = fresh(oracle)
    oracle.evaluator.transform_from_ntt_inplace(ciphertext)
    coefficients = oracle.words(ciphertext)
    np.testing.assert_array_equal(
        rns.ntt_inverse(words, preset.ring_degree, preset.data_primes), coefficients
    )
    np.testing.assert_array_equal(
        rns.ntt_forward(coefficients, preset.ring_degree, preset.data_primes), words
    )


def test_encoding(oracle: SealOracle) -> None:
    preset, scale = oracle.preset, 2.0**oracle.preset.log_input_scale
    slots = random_slots(preset)
    coefficients = slots_to_coefficients(slots, scale)
    ours = rns.ntt_forward(
        coefficients_to_words(coefficients, preset.data_primes), preset.ring_degree, preset.data_primes
    )
    theirs = oracle.plaintext_words(oracle.encode(slots, scale))
    # both round the same real number; at most one unit apart where floating point lands on different sides of one half
    primes = np.array(preset.data_primes, dtype=np.int64)[:, None]
    difference = rns.ntt_inverse(
        ((ours.astype(np.int64) - theirs) % primes).astype(np.uint32), preset.ring_degree, preset.data_primes
    ).astype(np.int64)
    centred = np.minimum(difference, primes - difference)
    assert centred.max() <= 1
    assert np.count_nonzero(centred) <= (preset.ring_degree if preset.log_input_scale > 36 else 8)


def test_plaintext_product_and_sum(oracle: SealOracle) -> None:
    """The multiply-accumulate kernel against multiply_plain and add, 19 products in one group."""
    preset, tables = oracle.preset, keyswitch.engine_tables(oracle.preset.ring_degree, oracle.preset.primes)
    ring = rns.ring_tables(preset.ring_degree, preset.data_primes)
    pairs = [fresh(oracle) for _ in range(19)]
    plaintexts = [oracle.encode(random_slots(preset), 2.0**preset.log_weight_scale) for _ in pairs]
    total = None
    for (ciphertext, _), plaintext in zip(pairs, plaintexts, strict=True):
        product = seal.Ciphertext(oracle.context)
        oracle.evaluator.multiply_plain(ciphertext, plaintext, product)
        if total is None:
            total = product
        else:
            oracle.evaluator.add_inplace(total, product)
    stored = keyswitch.to_montgomery(
        np.stack([oracle.plaintext_words(p) for p in plaintexts])[..., ring.slot_from_seal],
        preset.data_primes,
    )
    limbs = len(preset.data_primes)
    blocked = np.ascontiguousarray(stored.reshape(19, limbs, -1, linear.BLOCK).transpose(1, 2, 0, 3))
    inputs = np.stack([words for _, words in pairs])[..., ring.slot_from_seal][None]
    out = np.empty((1, 1, 2, limbs, preset.ring_degree), dtype=np.uint32)
    units = limbs * preset.ring_degree // linear.BLOCK
    source, groups = np.arange(19, dtype=np.int32), np.array([0, 19], dtype=np.int32)
    x = np.empty(2 * 19 * linear.BLOCK, dtype=np.uint64)
    for unit in range(units):
        linear.products(blocked, source, groups, np.ascontiguousarray(inputs), out, unit, x, tables)
    np.testing.assert_array_equal(out[0, 0][..., ring.seal_from_slot], oracle.words(total))


@pytest.mark.parametrize("k", STEPS)
def test_rotation(oracle: SealOracle, k: int) -> None:
    preset = oracle.preset
    tables = keyswitch.engine_tables(preset.ring_degree, preset.primes)
    ring = rns.ring_tables(preset.ring_degree, preset.primes)
    ciphertext, words = fresh(oracle)
    element = pow(3, k, 2 * preset.ring_degree)
    rotated = seal.Ciphertext(oracle.context)
    oracle.evaluator.apply_galois(ciphertext, element, oracle.galois_keys, rotated)
    keys = oracle.evaluation_keys()
    key = keyswitch.to_montgomery(
        keys.words[keys.elements.index(element)][..., ring.slot_from_seal], preset.primes
    )
    ours = rotate(np.ascontiguousarray(words[..., ring.slot_from_seal]), key, k, tables)
    np.testing.assert_array_equal(ours[..., ring.seal_from_slot], oracle.words(rotated))


def test_hoisted_rotation_agrees_to_the_noise(oracle: SealOracle) -> None:
    """Hoisting decomposes before it rotates: other bits, same value, error within 2^-14 of the unit at scale 2^32."""
    preset, k = oracle.preset, 7
    tables = keyswitch.engine_tables(preset.ring_degree, preset.primes)
    ring = rns.ring_tables(preset.ring_degree, preset.primes)
    scale = 2.0**preset.log_input_scale
    slots = random_slots(preset)
    words = np.ascontiguousarray(oracle.words(oracle.encrypt(slots, scale))[..., ring.slot_from_seal])
    keys = oracle.evaluation_keys()
    key = keyswitch.to_montgomery(
        keys.words[keys.elements.index(pow(3, k, 2 * preset.ring_degree))][..., ring.slot_from_seal],
        preset.primes,
    )
    limbs = len(preset.data_primes)
    w = keyswitch.workspace(preset.ring_degree, limbs)
    digits = np.empty((limbs, limbs + 1, preset.ring_degree), dtype=np.uint32)
    for digit in range(limbs):
        keyswitch.decompose_digit(words[1], digit, digits[digit], w, tables)
    out = np.empty((2, limbs, preset.ring_degree), dtype=np.uint32)
    keyswitch.rotate_hoisted(words[0], digits, key, k, out, w, tables)
    decrypted = oracle.decrypt(oracle.load(out[..., ring.seal_from_slot], scale))
    assert np.abs(decrypted - np.roll(slots, -k)).max() < 2.0**-14


def test_rescaling(oracle: SealOracle) -> None:
    """``finish`` without key products is SEAL's rescale_to_next down to the reply's limbs."""
    preset, tables = oracle.preset, keyswitch.engine_tables(oracle.preset.ring_degree, oracle.preset.primes)
    ring = rns.ring_tables(preset.ring_degree, preset.primes)
    ciphertext, words = fresh(oracle)
    for _ in range(len(preset.data_primes) - preset.reply_limbs):
        oracle.evaluator.rescale_to_next_inplace(ciphertext)
    limbs, special = len(preset.data_primes), preset.primes[-1]
    factors = np.array(
        [(special % q, ((special % q) << 32) // q) for q in preset.data_primes], dtype=np.uint32
    )
    w = keyswitch.workspace(preset.ring_degree, limbs)
    reply = np.empty((2, preset.reply_limbs, preset.ring_degree), dtype=np.uint32)
    for component in range(2):
        switched = np.zeros((limbs + 1, preset.ring_degree), dtype=np.uint32)
        direct = np.ascontiguousarray(words[component][..., ring.slot_from_seal])
        linear.finish(switched, direct, reply[component], factors, w, tables)
    ours = rns.ntt_forward(reply, preset.ring_degree, preset.primes[: preset.reply_limbs])
    np.testing.assert_array_equal(ours, oracle.words(ciphertext))
