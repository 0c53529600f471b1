"""LangChain's own suites over ``ChatPrivateProvider``, the adapters, and a local server that speaks OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from private_provider_kit import connection, obliging
from provider_server import GPT, OPENAI_KEY, ProviderServer

from fhe_llm.providers import Provider, open_provider
from fhe_llm_langchain import ChatPrivateProvider


class Suite:
    """Arguments of LangChain's suites; a test's models share one provider, which is closed with it."""

    provider: ClassVar[Provider]

    @pytest.fixture(autouse=True)
    def _share(self, provider_server: ProviderServer) -> Iterator[None]:
        provider_server.always(obliging)
        given = connection(provider_server, "openai")
        type(self).provider = open_provider(given.pop("provider"), given.pop("model"), **given)
        yield
        self.provider.close()

    @property
    def chat_model_class(self) -> type[ChatPrivateProvider]:
        return ChatPrivateProvider

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"provider": self.provider, "guarantee": "none"}


class TestUnit(Suite, ChatModelUnitTests):  # type: ignore[misc]
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"OPENAI_API_KEY": OPENAI_KEY}, {"provider": "openai", "model": GPT, "guarantee": "none"}, {}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"provider": "openai", "model": GPT, "api_key": OPENAI_KEY, "guarantee": "none"}


class TestIntegration(Suite, ChatModelIntegrationTests):  # type: ignore[misc]
    @property
    def supports_json_mode(self) -> bool:
        return False
