"""The key ring and its file: saved whole or not at all, opened by its owner only, never used again once retired."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from client_kit import text_of

from fhe_llm.client import keyfile, keys
from fhe_llm.client.keyfile import MAX_FILE_BYTES, replace_file
from fhe_llm.client.keys import KeyRing
from fhe_llm.errors import KeyRingError, ParameterError, RetiredKeyError, WrongPassphraseError
from fhe_llm.evaluator import rns

ELEMENTS = (3, 9)
PASSPHRASE = "correct horse"


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """While files are written beside the key the kernel takes ``room`` bytes and no more; memory files are spared."""

    def write(path: Path, parts: list[bytes | bytearray]) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            replace_file(path, parts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keyfile, "replace_file", write)
        patched.setattr(keys, "replace_file", write)
        yield


def secret_of(ring: KeyRing) -> bytes:
    return bytes(ring.engine().save_secret())


def same_key(one: KeyRing, other: KeyRing) -> bool:
    """Whether what one encrypts the other decrypts to (nearly) nothing but noise."""
    primes = one.preset.data_primes
    plain = other.engine().decrypt(one.engine().zero())
    residues = rns.ntt_inverse(plain[None], one.preset.ring_degree, primes)[0].astype(np.int64)
    centred = np.minimum(residues[0], primes[0] - residues[0])
    return bool(centred.max() < 1 << 10)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_saved_key_comes_back(tmp_path: Path, ring: KeyRing, passphrase: str | None) -> None:
    export, path = ring.evaluation_keys(ELEMENTS), tmp_path / "key"
    saved = ring.save(path, passphrase=passphrase)
    assert (saved.encrypted, path.stat().st_mode & 0o777) == (passphrase is not None, 0o600)
    assert ("NOT encrypted" in saved.note) == (passphrase is None)
    again = KeyRing.load(path, passphrase=passphrase)
    assert same_key(ring, again)
    assert not same_key(ring, KeyRing.generate())
    assert again.key_id == export.key_id
    assert again.evaluation_keys(ELEMENTS).frame == export.frame


def test_an_encrypted_file_holds_nothing_of_the_key(tmp_path: Path, ring: KeyRing) -> None:
    secret = secret_of(ring)
    ring.save(tmp_path / "plain")
    ring.save(tmp_path / "sealed", passphrase=PASSPHRASE)
    ring.evaluation_keys(ELEMENTS)
    ring.save(tmp_path / "more", passphrase=PASSPHRASE)
    piece = (tmp_path / "plain").read_bytes()[-64:]
    assert len(secret) > 1000
    for path in (tmp_path / "sealed", tmp_path / "more", tmp_path / "more.evaluation"):
        assert piece not in path.read_bytes()


@pytest.mark.parametrize("given", [None, "", "wrong", "Correct horse"])
def test_a_wrong_passphrase_is_said_and_not_repeated(
    tmp_path: Path, ring: KeyRing, given: str | None
) -> None:
    ring.save(tmp_path / "key", passphrase=PASSPHRASE)
    with pytest.raises(WrongPassphraseError, match=r"^cannot load the key from .+\. [A-Z]") as raised:
        KeyRing.load(tmp_path / "key", passphrase=given)
    assert PASSPHRASE not in text_of(raised.value)
    assert given != "Correct horse" or given not in text_of(raised.value)


@pytest.mark.parametrize("room", [0, 100, 4096])
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_full_disk_is_said_and_the_older_key_stays(
    tmp_path: Path, ring: KeyRing, passphrase: str | None, room: int
) -> None:
    path = tmp_path / "key"
    ring.save(path, passphrase=passphrase)
    before = path.read_bytes()
    with full_disk(room), pytest.raises(KeyRingError, match=r"cannot save the key to .*free some space"):
        KeyRing.generate().save(path, passphrase=passphrase)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
    assert same_key(ring, KeyRing.load(path, passphrase=passphrase))


def test_a_first_save_on_a_full_disk_leaves_nothing(tmp_path: Path, ring: KeyRing) -> None:
    with full_disk(100), pytest.raises(KeyRingError, match="free some space"):
        ring.save(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    ring.save(tmp_path / "key")
    assert same_key(ring, KeyRing.load(tmp_path / "key"))


def test_no_room_to_hand_the_key_over_is_said(tmp_path: Path, ring: KeyRing) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(KeyRingError, match=r"cannot save the secret key: .* Free some memory"):
            ring.save(tmp_path / "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_evaluation_keys_that_do_not_fit_the_disk_are_made_again(tmp_path: Path, ring: KeyRing) -> None:
    export = ring.evaluation_keys(ELEMENTS)
    with full_disk(len(export.frame) // 2):  # room for the secret key's file only
        ring.save(tmp_path / "key")
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
    again = KeyRing.load(tmp_path / "key")
    assert (again.key_id, same_key(ring, again)) == (None, True)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_damaged_files_are_refused(tmp_path: Path, ring: KeyRing, passphrase: str | None) -> None:
    path, rng = tmp_path / "key", random.Random(7)
    ring.save(path, passphrase=passphrase)
    good = path.read_bytes()
    damaged = [b"", good[:5], good[:40], good[:-1], good + b"\0", bytes(len(good)), rng.randbytes(500)]
    for at in (*range(0, 44, 3), *(rng.randrange(len(good)) for _ in range(5))):
        damaged.append(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(KeyRingError, match=r"^cannot load the key from .+\. [A-Z]"):
            KeyRing.load(path, passphrase=passphrase)


def test_what_is_no_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyRingError, match="No such file"):
        KeyRing.load(tmp_path / "none")
    with pytest.raises(KeyRingError, match="cannot load the key"):
        KeyRing.load(tmp_path)
    (tmp_path / "huge").touch(mode=0o600)
    with (tmp_path / "huge").open("r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(KeyRingError, match="not a key file"):
        KeyRing.load(tmp_path / "huge")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, ring: KeyRing, mode: int) -> None:
    ring.save(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(KeyRingError, match="chmod 600"):
        KeyRing.load(tmp_path / "key")


def test_changed_evaluation_keys_are_not_believed(tmp_path: Path, ring: KeyRing) -> None:
    export = ring.evaluation_keys(ELEMENTS)
    ring.save(tmp_path / "key")
    beside = tmp_path / "key.evaluation"
    other = KeyRing.generate().evaluation_keys(ELEMENTS).frame
    for data in (other, export.frame[:-1], b""):
        beside.write_bytes(data)
        assert KeyRing.load(tmp_path / "key").key_id is None


def test_an_export_grows_and_keeps_what_it_had(ring: KeyRing) -> None:
    first = ring.evaluation_keys((9,))
    assert ring.evaluation_keys((9,)) is first
    grown = ring.evaluation_keys((3,))
    assert (grown.elements, grown.key_id != first.key_id) == ((3, 9), True)
    assert first.frame[-100:] == grown.frame[-100:]
    with pytest.raises(KeyRingError, match="no Galois elements"):
        ring.evaluation_keys(())


def test_a_retired_key_stays_retired_after_a_restart(tmp_path: Path, ring: KeyRing) -> None:
    path = tmp_path / "key"
    ring.save(path)
    ring.retire("a reply failed its checks")
    for use in (ring.engine, lambda: ring.evaluation_keys(ELEMENTS), lambda: KeyRing.load(path)):
        with pytest.raises(RetiredKeyError, match="a reply failed its checks"):
            use()
    KeyRing.generate().save(path)
    assert KeyRing.load(path).retired is None


def test_a_wiped_key_and_copies_of_a_key_do_not_exist(ring: KeyRing) -> None:
    with ring, pytest.raises(TypeError, match="cannot copy or pickle"):
        copy.deepcopy(ring)
    with pytest.raises(TypeError, match="cannot copy or pickle"):
        pickle.dumps(ring)
    with pytest.raises(KeyRingError, match="wiped from memory"):
        ring.engine()
    assert "wiped" in repr(ring)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ParameterError, match="default, wide"):
        KeyRing.generate("precise")
