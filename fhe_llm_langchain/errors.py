"""Errors under both names: LangChain's, which its middleware and retries know, and ours, with code and advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from langchain_core import exceptions as theirs

import fhe_llm.errors as ours

_KINDS: tuple[tuple[type[ours.FheLlmError], type[theirs.ModelError]], ...] = (
    (ours.ContextOverflowError, theirs.ContextOverflowError),
    (ours.UnknownModelError, theirs.ModelNotFoundError),
    (ours.DownloadError, theirs.ModelConnectionError),
    (ours.ProxyTimeoutError, theirs.ModelTimeoutError),
    (ours.TransportError, theirs.ModelConnectionError),
    (ours.RequestError, theirs.ModelInvalidRequestError),
    (ours.ParameterError, theirs.ModelInvalidRequestError),
    (
        ours.BudgetExhaustedError,
        theirs.ModelPermissionDeniedError,
    ),  # not a rate limit: repeating it does not help
    (ours.LedgerError, theirs.ModelAPIError),
    (ours.PrivacyError, theirs.ModelInvalidRequestError),
    (ours.ProviderAuthError, theirs.ModelAuthenticationError),
    (ours.ProviderRequestError, theirs.ModelInvalidRequestError),
    (ours.ProviderLimitError, theirs.ModelRateLimitError),
    (ours.ProviderTimeoutError, theirs.ModelTimeoutError),
    (ours.ProviderUnavailableError, theirs.ModelConnectionError),
    (ours.ProviderError, theirs.ModelAPIError),
)
_STATUS: dict[int, type[theirs.ModelError]] = {
    401: theirs.ModelAuthenticationError,
    403: theirs.ModelPermissionDeniedError,
    404: theirs.ModelNotFoundError,
    408: theirs.ModelTimeoutError,
    429: theirs.ModelRateLimitError,
    503: theirs.ModelRateLimitError,
}


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raise this library's errors as instances of LangChain's classes too; others pass as they are."""
    try:
        yield
    except ours.FheLlmError as error:
        raise as_langchain(error) from error.__cause__


def as_langchain(error: ours.FheLlmError) -> ours.FheLlmError:
    """The same error, its message and attributes, in a class that is also one of LangChain's ``Model*Error``.

    Only what may pass by itself is retryable: a spoilt reply or a retired key is not.
    """
    if isinstance(error, theirs.ModelError):
        return error
    both: type[ours.FheLlmError] = _both(type(error), _kind(error))  # type: ignore[arg-type]  # classes are hashable
    made = both.__new__(both, *error.args)
    made.args = error.args
    made.__dict__.update(error.__dict__)
    return made


def _kind(error: ours.FheLlmError) -> type[theirs.ModelError]:
    if isinstance(error, ours.ProxyError):
        fallback = theirs.ModelAPIError if error.status >= 500 else theirs.ModelInvalidRequestError
        return _STATUS.get(error.status, fallback)
    return next((kind for own, kind in _KINDS if isinstance(error, own)), theirs.ModelError)


@cache
def _both(own: Any, kind: Any) -> Any:
    return type(own.__name__, (own, kind), {"__module__": __name__, "__doc__": own.__doc__})
