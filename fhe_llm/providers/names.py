"""The providers there are, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fhe_llm.errors import RequestError
from fhe_llm.providers.anthropic import AnthropicProvider
from fhe_llm.providers.contract import Provider
from fhe_llm.providers.huggingface import HuggingFaceProvider
from fhe_llm.providers.openai import OpenAICompatibleProvider, OpenAIProvider

PROVIDERS: Final[Mapping[str, Callable[..., Provider]]] = {
    "openai": OpenAIProvider,
    "anthropic": AnthropicProvider,
    "huggingface": HuggingFaceProvider,
    "openai-compatible": OpenAICompatibleProvider,
}


def open_provider(name: str, model: str, **settings: Any) -> Provider:
    """The provider called ``name``, one of :data:`PROVIDERS`, with
    :class:`fhe_llm.providers.HttpSettings`.

    No network. Raises :class:`RequestError` for an unknown name or setting,
    :class:`fhe_llm.errors.ProviderAuthError` where there is no key, :class:`fhe_llm.errors.ProviderRequestError`.
    """
    if name not in PROVIDERS:
        raise RequestError(
            f"cannot open provider {name!r}: there is none. Use one of {', '.join(PROVIDERS)}."
        )
    return PROVIDERS[name](model, **settings)
