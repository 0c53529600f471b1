"""The adapters, each against a local server that speaks its API."""

from __future__ import annotations

from typing import Any

import pytest
from adapter_contract import AdapterContract
from adapter_kit import ask, asked, refused
from provider_server import (
    ANTHROPIC_KEY,
    HUGGINGFACE_KEY,
    OPENAI_KEY,
    Failure,
    ProviderServer,
    Reply,
    anthropic_api,
    huggingface_api,
    openai_api,
)

from fhe_llm.errors import (
    ProviderAuthError,
    ProviderContextError,
    ProviderError,
    ProviderLimitError,
    ProviderRequestError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)

AUTH, CONTEXT, LIMIT = ProviderAuthError, ProviderContextError, ProviderLimitError
OTHER, LATE, DOWN, REQUEST = (
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ProviderRequestError,
)
OPENAI_FAILURES: Any = {
    "invalid_api_key": (AUTH, False),
    "permission": (AUTH, False),
    "model_not_found": (REQUEST, False),
    "context_length_exceeded": (CONTEXT, False),
    "content_filter": (REQUEST, False),
    "conflict": (OTHER, True),
    "unprocessable": (REQUEST, False),
    "rate_limit": (LIMIT, True),
    "insufficient_quota": (LIMIT, False),
    "timeout": (LATE, True),
    "server_error": (OTHER, True),
    "bad_gateway": (DOWN, True),
    "overloaded": (DOWN, True),
    "gateway_timeout": (LATE, True),
}
HUGGINGFACE_FAILURES: Any = {
    "unauthorized": (AUTH, False),
    "credits": (LIMIT, False),
    "permission": (AUTH, False),
    "not_found": (REQUEST, False),
    "too_large": (REQUEST, False),
    "validation": (CONTEXT, False),
    "generation": (OTHER, True),
    "overloaded": (DOWN, True),
    "rate_limit": (LIMIT, True),
    "incomplete_generation": (OTHER, True),
    "server_error": (OTHER, True),
    "bad_gateway": (DOWN, True),
    "gateway_timeout": (LATE, True),
}


class TestOpenAI(AdapterContract):
    provider, model, key = "openai", "gpt-4o-mini", OPENAI_KEY
    failures = OPENAI_FAILURES
    passing, down = "rate_limit", "overloaded"

    def url(self, server: ProviderServer) -> str:
        return server.openai_url

    def test_every_failure_of_the_server_is_here(self) -> None:
        assert set(self.failures) == set(openai_api.FAILURES)

    def test_reasoning_models_take_the_limit(self, server: ProviderServer) -> None:
        llm = self.open(server)
        llm._model = "gpt-5-mini"
        assert ask(llm, "complete", asked(max_tokens=9)).text
        error = refused(ProviderRequestError, llm, "complete", asked(temperature=0.5))
        assert "parameter 'temperature'" in str(error)
        llm.close()


class TestAnthropic(AdapterContract):
    provider, model, key = "anthropic", "claude-sonnet-4-6", ANTHROPIC_KEY
    failures: Any = {
        "invalid_request": (REQUEST, False),
        "prompt_too_long": (CONTEXT, False),
        "low_credit": (LIMIT, False),
        "authentication": (AUTH, False),
        "billing": (LIMIT, False),
        "permission": (AUTH, False),
        "not_found": (REQUEST, False),
        "conflict": (OTHER, True),
        "too_large": (REQUEST, False),
        "rate_limit": (LIMIT, True),
        "server_error": (OTHER, True),
        "timeout": (LATE, True),
        "overloaded": (DOWN, True),
    }
    passing, down = "rate_limit", "overloaded"
    has_seed = False

    def url(self, server: ProviderServer) -> str:
        return server.anthropic_url

    def _told_by_message(self, name: str) -> bool:
        return name in ("prompt_too_long", "low_credit")

    def test_every_failure_of_the_server_is_here(self) -> None:
        assert set(self.failures) == set(anthropic_api.FAILURES)

    def test_a_limit_is_sent_where_none_is_given(self, server: ProviderServer, llm: Any) -> None:
        ask(llm, "complete")
        assert server.received[0].json["max_tokens"] == 4096

    def test_an_address_may_end_with_the_version(self, server: ProviderServer) -> None:
        llm = self.open(server, base_url=server.anthropic_url + "/v1/")
        assert ask(llm, "complete").text
        llm.close()


class TestHuggingFaceRouter(AdapterContract):
    provider, model, key = "huggingface", "meta-llama/Llama-3.1-8B-Instruct", HUGGINGFACE_KEY
    failures = HUGGINGFACE_FAILURES
    passing, down = "rate_limit", "server_error"

    def url(self, server: ProviderServer) -> str:
        return server.huggingface_url

    def _told_by_message(self, name: str) -> bool:
        return name == "validation"

    def test_every_failure_of_the_server_is_here(self) -> None:
        assert set(self.failures) | {"loading"} == set(huggingface_api.FAILURES)

    def test_a_model_that_is_loading_is_waited_for_if_there_is_time(
        self, server: ProviderServer, llm: Any, monkeypatch: pytest.MonkeyPatch
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


class TestHuggingFaceEndpoint(TestHuggingFaceRouter):
    def url(self, server: ProviderServer) -> str:
        return server.tgi_url


class TestOpenAICompatible(AdapterContract):
    provider, model, key = "openai-compatible", "qwen2.5", None
    failures = OPENAI_FAILURES
    passing, down = "rate_limit", "overloaded"

    def url(self, server: ProviderServer) -> str:
        return server.compatible_url


del AdapterContract
