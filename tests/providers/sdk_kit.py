"""The official SDKs, pointed at the local server: no retries of their own, and closed at the end."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
from huggingface_hub import InferenceClient
from provider_server import ANTHROPIC_KEY, HUGGINGFACE_KEY, OPENAI_KEY, ProviderServer

ASK: Any = [{"role": "user", "content": "Say something."}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather in a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
    },
}
OPENAI_TOOL: Any = {"type": "function", "function": WEATHER}
ANTHROPIC_TOOL: Any = {
    "name": "weather",
    "description": WEATHER["description"],
    "input_schema": WEATHER["parameters"],
}


def openai_client(server: ProviderServer, **settings: Any) -> openai.OpenAI:
    """A blocking client of the OpenAI SDK."""
    return openai.OpenAI(
        **{"api_key": OPENAI_KEY, "base_url": server.openai_url, "max_retries": 0, **settings}
    )


def anthropic_client(server: ProviderServer, **settings: Any) -> anthropic.Anthropic:
    """A blocking client of the Anthropic SDK."""
    return anthropic.Anthropic(
        **{"api_key": ANTHROPIC_KEY, "base_url": server.anthropic_url, "max_retries": 0, **settings}
    )


def huggingface_client(server: ProviderServer, **settings: Any) -> InferenceClient:
    """A blocking client of huggingface_hub."""
    return InferenceClient(**{"base_url": server.huggingface_url, "token": HUGGINGFACE_KEY, **settings})
