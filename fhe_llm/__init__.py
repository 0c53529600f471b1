"""Encrypted LLM inference: the client holds the key, an untrusted proxy holds the weights.

Start with :class:`EncryptedLLM`; its answers carry a :class:`PrivacyReceipt`. Names load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fhe_llm.answer import Answer, Chunk
    from fhe_llm.client.answer_cache import AnswerCache
    from fhe_llm.client.ask import AskOptions, check_options
    from fhe_llm.client.conversation import ModelInfo
    from fhe_llm.client.keys import KeyRing
    from fhe_llm.client.prefix_cache import PrefixCache
    from fhe_llm.client.sampling import SamplingParams
    from fhe_llm.client.speculation import SpeculationSettings
    from fhe_llm.errors import FheLlmError
    from fhe_llm.llm import DEFAULT_URL, EncryptedLLM
    from fhe_llm.models.sentence_encoder import SentenceEncoder
    from fhe_llm.models.tools import Tool, ToolCall
    from fhe_llm.params import PRESETS, Preset
    from fhe_llm.receipt import PrivacyReceipt

_HOMES = {
    "DEFAULT_URL": "llm",
    "PRESETS": "params",
    "Answer": "answer",
    "AnswerCache": "client.answer_cache",
    "AskOptions": "client.ask",
    "Chunk": "answer",
    "EncryptedLLM": "llm",
    "FheLlmError": "errors",
    "KeyRing": "client.keys",
    "ModelInfo": "client.conversation",
    "PrefixCache": "client.prefix_cache",
    "Preset": "params",
    "PrivacyReceipt": "receipt",
    "SamplingParams": "client.sampling",
    "SentenceEncoder": "models.sentence_encoder",
    "SpeculationSettings": "client.speculation",
    "Tool": "models.tools",
    "ToolCall": "models.tools",
    "check_options": "client.ask",
}

__all__ = [
    "DEFAULT_URL",
    "PRESETS",
    "Answer",
    "AnswerCache",
    "AskOptions",
    "Chunk",
    "EncryptedLLM",
    "FheLlmError",
    "KeyRing",
    "ModelInfo",
    "PrefixCache",
    "Preset",
    "PrivacyReceipt",
    "SamplingParams",
    "SentenceEncoder",
    "SpeculationSettings",
    "Tool",
    "ToolCall",
    "check_options",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
