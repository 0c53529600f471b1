"""The official SDKs, pointed at the local server: no retries of their own, and closed at the end."""

from __future__ import annotations

import ssl
from typing import Any, Final

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


_PLAIN: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loading certificates takes longer than a test."""


def openai_client(server: ProviderServer, **settings: Any) -> openai.OpenAI:
    """A blocking client of the OpenAI SDK."""
    given = {"api_key": OPENAI_KEY, "base_url": server.openai_url, "max_retries": 0}
    return openai.OpenAI(http_client=openai.DefaultHttpxClient(verify=_PLAIN), **given | settings)


def anthropic_client(server: ProviderServer, **settings: Any) -> anthropic.Anthropic:
    """A blocking client of the Anthropic SDK."""
    given = {"api_key": ANTHROPIC_KEY, "base_url": server.anthropic_url, "max_retries": 0}
    return anthropic.Anthropic(http_client=anthropic.DefaultHttpxClient(verify=_PLAIN), **given | settings)


def huggingface_client(server: ProviderServer, **settings: Any) -> InferenceClient:
    """A blocking client of huggingface_hub."""
    return InferenceClient(**{"base_url": server.huggingface_url, "token": HUGGINGFACE_KEY, **settings})
