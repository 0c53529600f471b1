"""Live proxies with tiny random models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.settings import Settings
from llamaindex_kit import MakeLLM, makers
from tiny_model import TinyShape, write_tiny_gguf

from fhe_llm import KeyRing
from fhe_llm.cli.proxy_process import ProxyProcess


@pytest.fixture(scope="session")
def ring() -> Iterator[KeyRing]:
    made = KeyRing.generate()
    yield made
    made.wipe()


@pytest.fixture(scope="session")
def roomy_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """A proxy with a context of 2048: tools do not fit into the usual tiny one."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("roomy") / "tiny.gguf", TinyShape(context_length=2048))
    with ProxyProcess(str(path), data_dir=tmp_path_factory.mktemp("roomy-data")) as process:
        yield process


@pytest.fixture(scope="session")
def narrow_proxy(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """A proxy with a context of 256."""
    with ProxyProcess(str(tiny_model_path), data_dir=tmp_path_factory.mktemp("narrow-data")) as process:
        yield process


@pytest.fixture(scope="session")
def make_roomy(
    roomy_proxy: ProxyProcess, ring: KeyRing, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeLLM]:
    yield from makers(roomy_proxy.base_url, ring, tmp_path_factory.mktemp("roomy-cache"))


@pytest.fixture(scope="session")
def make_narrow(
    narrow_proxy: ProxyProcess, ring: KeyRing, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeLLM]:
    yield from makers(narrow_proxy.base_url, ring, tmp_path_factory.mktemp("narrow-cache"))


@pytest.fixture(autouse=True)
def untouched_settings() -> Iterator[None]:
    """LlamaIndex's settings are global: a test leaves them as it found them."""
    import llama_index.core

    before, tokenizer = dict(vars(Settings)), llama_index.core.global_tokenizer
    yield
    vars(Settings).clear()
    vars(Settings).update(before)
    llama_index.core.global_tokenizer = tokenizer
