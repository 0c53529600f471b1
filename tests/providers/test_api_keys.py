"""API keys: their sources, what is refused, and that they are not shown."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from typing import Any

import pytest
from pydantic import SecretStr

from fhe_llm.errors import ProviderAuthError, ProviderRequestError
from fhe_llm.providers.api_keys import ApiKey, checked_address

KEY = "sk-abcdef0123456789"


def key(source: Any = None, **settings: Any) -> ApiKey:
    return ApiKey(source, **{"provider": "acme", "variable": "ACME_KEY", **settings})


def test_it_comes_from_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", "from-env")
    assert key().get() == "from-env"
    for source in (KEY, SecretStr(KEY), lambda: KEY, lambda: SecretStr(KEY)):
        assert key(source).get() == KEY


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", "one")
    found = key()
    monkeypatch.setenv("ACME_KEY", "two")
    assert found.get() == "two"
    monkeypatch.delenv("ACME_KEY")
    with pytest.raises(ProviderAuthError):
        found.get()


def test_a_missing_key_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_KEY", "")
    for nothing in (None, "", SecretStr("")):
        with pytest.raises(ProviderAuthError, match=r"no API key\. Set ACME_KEY or pass api_key="):
            key(nothing)
    assert key(required=False).get() is None
    with pytest.raises(ProviderAuthError):
        key("", required=False)


@pytest.mark.parametrize("bad", ["a\r\nx: y", "a b", "a\0", "ключ", "a\x7f", "k" * 5000, 7, b"bytes"])
def test_a_key_that_no_header_may_hold(bad: Any) -> None:
    for source in (bad, lambda: bad):
        with pytest.raises(ProviderAuthError) as caught:
            key(source).get()
        assert str(bad) not in str(caught.value)


def test_a_function_is_asked_for_each_request_and_not_before() -> None:
    asked: list[int] = []

    def source() -> str:
        asked.append(threading.get_ident())
        return f"key-{len(asked)}"

    found = key(source)
    assert asked == []
    assert found.get() == "key-1"
    assert asyncio.run(found.aget()) == "key-2"
    assert asked[0] == threading.get_ident()
    assert asked[1] != threading.get_ident()  # the event loop must not wait for a vault


def test_a_function_that_fails_is_named_and_not_quoted() -> None:
    def source() -> str:
        raise KeyError(KEY)

    with pytest.raises(ProviderAuthError, match="its source raised KeyError") as caught:
        key(source).get()
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_it_is_not_shown_copied_or_pickled() -> None:
    found = key(KEY)
    assert KEY not in f"{found!r} {found}"
    assert not hasattr(found, "__dict__")
    for leave in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot copy or pickle"):
            leave(found)


def test_addresses() -> None:
    def address(url: Any, *, allow_insecure: bool = False) -> str:
        return checked_address(url, provider="acme", allow_insecure=allow_insecure)

    assert address("https://api.example/v1/") == "https://api.example/v1"
    for here in ("http://localhost:8000/v1", "http://127.0.0.1", "http://127.9.9.9:1", "http://[::1]:80"):
        assert address(here) == here
    for open_air in ("http://api.example", "http://10.0.0.1", "http://localhost.example", "http://0.0.0.0"):
        with pytest.raises(ProviderRequestError, match=r"Use https, or pass allow_insecure=True\."):
            address(open_air)
        assert address(open_air, allow_insecure=True) == open_air
    bad: Any
    for bad in (
        "",
        "api.example",
        "ftp://x",
        "https://",
        "https://x:99999",
        "https://[::1",
        7,
        "https://x/\n",
        "file:///",
    ):
        with pytest.raises(ProviderRequestError, match="cannot call acme: base_url is not"):
            address(bad)
    for carrying in (f"https://u:{KEY}@x", f"https://x?key={KEY}", f"https://x#{KEY}"):
        with pytest.raises(ProviderRequestError) as caught:
            address(carrying)
        assert KEY not in str(caught.value)
