"""The cipher against SEAL: its encoder word for word, its encryptions and decryptions to the stated error."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tenseal import sealapi

from fhe_llm.client import encoding, seal_memory
from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.zero_pool import MAX_READY, ZeroPool
from fhe_llm.errors import KeyRingError, ParameterError, ReplyError, RetiredKeyError
from fhe_llm.evaluator import rns
from fhe_llm.params import Preset, preset
from fhe_llm.wire import seed

PRESETS = ["default", "wide"]


def random_slots(n: int, parameters: Preset) -> NDArray[np.complex128]:
    generator = np.random.default_rng()
    return generator.standard_normal((n, parameters.slots)) + 1j * generator.standard_normal(
        (n, parameters.slots)
    )


def in_seals_order(parameters: Preset, slots: NDArray[np.complex128], log_scale: float) -> NDArray[np.uint32]:
    """Encodings as SEAL stores them."""
    order = rns.ring_tables(parameters.ring_degree, parameters.data_primes).seal_from_slot
    return np.ascontiguousarray(encoding.encode_slot_order(parameters, slots, log_scale)[..., order])


def as_reply(words: NDArray[np.uint32], parameters: Preset, limbs: int) -> NDArray[np.uint32]:
    """Fresh ciphertexts brought to the form of a reply: fewer limbs, coefficient domain."""
    return rns.ntt_inverse(
        np.ascontiguousarray(words[:, :, :limbs]), parameters.ring_degree, parameters.data_primes[:limbs]
    )


@pytest.mark.parametrize("name", PRESETS)
def test_encodings_are_seals(name: str) -> None:
    parameters, ring = preset(name), KeyRing.generate(name)
    context = ring.engine()._context
    slots = random_slots(1, parameters)
    plaintext = sealapi.Plaintext()
    scale = 2.0**parameters.log_input_scale
    sealapi.CKKSEncoder(context).encode(slots[0].tolist(), context.first_parms_id(), scale, plaintext)
    limbs = len(parameters.data_primes)
    theirs = np.array([plaintext[i] for i in range(limbs * parameters.ring_degree)], dtype=np.uint32)
    ours = in_seals_order(parameters, slots, parameters.log_input_scale)[0]
    difference = rns.ntt_inverse(
        _minus(ours, theirs.reshape(limbs, -1), parameters), parameters.ring_degree, parameters.data_primes
    ).astype(np.int64)
    primes = np.array(parameters.data_primes)[:, None]
    difference = np.where(2 * difference > primes, difference - primes, difference)
    assert np.abs(difference).max() <= (1 if name == "default" else 4)  # rounding of ties in double precision
    assert np.count_nonzero(difference) < parameters.ring_degree // 100 or name == "wide"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("seeded", [False, True])
def test_what_is_encrypted_is_decrypted(name: str, seeded: bool) -> None:
    ring = KeyRing.generate(name)
    parameters, cipher = ring.preset, Cipher(ring)
    slots = random_slots(2, parameters)
    words = _encrypted(cipher, slots, seeded)
    assert words.shape == (2, 2, len(parameters.data_primes), parameters.ring_degree)
    assert words.dtype == np.uint32
    assert (words < np.array(parameters.data_primes)[:, None]).all()
    back = cipher.decrypt(as_reply(words, parameters, 2), parameters.log_input_scale)
    # fresh noise: 6 sigma = 20 a coefficient, sqrt(N) of them to a slot
    bound = 6 * 3.3 * np.sqrt(parameters.ring_degree) * 2.0**-parameters.log_input_scale
    assert np.abs(back - slots).max() < bound


@pytest.mark.parametrize("name", PRESETS)
def test_decryptions_are_seals(name: str) -> None:
    """Our decoder on SEAL's decryption, against SEAL's decoder on the same."""
    ring = KeyRing.generate(name)
    parameters, engine, cipher = ring.preset, ring.engine(), Cipher(ring)
    words = cipher.encrypt(random_slots(1, parameters))
    limbs = 2
    level = np.ascontiguousarray(words[0, :, :limbs])
    plaintext = sealapi.Plaintext()
    engine._decryptor.decrypt(engine._words.to_ciphertext(level), plaintext)
    theirs = np.array(sealapi.CKKSEncoder(engine._context).decode_complex(plaintext))
    ours = cipher.decrypt(as_reply(words, parameters, limbs), 0.0)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())


def test_one_limb_decodes_like_two() -> None:
    parameters = preset("default")
    slots = random_slots(1, parameters) * 0.01
    words = in_seals_order(parameters, slots, 26.0)
    one = encoding.decode(parameters, np.ascontiguousarray(words[:, :1]), 26.0)
    np.testing.assert_allclose(one, encoding.decode(parameters, words, 26.0), atol=1e-12)
    assert np.abs(one - slots).max() < np.sqrt(parameters.ring_degree) * 2.0**-26


@pytest.mark.parametrize("name", PRESETS)
def test_memory_and_save_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing.generate(name)
    engine, words = ring.engine(), ring.engine().zero()
    fast = engine.decrypt(words)
    engine._words.reads_memory = False
    np.testing.assert_array_equal(engine.decrypt(words), fast)
    monkeypatch.setattr(seal_memory, "_MEMORY", "/nonexistent")
    careful = KeyRing.generate(name)
    assert not careful.engine()._words.reads_memory
    slots = random_slots(1, ring.preset)
    back = Cipher(careful).decrypt(
        as_reply(_encrypted(Cipher(careful), slots, True), ring.preset, 2), ring.preset.log_input_scale
    )
    assert np.abs(back - slots).max() < 1e-5


def test_memory_of_another_shape_is_not_believed(ring: KeyRing) -> None:
    engine = ring.engine()
    if not engine._words.reads_memory:
        pytest.skip("this system does not allow reading memory")
    ciphertext = engine._words.to_ciphertext(engine.zero())
    for shape in [(3, 2, 4096), (2, 1, 4096), (2, 2, 8192)]:
        with pytest.raises(seal_memory.LayoutError):
            seal_memory.read_ciphertext(ciphertext, shape)
    with pytest.raises(seal_memory.LayoutError):
        seal_memory.read_plaintext(ciphertext_as_plaintext(ciphertext), (2, 4096))


def ciphertext_as_plaintext(ciphertext: Any) -> Any:
    """Something whose accessors tell another story than its memory."""

    class Liar:
        parms_id = ciphertext.parms_id
        scale = 1.0

        def coeff_count(self) -> int:
            return 2 * 4096

    return Liar()


def test_encryptions_of_the_same_slots_share_nothing(cipher: Cipher) -> None:
    slots = np.repeat(random_slots(1, cipher.preset), 4, axis=0)
    cipher.prepare(3, seeded=True)
    cipher.prepare(3, seeded=False)
    seeds, c0 = cipher.encrypt_seeded(slots)
    words = cipher.encrypt(slots)
    assert len({row.tobytes() for row in seeds}) == 4
    assert len({row.tobytes() for row in (*c0, *words[:, 0])}) == 8


def test_a_pool_hands_out_each_item_once() -> None:
    made = iter(range(1000))
    pool = ZeroPool(lambda: next(made))
    pool.prepare(5)
    pool.prepare(3)
    assert len(pool) == 5
    assert [pool.take() for _ in range(8)] == list(range(8))
    pool.prepare(10**6)
    assert len(pool) == MAX_READY
    pool.drop()
    assert len(pool) == 0
    with pytest.raises(TypeError):
        pool.__reduce_ex__(2)


def test_a_forked_child_never_uses_what_the_parent_prepared(cipher: Cipher) -> None:
    cipher.prepare(4, seeded=True)
    cipher.prepare(4, seeded=False)
    slots = random_slots(1, cipher.preset)

    def both() -> bytes:
        seeds, c0 = cipher.encrypt_seeded(slots)
        return seeds.tobytes() + c0.tobytes() + cipher.encrypt(slots).tobytes()

    child = _in_child(both)
    parent = [both() for _ in range(4)]
    assert len(child) == len(parent[0])
    half = 32 + 4 * 2 * 4096
    assert child[:32] not in {p[:32] for p in parent}
    assert child[32:half] not in {p[32:half] for p in parent}
    assert child[half:] not in {p[half:] for p in parent}
    recovered = np.frombuffer(child[half:], np.uint32).reshape(1, 2, 2, 4096)
    back = cipher.decrypt(as_reply(recovered, cipher.preset, 2), cipher.preset.log_input_scale)
    assert np.abs(back - slots).max() < 1e-5


def test_a_retired_or_wiped_key_encrypts_nothing_that_was_prepared(cipher: Cipher) -> None:
    slots = random_slots(1, cipher.preset)
    reply = as_reply(cipher.encrypt(slots), cipher.preset, 1)
    cipher.prepare(2, seeded=True)
    cipher.retire("a test")
    for use in (
        lambda: cipher.encrypt_seeded(slots),
        lambda: cipher.encrypt(slots),
        lambda: cipher.decrypt(reply, 26.0),
        lambda: cipher.prepare(3, seeded=True),
    ):
        with pytest.raises(RetiredKeyError, match="a test"):
            use()
    ring = KeyRing.generate()
    other = Cipher(ring)
    other.prepare(2, seeded=False)
    ring.wipe()
    with pytest.raises(KeyRingError, match="wiped"):
        other.encrypt(slots)


def test_bad_shapes_and_sizes_are_refused(cipher: Cipher) -> None:
    with pytest.raises(ParameterError, match="shape"):
        cipher.encrypt(np.zeros((1, 7), complex))
    with pytest.raises(ParameterError, match="modulus"):
        cipher.encrypt(np.full((1, cipher.preset.slots), 2.0**40, complex))
    with pytest.raises(ParameterError, match="modulus"):
        cipher.encrypt(np.full((1, cipher.preset.slots), np.nan, complex))
    for shape in [(1, 2, 1, 8), (1, 3, 1, 4096), (2, 4096), (1, 2, 0, 4096)]:
        with pytest.raises(ReplyError, match="shape"):
            cipher.decrypt(np.ones(shape, np.uint32), 26.0)


def _encrypted(cipher: Cipher, slots: NDArray[np.complex128], seeded: bool) -> NDArray[np.uint32]:
    if not seeded:
        return cipher.encrypt(slots)
    seeds, coefficients = cipher.encrypt_seeded(slots)
    c0 = rns.ntt_forward(coefficients, cipher.preset.ring_degree, cipher.preset.data_primes)
    return np.stack(
        [np.stack([c0[i], seed.expand(seeds[i].tobytes(), cipher.preset)]) for i in range(len(slots))]
    )


def _minus(x: NDArray[np.uint32], y: NDArray[np.uint32], parameters: Preset) -> NDArray[np.uint32]:
    primes = np.array(parameters.data_primes)[:, None]
    return ((x.astype(np.int64) - y) % primes).astype(np.uint32)


def _in_child(work: Callable[[], bytes]) -> bytes:
    """What ``work`` returns in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            with os.fdopen(write, "wb") as pipe:
                pipe.write(work())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return data
