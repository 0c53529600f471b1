"""Live proxies with tiny random models, and what tests of LlamaIndex share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.settings import Settings
from tiny_model import TinyShape, write_tiny_gguf

from fhe_llm import KeyRing
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm_llamaindex import EncryptedLLM

MakeLLM = Callable[..., EncryptedLLM]


class LetterEmbedding(BaseEmbedding):
    """How often each letter occurs: enough to find a text by itself, without any files."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [text.lower().count(chr(letter)) + 1e-3 for letter in range(ord("a"), ord("z") + 1)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


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


def makers(base_url: str, ring: KeyRing, cache: Path, model: str = "tiny") -> Iterator[MakeLLM]:
    """A function that makes models of one proxy, which are closed with the last test."""
    made: list[EncryptedLLM] = []

    def make(**given: Any) -> EncryptedLLM:
        arguments = {"base_url": base_url, "keys": ring, "cache_dir": cache, "max_tokens": 5, **given}
        made.append(EncryptedLLM(model, **arguments))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(autouse=True)
def untouched_settings() -> Iterator[None]:
    """LlamaIndex's settings are global: a test leaves them as it found them."""
    import llama_index.core

    before, tokenizer = dict(vars(Settings)), llama_index.core.global_tokenizer
    yield
    vars(Settings).clear()
    vars(Settings).update(before)
    llama_index.core.global_tokenizer = tokenizer
