"""What leaves for a closed provider was changed and paid before; what was paid once is not paid, or drawn, again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from private_kit import NumberedMechanism, RecordingProvider, Rewriter, assistant, user

from fhe_llm.errors import (
    BudgetExhaustedError,
    IdempotencyError,
    LedgerError,
    PrivacyParameterError,
    ProviderRequestError,
    ProviderUnavailableError,
    RequestError,
)
from fhe_llm.privacy import Account, Budget, Pseudonymiser, SqliteLedger
from fhe_llm.providers import PrivateAnswer, PrivateProviderLLM, ProviderToolCall

MICRO = 10**6


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with SqliteLedger(tmp_path / "ledger.sqlite") as ledger:
        ledger.set_budget("alice", Budget.of(20, "epsilon", "day"))
        yield Account(ledger, "alice")


def spent(account: Account) -> int:
    return next((b.spent for b in account.balances() if b.unit == "epsilon" and b.window == "day"), 0)


def llm(account: Account, *replies: Any, **settings: Any) -> tuple[PrivateProviderLLM, RecordingProvider]:
    provider = RecordingProvider(*replies)
    mechanism = settings.pop("mechanism", None) or NumberedMechanism()
    return PrivateProviderLLM(provider, mechanism=mechanism, budget=account, **settings), provider


def ask(model: PrivateProviderLLM, how: str, messages: Any, **options: Any) -> PrivateAnswer:
    """The answer by one of the four ways; streams are checked to add up."""
    if how == "chat":
        return model.chat(messages, **options)
    if how == "achat":
        return asyncio.run(model.achat(messages, **options))

    async def collect() -> list[Any]:
        return [chunk async for chunk in model.astream(messages, **options)]

    chunks = list(model.stream(messages, **options)) if how == "stream" else asyncio.run(collect())
    answer = chunks[-1].answer
    assert answer is not None
    assert all(chunk.answer is None for chunk in chunks[:-1])
    assert "".join(chunk.text for chunk in chunks) == answer.text
    return answer


WAYS = ("chat", "stream", "achat", "astream")


@pytest.mark.parametrize("how", WAYS)
def test_the_provider_reads_the_draw_and_the_budget_paid_for_it(account: Account, how: str) -> None:
    model, provider = llm(account, "an answer of some length")
    answer = ask(model, how, "my secret illness")
    assert answer.text == "an answer of some length"
    assert [dict(m) for m in provider.requests[0].messages] == [user("w1 w2 w3")]
    assert "secret" not in provider.sent()
    assert spent(account) == 3 * MICRO
    assert answer.receipt.charge == {"epsilon": 3 * MICRO}
    assert "3 tokens at 1" in str(answer.receipt)


def test_the_cost_is_shown_before_and_after(account: Account) -> None:
    model, provider = llm(account)
    quote = model.quote("four words of text")
    assert spent(account) == 0
    assert provider.requests == []
    assert quote.charge == {"epsilon": 4 * MICRO}
    assert "Quote" in str(quote)
    assert "20 ε of 20 ε per day" in str(quote)
    answer = model.chat("four words of text")
    assert answer.receipt.charge == quote.charge
    assert "16 ε of 20 ε per day" in str(answer.receipt)
    assert "Release receipt" in answer._repr_html_()
    assert "four words" not in repr(answer) + repr(model) + str(answer.receipt.to_dict())


@pytest.mark.parametrize("how", WAYS)
def test_a_conversation_pays_for_each_message_once_and_shows_the_sum(account: Account, how: str) -> None:
    model, provider = llm(account, "first", "second")
    ask(model, how, [user("one two")])
    history = [user("one two"), assistant("first"), user("three four five")]
    quote = model.quote(history)
    assert quote.charge == {"epsilon": 3 * MICRO}
    assert quote.conversation == {"epsilon": 5 * MICRO}
    answer = ask(model, how, history)
    sent = [dict(m) for m in provider.requests[1].messages]
    assert sent == [user("w1 w2"), assistant("first"), user("w3 w4 w5")]
    assert answer.receipt.conversation == {"epsilon": 5 * MICRO}
    assert spent(account) == 5 * MICRO


def test_the_same_question_again_is_another_draw(account: Account) -> None:
    model, provider = llm(account)
    model.chat("one two")
    model.chat("one two")
    assert [request.messages[0]["content"] for request in provider.requests] == ["w1 w2", "w3 w4"]
    assert spent(account) == 4 * MICRO


def test_two_conversations_with_the_same_beginning_stay_apart(account: Account) -> None:
    model, provider = llm(account, "a", "b", "c")
    model.chat("hello")
    model.chat("hello")
    model.chat([user("hello"), assistant("a"), user("more")])
    assert [m["content"] for m in provider.requests[2].messages] == ["w1", "a", "w3"]


def test_a_history_that_was_never_sent_is_changed_and_paid(account: Account) -> None:
    model, provider = llm(account)
    model.chat([user("one two"), assistant("three"), user("four")])
    assert [m["content"] for m in provider.requests[0].messages] == ["w1 w2", "w3", "w4"]
    assert spent(account) == 4 * MICRO


def test_a_changed_history_is_not_taken_for_the_one_that_was_sent(account: Account) -> None:
    model, provider = llm(account, "a", "b")
    model.chat("one two")
    model.chat([user("one 2wo"), assistant("a"), user("x")])
    assert "a" not in [m["content"] for m in provider.requests[1].messages]


def test_system_messages_are_private_unless_they_are_said_to_be_public(account: Account) -> None:
    system = {"role": "system", "content": "you help Alice"}
    model, provider = llm(account)
    model.chat([system, user("hi")])
    assert "Alice" not in provider.sent()
    model, provider = llm(account, public_system=True)
    model.chat([system, user("hi")])
    assert provider.requests[0].messages[0]["content"] == "you help Alice"


def test_what_a_budget_does_not_cover_does_not_leave(account: Account) -> None:
    model, provider = llm(account)
    model.chat(" ".join("word" for _ in range(18)))
    with pytest.raises(BudgetExhaustedError, match=r"2 ε of 20 ε per day is left. It refreshes at") as caught:
        model.chat("three more words")
    assert caught.value.left == 2 * MICRO
    assert caught.value.refreshes_at is not None
    assert len(provider.requests) == 1
    assert spent(account) == 18 * MICRO
    model.chat("two words")
    assert spent(account) == 20 * MICRO


def test_no_budget_means_nothing_leaves(tmp_path: Path) -> None:
    with SqliteLedger(tmp_path / "ledger.sqlite") as ledger:
        model, provider = llm(Account(ledger, "bob"))
        with pytest.raises(BudgetExhaustedError, match="no budget of epsilon is set"):
            model.chat("hello")
        assert provider.requests == []


def test_a_mechanism_that_fails_costs_nothing_and_nothing_leaves(account: Account) -> None:
    model, provider = llm(account, mechanism=NumberedMechanism(failing=ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        model.chat("one two")
    assert provider.requests == []
    assert spent(account) == 0


def test_a_ledger_that_cannot_be_written_lets_nothing_leave(account: Account, tmp_path: Path) -> None:
    model, provider = llm(account)
    for file in tmp_path.glob("ledger.sqlite*"):
        file.write_bytes(b"not a database at all, but long enough to be looked at " * 100)
    with pytest.raises(LedgerError):
        model.chat("one two")
    assert provider.requests == []


@pytest.mark.parametrize("how", WAYS)
def test_a_provider_that_fails_has_been_paid_and_an_idempotency_key_sends_the_same(
    account: Account, how: str
) -> None:
    model, provider = llm(account, ProviderUnavailableError("down"), "up again")
    with pytest.raises(ProviderUnavailableError):
        ask(model, how, "one two", idempotency_key="q1")
    assert spent(account) == 2 * MICRO
    assert ask(model, how, "one two", idempotency_key="q1").text == "up again"
    assert provider.requests[0] == provider.requests[1]
    assert spent(account) == 2 * MICRO
    with pytest.raises(IdempotencyError, match="other messages"):
        ask(model, how, "three", idempotency_key="q1")


def test_a_key_that_another_process_has_used_does_not_draw_again(account: Account) -> None:
    llm(account)[0].chat("one two", idempotency_key="q1")
    model, provider = llm(account)
    with pytest.raises(IdempotencyError, match="paid once"):
        model.chat("one two", idempotency_key="q1")
    assert provider.requests == []
    assert spent(account) == 2 * MICRO


@pytest.mark.parametrize("how", WAYS)
def test_an_answer_is_rewritten_here_and_the_history_goes_on_with_what_was_shown(
    account: Account, how: str
) -> None:
    model, provider = llm(account, "remote", "again", mechanism=Rewriter())
    answer = ask(model, how, "one two")
    assert answer.text == "<one two|remote>"
    assert answer.remote_text == "remote"
    ask(model, how, [user("one two"), assistant("<one two|remote>"), user("three")])
    assert [m["content"] for m in provider.requests[1].messages] == ["w1 w2", "remote", "w3"]


@pytest.mark.parametrize("how", WAYS)
def test_identifiers_are_replaced_restored_and_noted_as_unprotected(account: Account, how: str) -> None:
    provider = RecordingProvider()
    model = PrivateProviderLLM(provider, guarantee="none", budget=account, identifiers=Pseudonymiser())
    first = ask(model, how, "Write to jane.doe@example.com please")
    left = provider.requests[0].messages[0]["content"]
    assert "jane.doe" not in left
    placeholder = left.split()[2]
    provider.replies = [f"I wrote to {placeholder} today"]
    answer = ask(model, how, "Write to jane.doe@example.com please")
    assert answer.text == "I wrote to jane.doe@example.com today"
    assert first.receipt.guarantee == "none"
    assert first.receipt.charge == {}
    assert "no guarantee" in str(first.receipt)
    events = [entry.event.name for entry in account.ledger.history("alice") if entry.event]
    assert "identifiers-replaced" in events


def test_tool_calls_get_their_identifiers_back(account: Account) -> None:
    provider = RecordingProvider()
    model = PrivateProviderLLM(provider, guarantee="none", identifiers=Pseudonymiser())
    model.chat("Mail jane.doe@example.com")
    placeholder = provider.requests[0].messages[0]["content"].split()[1]
    provider.tool_calls = (ProviderToolCall("c1", "mail", f'{{"to": "{placeholder}"}}'),)
    answer = model.chat("Mail jane.doe@example.com")
    assert answer.tool_calls[0].arguments == '{"to": "jane.doe@example.com"}'
    provider.tool_calls = ()
    call = {"id": "c1", "type": "function"} | {
        "function": {"name": "mail", "arguments": answer.tool_calls[0].arguments}
    }
    history = [
        user("Mail jane.doe@example.com"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sent to jane.doe@example.com"},
    ]
    model.chat(history)
    assert "jane.doe" not in provider.sent()
    assert [m["role"] for m in provider.requests[-1].messages] == ["user", "assistant", "tool"]


def test_text_in_clear_is_sent_as_it_is_and_noted(account: Account) -> None:
    provider = RecordingProvider()
    model = PrivateProviderLLM(provider, guarantee="none", budget=account)
    answer = model.chat("nothing secret")
    assert provider.requests[0].messages[0]["content"] == "nothing secret"
    assert "left in clear: no guarantee" in str(answer.receipt)
    assert {e.event.name for e in account.ledger.history("alice") if e.event} == {"text-in-clear"}


def test_other_fields_of_a_message_stay_here(account: Account) -> None:
    model, provider = llm(account)
    model.chat([{"role": "user", "content": "hi", "name": "Jane Doe", "id": "jane-doe-1"}])
    assert "jane" not in provider.sent().lower()


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({}, "give a mechanism and a budget, or guarantee='none'"),
        ({"mechanism": NumberedMechanism()}, "without a budget"),
        ({"mechanism": NumberedMechanism(), "guarantee": "none"}, "not both"),
        ({"guarantee": "differential privacy"}, "the only one that is said is 'none'"),
        ({"mechanism": lambda text: text, "budget": True}, "has no claim"),
    ],
)
def test_a_guarantee_must_be_named(account: Account, settings: dict[str, Any], cause: str) -> None:
    if settings.get("budget") is True:
        settings = {**settings, "budget": account}
    with pytest.raises(PrivacyParameterError, match=cause):
        PrivateProviderLLM(RecordingProvider(), **settings)


def test_placeholders_are_not_mixed_with_a_claim(account: Account) -> None:
    with pytest.raises(PrivacyParameterError, match="beside a mechanism"):
        llm(account, identifiers=Pseudonymiser())


BAD: list[Callable[[PrivateProviderLLM], Any]] = [
    lambda model: model.chat([]),
    lambda model: model.chat("hi", colour="red"),  # type: ignore[call-arg]
    lambda model: model.chat([{"role": "nobody", "content": "hi"}]),
    lambda model: model.chat([{"role": "user", "content": [{"type": "image_url"}]}]),
    lambda model: model.chat("hi", seed=13),  # this provider's own refusal
]


@pytest.mark.parametrize("call", BAD)
def test_bad_requests_cost_nothing(account: Account, call: Callable[[PrivateProviderLLM], Any]) -> None:
    model, provider = llm(account)
    with pytest.raises((RequestError, ProviderRequestError)):
        call(model)
    assert provider.requests == []
    assert spent(account) == 0


def test_a_stream_that_is_closed_early_closes_the_provider_s(account: Account) -> None:
    model, provider = llm(account, "a long answer")
    stream = model.stream("hi")
    next(stream)
    stream.close()
    assert provider.closed == 1
