"""OpenAI, and any other server that speaks its chat-completions API."""

from __future__ import annotations

from typing import Final, Unpack

from fhe_llm.errors import ProviderRequestError
from fhe_llm.providers.chat_completions import ChatCompletions
from fhe_llm.providers.http_provider import Home, HttpProvider, HttpSettings

OPENAI_URL: Final = "https://api.openai.com/v1"
OPENAI_KEY: Final = "OPENAI_API_KEY"


class OpenAIProvider(HttpProvider):
    """OpenAI's chat completions. The key comes from ``api_key`` or ``OPENAI_API_KEY``.

    ``max_tokens`` goes out as ``max_completion_tokens``, the only name reasoning models take.
    """

    def __init__(self, model: str, **settings: Unpack[HttpSettings]) -> None:
        """See :class:`HttpSettings`. Raises :class:`fhe_llm.errors.ProviderAuthError`,
        :class:`ProviderRequestError`."""
        dialect = ChatCompletions("openai", limit_name="max_completion_tokens", most_stops=4)
        super().__init__(dialect, model, Home(OPENAI_URL, OPENAI_KEY), settings)


class OpenAICompatibleProvider(HttpProvider):
    """A server of the chat-completions API at ``base_url``, which ends where ``/chat/completions`` follows.

    A key is sent only where ``api_key`` is given: no environment variable belongs to a server that is not known.
    """

    def __init__(self, model: str, **settings: Unpack[HttpSettings]) -> None:
        """See :class:`HttpSettings`. Raises :class:`ProviderRequestError`."""
        dialect = ChatCompletions("openai-compatible")
        if not settings.get("base_url"):
            raise ProviderRequestError(
                "cannot open openai-compatible: there is no base_url. Pass base_url='https://host/v1'.",
                provider=dialect.name,
            )
        super().__init__(dialect, model, Home("", key_required=False), settings)
