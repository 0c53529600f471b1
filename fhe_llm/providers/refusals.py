"""An error response becomes one of our errors. What a provider wrote is read for its kind and never repeated: it may
hold the prompt or a part of the key."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fhe_llm.errors import (
    ProviderAuthError,
    ProviderContextError,
    ProviderError,
    ProviderLimitError,
    ProviderRequestError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)

LONGEST_RETRY_AFTER: Final = 86_400.0
"""A provider that asks for more than a day is not believed."""
_WORDS: Final = re.compile(r"[a-z]{2,24}(_[a-z]{1,24}){1,7}")
_PARAMETERS: Final = re.compile(
    r"(messages|tools|stop|model|seed|temperature|response_format|tool_choice|stream_options)"
    r"(\[\d{1,4}\])?(\.[a-z_]{2,24})?"
)
_LONE_WORDS: Final = frozenset(
    {
        "validation",
        "generation",
        "overloaded",
        "unauthorized",
        "forbidden",
        "unhealthy",
        "input",
        "template",
        "tool",
    }
)
_CONTEXT: Final = re.compile(
    r"maximum context length|context (length|window)|context limit|prompt is too long"
    r"|`inputs` (tokens|must have)|input validation error: `?inputs",
    re.IGNORECASE,
)
_QUOTA: Final = re.compile(
    r"credit balance is too low|exceeded your (current|monthly included) (quota|credits)", re.IGNORECASE
)
_QUOTA_CODES: Final = frozenset(
    {
        "insufficient_quota",
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "access_terminated",
    }
)
_FILTER_CODES: Final = frozenset(
    {"content_filter", "content_policy_violation", "responsible_ai_policy_violation"}
)
_OVERLOAD_CODES: Final = frozenset({"overloaded", "overloaded_error", "server_is_overloaded"})
_CONTEXT_CODES: Final = frozenset(
    {"context_length_exceeded", "string_above_max_length", "context_window_exceeded"}
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an error response says. ``codes`` are the provider's stable words for it, ``message`` is only searched.

    ``retry_after`` is the provider's wish in seconds; ``final`` that it asks not to be asked again.
    """

    status: int
    codes: tuple[str, ...] = ()
    message: str = ""
    parameter: str | None = None
    retry_after: float | None = None
    final: bool = False

    def error(self, provider: str, *, sent: str = "") -> ProviderError:
        """The error to raise. No word that stands in ``sent``, the private part of the request, is in its message."""
        kind, cause, advice, retryable = self._meaning()
        again = retryable and not self.final
        return kind(
            f"cannot get an answer from {provider}: {cause}{self._particulars(sent)}. {advice}",
            provider=provider,
            status=self.status,
            retryable=again,
            retry_after=self.retry_after if again else None,
        )

    def _meaning(self) -> _Meaning:
        codes = set(self.codes)
        if self.status < 500:
            if codes & _CONTEXT_CODES or (self.status in (400, 413, 422) and _CONTEXT.search(self.message)):
                return _TOO_LONG
            if codes & _FILTER_CODES:
                return _FILTERED
            if codes & _QUOTA_CODES or self.status == 402 or _QUOTA.search(self.message):
                return _QUOTA_USED
        if codes & _OVERLOAD_CODES:
            return _OVERLOADED  # text-generation-inference says so with status 429
        return _by_status(self.status)

    def _particulars(self, sent: str) -> str:
        """Status and words; a word is shown only where it looks like the name of an error and nothing else."""
        shown = [f"status {self.status}"] if self.status else []
        shown += [repr(code) for code in dict.fromkeys(self.codes) if said(code) and code not in sent]
        named = self.parameter or ""
        if (_WORDS.fullmatch(named) or _PARAMETERS.fullmatch(named)) and named not in sent:
            shown.append(f"parameter {named!r}")
        if self.retry_after is not None:
            shown.append(f"asks to wait {self.retry_after:g} s")
        return f" ({', '.join(shown)})" if shown else ""


_Meaning = tuple[type[ProviderError], str, str, bool]

_TOO_LONG: Final[_Meaning] = (
    ProviderContextError,
    "the conversation is longer than the model's context",
    "Shorten it, or lower max_tokens.",
    False,
)
_FILTERED: Final[_Meaning] = (
    ProviderRequestError,
    "its content filter refused the request",
    "Reword it, or ask another model.",
    False,
)
_QUOTA_USED: Final[_Meaning] = (
    ProviderLimitError,
    "the account's quota or credit is used up",
    "See to the account; waiting does not help.",
    False,
)
_REFUSED: Final[_Meaning] = (
    ProviderRequestError,
    "it does not take the request",
    "Compare the settings with what the model allows.",
    False,
)
_REDIRECTED: Final[_Meaning] = (
    ProviderError,
    "it redirects to another address, and no key is sent after it",
    "Give the final address as base_url.",
    False,
)
_OVERLOADED: Final[_Meaning] = (
    ProviderUnavailableError,
    "it is overloaded or not ready",
    "Repeat later.",
    True,
)
_BY_STATUS: Final[Mapping[int, _Meaning]] = {
    401: (ProviderAuthError, "it does not accept the API key", "Check the key.", False),
    403: (
        ProviderAuthError,
        "the API key may not do this",
        "Check what the key and its account allow.",
        False,
    ),
    404: (
        ProviderRequestError,
        "it knows no such model or route",
        "Check the model's name and base_url.",
        False,
    ),
    408: (ProviderTimeoutError, "it gave up waiting", "Repeat.", True),
    409: (ProviderError, "another request is in its way", "Repeat.", True),
    413: (ProviderRequestError, "the request is larger than it takes", "Send less.", False),
    425: (ProviderError, "it wants the request later", "Repeat.", True),
    429: (ProviderLimitError, "too many requests", "Repeat later, or send fewer.", True),
    502: _OVERLOADED,
    503: _OVERLOADED,
    504: (
        ProviderTimeoutError,
        "it did not answer its own gateway in time",
        "Repeat, or ask for less.",
        True,
    ),
    529: _OVERLOADED,
}


def _by_status(status: int) -> _Meaning:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 300 <= status < 400:
        return _REDIRECTED
    if 400 <= status < 500 and status != 424:  # 424 is a failed generation at Hugging Face
        return _REFUSED
    return (ProviderError, "it failed", "Repeat later.", True)


def said(code: str) -> bool:
    """Whether a provider's word may stand in a message: words joined by underscores are error codes; anything else may
    be an echo of what was sent."""
    return code in _LONE_WORDS or _WORDS.fullmatch(code) is not None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait a response asks for, in seconds: ``retry-after-ms``, or ``retry-after`` in seconds or as a date."""
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _seconds(given)
    if seconds is None and given:
        try:
            seconds = max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if seconds is not None and seconds <= LONGEST_RETRY_AFTER else None


def _seconds(given: Any) -> float | None:
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def wished(value: Any) -> float | None:
    """A wait that stands in a body (Hugging Face's ``estimated_time``)."""
    seconds = _seconds(value) if isinstance(value, int | float) else None
    return seconds if seconds is not None and seconds <= LONGEST_RETRY_AFTER else None
