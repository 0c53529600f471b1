"""Retries: ``stamina`` waits with jitter between attempts; here is said which failures are worth one."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from fhe_llm.errors import ProviderError
from fhe_llm.providers.exchange import Call

FIRST_WAIT: Final = 0.5
JITTER: Final = 0.5
LONGEST_WAIT: Final = 8.0


class Attempts(Protocol):
    """For ``for`` and ``async for``. Each context swallows what is raised in it: the next one follows, or the raise."""

    def __iter__(self) -> Iterator[AbstractContextManager[Any]]: ...

    def __aiter__(self) -> AsyncIterator[AbstractContextManager[Any]]: ...


def attempts(call: Call, retries: int) -> Attempts:
    """The attempts of a call. A wait that would outlast the deadline is not begun, nor one for a circuit that is open.

    Raises :class:`ProviderError` where ``stamina`` is missing.
    """
    try:
        import stamina
    except ImportError:
        raise ProviderError(
            f"cannot call {call.dialect.name}: stamina is not installed. Run pip install 'fhe-llm[privacy]'.",
            provider=call.dialect.name,
        ) from None
    return stamina.retry_context(
        on=_Worth(call).wait,
        attempts=retries + 1,
        timeout=call.timeout,
        wait_initial=FIRST_WAIT,
        wait_jitter=JITTER,
        wait_max=LONGEST_WAIT,
    )


class _Worth:
    """Decides about the failures of one call, in their order."""

    def __init__(self, call: Call) -> None:
        self._call, self._failures = call, 0

    def wait(self, error: Exception) -> bool | float:
        """False: raise it. True: wait as ``stamina`` does. A number: wait so many seconds, as the provider asked."""
        self._failures += 1
        if not isinstance(error, ProviderError) or not error.retryable or self._call.circuit.is_open:
            return False
        if error.retry_after is None:
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (self._failures - 1) + JITTER)
            return longest < self._call.left()
        # all who were told the same second would come back at once
        wait = error.retry_after * (1 + secrets.randbelow(1000) / 10_000)
        return wait if wait < self._call.left() else False
