"""The circuit breaker, on a clock of our own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from forking import forked

from fhe_llm.errors import ProviderUnavailableError
from fhe_llm.providers.circuit import Circuit, shared_circuit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit("acme", failures=3, rest_seconds=30.0, clock=clock)


def fail(circuit: Circuit, times: int = 3) -> None:
    for _ in range(times):
        passage = circuit.enter()
        passage.failed()
        passage.end()


def test_it_opens_after_failures_in_a_row_only(circuit: Circuit) -> None:
    fail(circuit, 2)
    circuit.enter().succeeded()
    fail(circuit, 2)
    assert not circuit.is_open
    fail(circuit, 1)
    assert circuit.is_open


def test_what_ends_without_outcome_counts_for_nothing(circuit: Circuit) -> None:
    for _ in range(5):
        circuit.enter().end()
    assert not circuit.is_open


def test_an_open_one_says_when_it_is_tried_again(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 9.5
    with pytest.raises(
        ProviderUnavailableError,
        match=r"^cannot reach acme: it failed 3 times in a row, and its circuit is open\. It is tried again in 21 s;",
    ) as caught:
        circuit.enter()
    assert caught.value.retry_after == 20.5
    assert caught.value.retryable
    assert caught.value.provider == "acme"


def test_one_trial_at_a_time_and_its_success_closes(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 30.0
    trial = circuit.enter()
    with pytest.raises(ProviderUnavailableError, match="A trial request is on its way"):
        circuit.enter()
    trial.succeeded()
    trial.end()
    circuit.enter()
    assert not circuit.is_open


def test_a_failed_trial_opens_it_for_another_while(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 30.0
    circuit.enter().failed()
    with pytest.raises(ProviderUnavailableError, match="in 30 s"):
        circuit.enter()


def test_a_trial_that_is_given_up_makes_room(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 30.0
    circuit.enter().end()
    circuit.enter()


def test_those_that_left_before_say_nothing_about_now(circuit: Circuit, clock: Clock) -> None:
    early = circuit.enter()
    late = circuit.enter()
    fail(circuit)
    early.succeeded()
    assert circuit.is_open
    clock.now += 20.0
    late.failed()  # must not start the rest anew
    late.end()
    clock.now += 10.0
    trial = circuit.enter()
    early.end()  # nor give the trial's place away
    with pytest.raises(ProviderUnavailableError):
        circuit.enter()
    trial.succeeded()


def test_many_threads_get_one_trial(circuit: Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += 30.0

    def tried(_: int) -> bool:
        try:
            circuit.enter()
        except ProviderUnavailableError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(tried, range(200))) == 1


def test_one_for_each_provider_and_address_of_a_process() -> None:
    one = shared_circuit("acme", "https://a.example")
    assert shared_circuit("acme", "https://a.example") is one
    assert shared_circuit("acme", "https://b.example") is not one
    assert shared_circuit("other", "https://a.example") is not one
    fail(one, 5)
    with forked(lambda: bytes([shared_circuit("acme", "https://a.example").is_open])) as child:
        assert child() == b"\0"
