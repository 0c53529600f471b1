"""A tap shows what a transport carries, both ways, and changes nothing."""

from __future__ import annotations

import pytest

from fhe_llm.cli.tap import Tap
from fhe_llm.client.transport import FunctionTransport, Patience
from fhe_llm.client.transport.operations import Answer, Operation, Round, Unreachable
from fhe_llm.client.transport.routines import settled


def test_it_shows_what_goes_and_what_comes_back() -> None:
    sent: list[Operation] = []
    received: list[tuple[Operation, bytes]] = []
    tap = Tap(
        FunctionTransport(bytes.upper),
        sent.append,
        lambda operation, answer: received.append((operation, answer.body)),
    )
    assert tap.run(settled(Round(b"frame"))) == Answer(200, {}, b"FRAME")
    assert sent == [Round(b"frame")]
    assert received == [(Round(b"frame"), b"FRAME")]


def test_an_operation_without_an_answer_is_shown_each_time_it_goes() -> None:
    answers = iter([Unreachable("cut"), b"reply"])
    sent: list[Operation] = []
    received: list[bytes] = []

    def evaluate(_frame: bytes) -> bytes:
        answer = next(answers)
        if isinstance(answer, Unreachable):
            raise answer
        return answer

    tap = Tap(FunctionTransport(evaluate), sent.append, lambda _, answer: received.append(answer.body))
    assert tap.run(settled(Round(b"frame"), Patience(first_pause=0))).body == b"reply"
    assert [operation for operation in sent if isinstance(operation, Round)] == 2 * [Round(b"frame")]
    assert b"reply" in received


def test_what_a_routine_raises_comes_through() -> None:
    def routine():  # type: ignore[no-untyped-def]
        yield Round(b"frame")
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        Tap(FunctionTransport(bytes.upper), lambda _: None).run(routine())
