"""Hugging Face: its router to inference providers, and dedicated endpoints with text-generation-inference or vLLM."""

from __future__ import annotations

from typing import Final, Unpack
from urllib.parse import urlsplit

from fhe_llm.providers.api_keys import ApiKey
from fhe_llm.providers.chat_completions import ChatCompletions
from fhe_llm.providers.http_provider import HttpProvider, HttpSettings

HUGGINGFACE_URL: Final = "https://router.huggingface.co/v1"
HUGGINGFACE_KEY: Final = "HF_TOKEN"


class HuggingFaceProvider(HttpProvider):
    """Chat completions at Hugging Face. The key comes from ``api_key`` or ``HF_TOKEN``.

    ``base_url`` is that of a dedicated endpoint; ``/v1`` is added where it has no path. A model that is still being
    loaded is waited for as long as the provider estimates, within ``timeout``.
    """

    def __init__(self, model: str, **settings: Unpack[HttpSettings]) -> None:
        """See :class:`HttpSettings`. Raises :class:`fhe_llm.errors.ProviderAuthError`,
        :class:`fhe_llm.errors.ProviderRequestError`."""
        dialect = ChatCompletions("huggingface")
        key = ApiKey(settings.pop("api_key", None), provider=dialect.name, variable=HUGGINGFACE_KEY)
        url = settings.pop("base_url", None) or HUGGINGFACE_URL
        super().__init__(dialect, model, base_url=_with_version(url), api_key=key, **settings)


def _with_version(url: str) -> str:
    try:
        bare = not urlsplit(url).path.strip("/")
    except (ValueError, TypeError, AttributeError):
        return url  # refused where addresses are checked
    return url.rstrip("/") + "/v1" if bare else url
