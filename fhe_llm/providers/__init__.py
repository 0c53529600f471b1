"""Closed models behind HTTP. They read what they are sent: :mod:`fhe_llm.privacy` decides what that is.

Start with :class:`PrivateProviderLLM` and :func:`open_provider`. Names load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fhe_llm.providers.anthropic import AnthropicProvider
    from fhe_llm.providers.contract import (
        Provider,
        ProviderAnswer,
        ProviderChunk,
        ProviderRequest,
        ProviderToolCall,
        ProviderUsage,
    )
    from fhe_llm.providers.http_provider import HttpProvider, HttpSettings
    from fhe_llm.providers.huggingface import HuggingFaceProvider
    from fhe_llm.providers.names import open_provider
    from fhe_llm.providers.openai import OpenAICompatibleProvider, OpenAIProvider
    from fhe_llm.providers.private import PrivateProviderLLM, ProviderOptions
    from fhe_llm.providers.release import PrivateAnswer, PrivateChunk, ReleaseReceipt

_HOMES = {
    "AnthropicProvider": "anthropic",
    "HttpProvider": "http_provider",
    "HttpSettings": "http_provider",
    "HuggingFaceProvider": "huggingface",
    "OpenAICompatibleProvider": "openai",
    "OpenAIProvider": "openai",
    "PrivateAnswer": "release",
    "PrivateChunk": "release",
    "PrivateProviderLLM": "private",
    "Provider": "contract",
    "ProviderAnswer": "contract",
    "ProviderChunk": "contract",
    "ProviderOptions": "private",
    "ProviderRequest": "contract",
    "ProviderToolCall": "contract",
    "ProviderUsage": "contract",
    "ReleaseReceipt": "release",
    "open_provider": "names",
}

__all__ = [
    "AnthropicProvider",
    "HttpProvider",
    "HttpSettings",
    "HuggingFaceProvider",
    "OpenAICompatibleProvider",
    "OpenAIProvider",
    "PrivateAnswer",
    "PrivateChunk",
    "PrivateProviderLLM",
    "Provider",
    "ProviderAnswer",
    "ProviderChunk",
    "ProviderOptions",
    "ProviderRequest",
    "ProviderToolCall",
    "ProviderUsage",
    "ReleaseReceipt",
    "open_provider",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
