"""Anthropic."""

from __future__ import annotations

from typing import Final, Unpack

from fhe_llm.providers.anthropic_messages import AnthropicMessages
from fhe_llm.providers.api_keys import ApiKey
from fhe_llm.providers.http_provider import HttpProvider, HttpSettings

ANTHROPIC_URL: Final = "https://api.anthropic.com"
ANTHROPIC_KEY: Final = "ANTHROPIC_API_KEY"


class AnthropicProvider(HttpProvider):
    """Anthropic's messages. The key comes from ``api_key`` or ``ANTHROPIC_API_KEY``.

    Without ``max_tokens`` a request asks for 4096. The API has no ``seed``, and a request with one is refused here.
    """

    def __init__(self, model: str, **settings: Unpack[HttpSettings]) -> None:
        """See :class:`HttpSettings`. Raises :class:`fhe_llm.errors.ProviderAuthError`,
        :class:`fhe_llm.errors.ProviderRequestError`."""
        dialect = AnthropicMessages()
        key = ApiKey(settings.pop("api_key", None), provider=dialect.name, variable=ANTHROPIC_KEY)
        url = settings.pop("base_url", None) or ANTHROPIC_URL
        super().__init__(dialect, model, base_url=_without_version(url), api_key=key, **settings)


def _without_version(url: str) -> str:
    """Addresses are given with and without ``/v1``; the route brings it."""
    return url.rstrip("/").removesuffix("/v1") if isinstance(url, str) else url
