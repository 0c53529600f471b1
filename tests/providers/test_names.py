"""Opening providers by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fhe_llm import errors
from fhe_llm.providers import (
    AnthropicProvider,
    HuggingFaceProvider,
    OpenAICompatibleProvider,
    OpenAIProvider,
    open_provider,
)

URL = "https://models.example/v1"


@pytest.mark.parametrize(
    ("name", "kind", "variable", "shown"),
    [
        ("openai", OpenAIProvider, "OPENAI_API_KEY", "https://api.openai.com/v1"),
        ("anthropic", AnthropicProvider, "ANTHROPIC_API_KEY", "https://api.anthropic.com"),
        ("huggingface", HuggingFaceProvider, "HF_TOKEN", "https://router.huggingface.co/v1"),
    ],
)
def test_names_keys_and_addresses(
    name: str, kind: type, variable: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        errors.ProviderAuthError, match=f"^cannot call {name}: .* Set {variable} or pass api_key="
    ):
        open_provider(name, "m")
    monkeypatch.setenv(variable, "secret-key")
    opened = open_provider(name, "m")
    assert type(opened) is kind
    assert (opened.name, opened.model) == (name, "m")
    assert repr(opened) == f"{kind.__name__}('m', base_url='{shown}')"


def test_a_compatible_server_needs_an_address_and_gets_no_key_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with pytest.raises(errors.ProviderRequestError, match="there is no base_url"):
        open_provider("openai-compatible", "m")
    opened = open_provider("openai-compatible", "m", base_url=URL)
    assert type(opened) is OpenAICompatibleProvider
    assert opened._key.get() is None


def test_an_endpoint_of_hugging_face_may_be_given_without_its_path() -> None:
    for url in ("https://x.endpoints.huggingface.cloud", "https://x.endpoints.huggingface.cloud/"):
        assert "cloud/v1'" in repr(open_provider("huggingface", "tgi", api_key="k", base_url=url))
    assert "/own'" in repr(open_provider("huggingface", "tgi", api_key="k", base_url="https://x.example/own"))


def test_what_there_is_not_is_said_with_what_there_is() -> None:
    with pytest.raises(
        errors.RequestError, match=r"there is none\. Use one of openai, anthropic, huggingface, openai-"
    ):
        open_provider("opneai", "m")
    with pytest.raises(
        errors.RequestError, match=r"no setting 'retries'\. Use one of api_key, base_url, timeout, .*"
    ):
        open_provider("openai", "m", api_key="k", retries=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": None},
        {"chunk_timeout": -1},
        {"chunk_timeout": True},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"base_url": "http://models.example/v1"},
        {"base_url": "nonsense"},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    for name in ("openai", "anthropic", "huggingface", "openai-compatible"):
        with pytest.raises(errors.ProviderRequestError, match=rf"^cannot (use|call) .*{name}.*\. \w+"):
            open_provider(name, "m", **{"api_key": "k", "base_url": URL, **settings})
    with pytest.raises(errors.ProviderRequestError):
        open_provider("openai", "", api_key="k")


def test_importing_the_package_needs_no_extra() -> None:
    code = (
        "import sys, fhe_llm.providers as p; bad = {'httpx', 'stamina', 'openai', 'anthropic'};"
        "assert not bad & set(sys.modules); p.open_provider('openai-compatible', 'm', base_url='https://x/v1');"
        "sys.exit(bool((bad - {'httpx'}) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
