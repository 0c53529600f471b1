"""OpenAI, and any other server that speaks its chat-completions API."""

from __future__ import annotations

from typing import Final, Unpack

from fhe_llm.errors import ProviderRequestError
from fhe_llm.providers.api_keys import ApiKey
from fhe_llm.providers.chat_completions import ChatCompletions
from fhe_llm.providers.http_provider import HttpProvider, HttpSettings

OPENAI_URL: Final = "https://api.openai.com/v1"
OPENAI_KEY: Final = "OPENAI_API_KEY"


class OpenAIProvider(HttpProvider):
    """OpenAI's chat completions. The key comes from ``api_key`` or ``OPENAI_API_KEY``.

    ``max_tokens`` goes out as ``max_completion_tokens``, the only name reasoning models take.
    """

    def __init__(self, model: str, **settings: Unpack[HttpSettings]) -> None:
        """See :class:`HttpSettings`. Raises :class:`fhe_llm.errors.ProviderAuthError`,
        :class:`ProviderRequestError`."""
        dialect = ChatCompletions("openai", token_field="max_completion_tokens", most_stops=4)
        key = ApiKey(settings.pop("api_key", None), provider=dialect.name, variable=OPENAI_KEY)
        url = settings.pop("base_url", None) or OPENAI_URL
        super().__init__(dialect, model, base_url=url, api_key=key, **settings)


class OpenAICompatibleProvider(HttpProvider):
    """A server of the chat-completions API at ``base_url``, which ends where ``/chat/completions`` follows.

    A key is sent only where ``api_key`` is given: no environment variable belongs to a server that is not known.
    """

    def __init__(self, model: str, **settings: Unpack[HttpSettings]) -> None:
        """See :class:`HttpSettings`. Raises :class:`ProviderRequestError`."""
        dialect = ChatCompletions("openai-compatible")
        key = ApiKey(settings.pop("api_key", None), provider=dialect.name, variable=None, required=False)
        url = settings.pop("base_url", None)
        if not url:
            raise ProviderRequestError(
                "cannot open openai-compatible: there is no base_url. Pass base_url='https://host/v1'.",
                provider=dialect.name,
            )
        super().__init__(dialect, model, base_url=url, api_key=key, **settings)
