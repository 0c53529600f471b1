"""API keys: where they come from, and that they go nowhere but into one header to one host."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, runtime_checkable
from urllib.parse import urlsplit

from fhe_llm.errors import ProviderAuthError, ProviderRequestError

MAX_KEY_LENGTH: Final = 4096


@runtime_checkable
class Secret(Protocol):
    """A string in a wrapper, such as pydantic's ``SecretStr``."""

    def get_secret_value(self) -> str:
        """The string."""
        ...


ApiKeySource: TypeAlias = str | Secret | Callable[[], "str | Secret"]
"""A key, or a function that is asked for it before each request, so that keys can rotate."""


class ApiKey:
    """A source of keys that shows none: not in its repr, not in an exception."""

    __slots__ = ("_provider", "_required", "_source", "_variable")

    def __init__(
        self, source: ApiKeySource | None, *, provider: str, variable: str | None, required: bool = True
    ) -> None:
        """Without ``source`` the environment's ``variable`` is read before each request.

        Raises :class:`ProviderAuthError` for what is missing or unusable now, before anything is paid for a request;
        a function is not asked yet.
        """
        self._source, self._provider, self._variable, self._required = source, provider, variable, required
        if not callable(source):
            self.get()

    def get(self) -> str | None:
        """The key for the next request, None where the provider needs none. Raises :class:`ProviderAuthError`."""
        given = self._asked() if callable(self._source) else self._source
        if given is None and self._variable is not None:
            given = os.environ.get(self._variable) or None
        if given is None and not self._required:
            return None
        return self._checked(given)

    async def aget(self) -> str | None:
        """:meth:`get` on an event loop; a function, which may wait for a vault, is asked in a thread."""
        return await asyncio.to_thread(self.get) if callable(self._source) else self.get()

    def _asked(self) -> str | Secret | None:
        assert callable(self._source)  # noqa: S101  narrows the type
        try:
            return self._source()
        except Exception as error:  # noqa: BLE001  whatever it raises may hold the key
            failure = type(error).__name__
        raise self._refusal(f"its source raised {failure}", "Mend the function given as api_key.")

    def _checked(self, given: object) -> str:
        key = given.get_secret_value() if isinstance(given, Secret) else given
        advice = f"Set {self._variable} or pass api_key=." if self._variable else "Pass api_key=."
        if key is None or key == "":
            raise self._refusal("there is no API key", advice)
        if not isinstance(key, str):
            raise self._refusal(f"its API key is {type(key).__name__}", advice)
        if not (key.isascii() and key.isprintable()) or " " in key or len(key) > MAX_KEY_LENGTH:
            raise self._refusal(
                "its API key holds characters that no header may, or too many", "Copy it again."
            )
        return key

    def _refusal(self, cause: str, advice: str) -> ProviderAuthError:
        return ProviderAuthError(f"cannot call {self._provider}: {cause}. {advice}", provider=self._provider)

    def __repr__(self) -> str:
        return f"ApiKey({self._provider!r})"

    def __reduce__(self) -> str:
        raise TypeError(
            "cannot copy or pickle an API key: it would leave this process. Open the provider anew."
        )


def checked_address(base_url: str, *, provider: str, allow_insecure: bool) -> str:
    """``base_url`` without a slash at its end. Raises :class:`ProviderRequestError` for what is no address, has
    credentials in it, or would carry text and key unencrypted over a network."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except (ValueError, TypeError, AttributeError):
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host or not base_url.isprintable():
        raise _address_refusal(provider, "base_url is not https://host", "Correct it.")
    if parts.username is not None or parts.query or parts.fragment:
        raise _address_refusal(
            provider, "base_url has credentials, a query or a fragment in it", "Pass the key as api_key=."
        )
    if parts.scheme == "http" and not allow_insecure and not _is_loopback(host):
        raise _address_refusal(
            provider,
            "base_url is http, so anybody on the way could read the key and the text",
            "Use https, or pass allow_insecure=True.",
        )
    return base_url.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address_refusal(provider: str, cause: str, advice: str) -> ProviderRequestError:
    return ProviderRequestError(f"cannot call {provider}: {cause}. {advice}", provider=provider)
