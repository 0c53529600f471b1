"""Which failures are worth another attempt."""

from __future__ import annotations

import builtins
import time
from typing import Any

import pytest

from fhe_llm.errors import ProviderError, ProviderLimitError, ProviderRequestError
from fhe_llm.providers.chat_completions import ChatCompletions
from fhe_llm.providers.circuit import Circuit
from fhe_llm.providers.exchange import Call
from fhe_llm.providers.retries import FIRST_WAIT, JITTER, LONGEST_WAIT, _Worth, attempts


def call(seconds: float = 60.0, circuit: Circuit | None = None) -> Call:
    return Call(
        dialect=ChatCompletions("acme"),
        model="m",
        url="https://x",
        headers={},
        body=b"",
        private="",
        streamed=False,
        timeout=seconds,
        chunk_timeout=1.0,
        deadline=time.monotonic() + seconds,
        circuit=circuit or Circuit("acme"),
    )


PASSING = ProviderError("x", retryable=True)


def test_only_what_may_pass() -> None:
    worth = _Worth(call())
    assert worth.wait(PASSING) is True
    for final in (
        ProviderError("x"),
        ProviderRequestError("x", status=400),
        ValueError("x"),
        KeyboardInterrupt(),
    ):
        assert worth.wait(final) is False  # type: ignore[arg-type]  # stamina asks for whatever is raised


def test_a_wish_is_granted_with_a_little_jitter_if_there_is_time() -> None:
    limited = ProviderLimitError("x", retryable=True, retry_after=10.0)
    waits = {_Worth(call()).wait(limited) for _ in range(50)}
    assert all(10.0 <= wait <= 11.0 for wait in waits)
    assert len(waits) > 1
    assert _Worth(call(9.0)).wait(limited) is False


def test_no_wait_outlasts_the_deadline() -> None:
    assert _Worth(call(FIRST_WAIT + JITTER - 0.01)).wait(PASSING) is False
    patient = _Worth(call(LONGEST_WAIT + 1))
    assert [patient.wait(PASSING) for _ in range(20)] == [True] * 20
    short = _Worth(call(3.0))
    assert [short.wait(PASSING) for _ in range(4)] == [True, True, True, False]


def test_none_for_a_circuit_that_is_open() -> None:
    circuit = Circuit("acme", failures=1)
    worth = _Worth(call(circuit=circuit))
    assert worth.wait(PASSING) is True
    circuit.enter().failed()
    assert worth.wait(PASSING) is False


def test_a_missing_stamina_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "stamina":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ProviderError, match=r"stamina is not installed\. Run pip install 'fhe-llm\[privacy\]'"
    ):
        attempts(call(), 2)
