"""A provider from its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fhe_llm.errors import RequestError
from fhe_llm.providers.anthropic import AnthropicProvider
from fhe_llm.providers.contract import Provider
from fhe_llm.providers.http_provider import HttpSettings
from fhe_llm.providers.huggingface import HuggingFaceProvider
from fhe_llm.providers.openai import OpenAICompatibleProvider, OpenAIProvider

PROVIDERS: Final[Mapping[str, Callable[..., Provider]]] = {
    "openai": OpenAIProvider,
    "anthropic": AnthropicProvider,
    "huggingface": HuggingFaceProvider,
    "openai-compatible": OpenAICompatibleProvider,
}


def open_provider(name: str, model: str, **settings: Any) -> Provider:
    """The provider called ``name``, one of :data:`PROVIDERS`, with :class:`HttpSettings`.

    No network. Raises :class:`RequestError` for an unknown name or setting,
    :class:`fhe_llm.errors.ProviderAuthError` where there is no key, :class:`fhe_llm.errors.ProviderRequestError`.
    """
    if name not in PROVIDERS:
        raise RequestError(f"cannot open provider {name!r}: there is none. Use one of {', '.join(PROVIDERS)}.")
    if unknown := sorted(settings.keys() - HttpSettings.__annotations__.keys()):
        known = ", ".join(HttpSettings.__annotations__)
        raise RequestError(f"cannot open {name}: there is no setting {unknown[0]!r}. Use one of {known}.")
    return PROVIDERS[name](model, **settings)
