"""Anthropic."""

from __future__ import annotations

from typing import Final, Unpack

from fhe_llm.providers.anthropic_messages import AnthropicMessages
from fhe_llm.providers.http_provider import Home, HttpProvider, HttpSettings

ANTHROPIC_URL: Final = "https://api.anthropic.com"
ANTHROPIC_KEY: Final = "ANTHROPIC_API_KEY"


class AnthropicProvider(HttpProvider):
    """Anthropic's messages. The key comes from ``api_key`` or ``ANTHROPIC_API_KEY``.

    Without ``max_tokens`` a request asks for 4096. The API has no ``seed``, and a request with one is refused here.
    """

    def __init__(self, model: str, **settings: Unpack[HttpSettings]) -> None:
        """See :class:`HttpSettings`. Raises :class:`fhe_llm.errors.ProviderAuthError`,
        :class:`fhe_llm.errors.ProviderRequestError`."""
        if isinstance(url := settings.get("base_url"), str):
            settings["base_url"] = url.rstrip("/").removesuffix("/v1")  # the route brings it
        super().__init__(AnthropicMessages(), model, Home(ANTHROPIC_URL, ANTHROPIC_KEY), settings)
