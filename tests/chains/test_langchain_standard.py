"""LangChain's own test suites over a live proxy with the tiny model, and its cache suites over a real folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import (
    AsyncCacheTestSuite,
    ChatModelIntegrationTests,
    SyncCacheTestSuite,
)
from langchain_tests.unit_tests import ChatModelUnitTests

import fhe_llm
from fhe_llm_langchain import ChatEncrypted, EncryptedCache

needs_sense = pytest.mark.xfail(
    reason="needs a model that understands the question; the same test runs with SmolLM2"
)

LONG = ("tool", "structured", "json")
"""Tests whose answers must be complete; a token of the tiny model is a byte."""


class Shared:
    """All models of the suite use one client: a key upload for each would be the only difference."""

    client: ClassVar[fhe_llm.EncryptedLLM]

    max_tokens: ClassVar[int]

    @pytest.fixture(autouse=True)
    def _share(self, request: pytest.FixtureRequest, tiny_client: fhe_llm.EncryptedLLM) -> None:
        long = any(word in request.node.name for word in LONG)
        type(self).client, type(self).max_tokens = tiny_client, 200 if long else 12

    @property
    def chat_model_class(self) -> type[ChatEncrypted]:
        return ChatEncrypted

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny", "client": self.client, "max_tokens": self.max_tokens}


class TestUnit(Shared, ChatModelUnitTests):  # type: ignore[misc]
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny", "client": self.client}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"FHE_LLM_API_KEY": "secret", "FHE_LLM_BASE_URL": "http://127.0.0.1:1"}
        return environment, {}, {"api_key": "secret", "base_url": "http://127.0.0.1:1"}


class TestTiny(Shared, ChatModelIntegrationTests):  # type: ignore[misc]
    @property
    def supports_json_mode(self) -> bool:
        return True

    @needs_sense
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @needs_sense
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @needs_sense
    def test_bind_runnables_as_tools(self, model: BaseChatModel) -> None:
        super().test_bind_runnables_as_tools(model)

    @needs_sense
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @needs_sense
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
        super().test_unicode_tool_call_integration(model)


class TestSyncCache(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Iterator[EncryptedCache]:
        cache = EncryptedCache(tmp_path)
        yield cache
        cache.close()


class TestAsyncCache(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, tmp_path: Path) -> AsyncIterator[EncryptedCache]:
        cache = EncryptedCache(tmp_path, passphrase="correct horse")
        yield cache
        cache.close()
