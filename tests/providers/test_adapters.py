"""The adapters, each against a local server that speaks its API."""

from __future__ import annotations

import pytest
from adapted_providers import Anthropic, Compatible, HuggingFaceEndpoint, HuggingFaceRouter, OpenAI
from adapter_contract import AdapterContract
from adapter_kit import ask, asked, refused
from connection_contract import ConnectionContract
from provider_server import (
    Failure,
    ProviderServer,
    Reply,
    anthropic_api,
    huggingface_api,
    openai_api,
)

from fhe_llm.errors import ProviderRequestError, ProviderUnavailableError
from fhe_llm.providers import HttpProvider, open_provider


class TestOpenAI(OpenAI, AdapterContract):
    def test_every_failure_of_the_server_is_here(self) -> None:
        assert set(self.failures) == set(openai_api.FAILURES)

    def test_reasoning_models_take_the_limit(self, server: ProviderServer) -> None:
        with_key = {"api_key": self.key, "base_url": self.url(server)}
        llm = open_provider("openai", "gpt-5-mini", **with_key)
        assert isinstance(llm, HttpProvider)
        assert ask(llm, "complete", asked(max_tokens=9)).text
        error = refused(ProviderRequestError, llm, "complete", asked(temperature=0.5))
        assert "parameter 'temperature'" in str(error)
        llm.close()


class TestAnthropic(Anthropic, AdapterContract):
    def test_every_failure_of_the_server_is_here(self) -> None:
        assert set(self.failures) == set(anthropic_api.FAILURES)

    def test_a_limit_is_sent_where_none_is_given(self, server: ProviderServer, llm: HttpProvider) -> None:
        ask(llm, "complete")
        assert server.received[0].json["max_tokens"] == 4096

    def test_an_address_may_end_with_the_version(self, server: ProviderServer) -> None:
        llm = self.open(server, base_url=server.anthropic_url + "/v1/")
        assert ask(llm, "complete").text
        llm.close()


class TestHuggingFaceRouter(HuggingFaceRouter, AdapterContract):
    def test_every_failure_of_the_server_is_here(self) -> None:
        assert set(self.failures) | {"loading"} == set(huggingface_api.FAILURES)

    def test_a_model_that_is_loading_is_waited_for_if_there_is_time(
        self, server: ProviderServer, llm: HttpProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.always(Failure(name="loading"))
        error = refused(ProviderUnavailableError, llm, "complete")
        assert error.retry_after == 20.0
        assert len(server.received) == 1
        loading = (503, {"error": "Model is currently loading", "estimated_time": 0.01})
        monkeypatch.setitem(huggingface_api.FAILURES, "loading", loading)
        server.next(Failure(name="loading"))
        server.always(Reply(text="awake"))
        assert ask(llm, "complete").text == "awake"


class TestHuggingFaceEndpoint(HuggingFaceEndpoint, AdapterContract):
    pass


class TestOpenAICompatible(Compatible, AdapterContract):
    pass


class TestOpenAIConnections(OpenAI, ConnectionContract):
    pass


class TestAnthropicConnections(Anthropic, ConnectionContract):
    pass


@pytest.mark.slow
class TestHuggingFaceConnections(HuggingFaceRouter, ConnectionContract):
    pass


@pytest.mark.slow
class TestOpenAICompatibleConnections(Compatible, ConnectionContract):
    pass
