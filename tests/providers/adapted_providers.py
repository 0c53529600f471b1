"""The providers as the local server has them: names, keys, and what each of its errors becomes."""

from __future__ import annotations

from typing import Any, Final

from adapter_kit import Adapted
from provider_server import ANTHROPIC_KEY, HUGGINGFACE_KEY, OPENAI_KEY, ProviderServer

from fhe_llm.errors import (
    ProviderAuthError,
    ProviderContextError,
    ProviderError,
    ProviderLimitError,
    ProviderRequestError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)

AUTH, CONTEXT, LIMIT, OTHER = ProviderAuthError, ProviderContextError, ProviderLimitError, ProviderError
LATE, DOWN, REQUEST = ProviderTimeoutError, ProviderUnavailableError, ProviderRequestError
OPENAI_FAILURES: Final[dict[str, Any]] = {
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
ANTHROPIC_FAILURES: Final[dict[str, Any]] = {
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
HUGGINGFACE_FAILURES: Final[dict[str, Any]] = {
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


class OpenAI(Adapted):
    provider, model, key = "openai", "gpt-4o-mini", OPENAI_KEY
    failures, passing, down = OPENAI_FAILURES, "rate_limit", "overloaded"

    def url(self, server: ProviderServer) -> str:
        return server.openai_url


class Anthropic(Adapted):
    provider, model, key = "anthropic", "claude-sonnet-4-6", ANTHROPIC_KEY
    failures, passing, down = ANTHROPIC_FAILURES, "rate_limit", "overloaded"
    told_by_message = frozenset({"prompt_too_long", "low_credit"})
    has_seed = False

    def url(self, server: ProviderServer) -> str:
        return server.anthropic_url


class HuggingFaceRouter(Adapted):
    provider, model, key = "huggingface", "meta-llama/Llama-3.1-8B-Instruct", HUGGINGFACE_KEY
    failures, passing, down = HUGGINGFACE_FAILURES, "rate_limit", "server_error"
    told_by_message = frozenset({"validation"})

    def url(self, server: ProviderServer) -> str:
        return server.huggingface_url


class HuggingFaceEndpoint(HuggingFaceRouter):
    def url(self, server: ProviderServer) -> str:
        return server.tgi_url


class Compatible(Adapted):
    provider, model, key = "openai-compatible", "qwen2.5", None
    failures, passing, down = OPENAI_FAILURES, "rate_limit", "overloaded"

    def url(self, server: ProviderServer) -> str:
        return server.compatible_url
