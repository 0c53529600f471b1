"""Real SEAL objects of the default preset, as TenSEAL saves them: compressed, and the same bytes stored."""

from __future__ import annotations

import pytest
from seal_objects import SealParty, stored

from fhe_llm.params import PRESETS


@pytest.fixture(scope="session")
def party(tmp_path_factory: pytest.TempPathFactory) -> SealParty:
    """A SEAL context, secret key and tools at the default preset."""
    return SealParty(PRESETS["default"], tmp_path_factory.mktemp("seal") / "object")


def both_modes(data: bytes) -> dict[str, bytes]:
    """A container as saved and without compression."""
    return {"zstd": data, "stored": stored(data)}


@pytest.fixture(scope="session")
def saved_ciphertext(party: SealParty) -> dict[str, bytes]:
    """A fresh symmetric encryption."""
    return both_modes(party.save(party.encrypt([1 + 2j, -3.5, 0.25j])))


@pytest.fixture(scope="session")
def saved_plaintext(party: SealParty) -> dict[str, bytes]:
    """An encoding."""
    return both_modes(party.save(party.encode([1 + 2j, -3.5, 0.25j])))


@pytest.fixture(scope="session")
def saved_galois_keys(party: SealParty) -> dict[str, bytes]:
    """Keys for one Galois element."""
    return both_modes(party.save(party.galois_keys([3])))
