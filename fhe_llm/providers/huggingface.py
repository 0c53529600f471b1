"""Hugging Face: its router to inference providers, and dedicated endpoints with text-generation-inference or vLLM."""

from __future__ import annotations

from typing import Final, Unpack
from urllib.parse import urlsplit

from fhe_llm.providers.chat_completions import ChatCompletions
from fhe_llm.providers.http_provider import Home, HttpProvider, HttpSettings

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
        if url := settings.get("base_url"):
            settings["base_url"] = _with_version(url)
        super().__init__(
            ChatCompletions("huggingface"), model, Home(HUGGINGFACE_URL, HUGGINGFACE_KEY), settings
        )


def _with_version(url: str) -> str:
    try:
        bare = not urlsplit(url).path.strip("/")
    except (ValueError, TypeError, AttributeError):
        return url  # refused where addresses are checked
    return url.rstrip("/") + "/v1" if bare else url
