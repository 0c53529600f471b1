"""Proxies for LangChain's tests: the tiny model with room for tools, and SmolLM2 where a test needs sense."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import TinyShape, write_tiny_gguf

import fhe_llm
from fhe_llm.cli.proxy_process import ProxyProcess

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these packages warn of while they load is theirs
    import langchain_tests.integration_tests
    import langchain_tests.unit_tests  # noqa: F401


@pytest.fixture(scope="session")
def tiny_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """A proxy with a random model of one token a byte, context 2048."""
    folder = tmp_path_factory.mktemp("chains")
    model = write_tiny_gguf(folder / "tiny.gguf", TinyShape(context_length=2048))
    with ProxyProcess(str(model), data_dir=folder) as process:
        yield process


@pytest.fixture(scope="module")
def tiny_client(
    tiny_proxy: ProxyProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[fhe_llm.EncryptedLLM]:
    """One connection and one key for all tests of a file."""
    cache = tmp_path_factory.mktemp("cache")
    with fhe_llm.EncryptedLLM("tiny", tiny_proxy.base_url, cache_dir=cache) as client:
        yield client


@pytest.fixture(scope="session")
def smollm2_proxy(smollm2_path: Path) -> Iterator[ProxyProcess]:
    """A proxy with the real model; its encoded weights are kept between runs."""
    with ProxyProcess(str(smollm2_path)) as process:
        yield process


@pytest.fixture(scope="module")
def smollm2_client(smollm2_proxy: ProxyProcess) -> Iterator[fhe_llm.EncryptedLLM]:
    """One connection, one key, one prefix cache for all tests of a file."""
    with fhe_llm.EncryptedLLM(smollm2_proxy_name(smollm2_proxy), smollm2_proxy.base_url) as client:
        yield client


def smollm2_proxy_name(proxy: ProxyProcess) -> str:
    """The name under which the proxy serves its model."""
    import httpx

    names = httpx.get(proxy.base_url + "/v1/models").json()["models"]
    return str(names[0]["name"])
