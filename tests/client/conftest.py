"""Rings are cheap, but tests of a session and a cipher can share what they do not break."""

from __future__ import annotations

import pytest
from client_kit import TinyProxy

from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing.generate("default")


@pytest.fixture
def cipher(ring: KeyRing) -> Cipher:
    return Cipher(ring)


@pytest.fixture(scope="session")
def _shared_proxy() -> TinyProxy:
    return TinyProxy()


@pytest.fixture
def proxy(_shared_proxy: TinyProxy) -> TinyProxy:
    """The shared proxy with clean records and no keys."""
    _shared_proxy.requests.clear()
    _shared_proxy.calls.clear()
    _shared_proxy.keys.clear()
    _shared_proxy.packed = False
    return _shared_proxy
